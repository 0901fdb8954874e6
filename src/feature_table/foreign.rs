//! Tables of other programs: what they have beyond ids and classes that are numbers, and what was understood of them.
//!
//! Columns are found by type and name (`columns.rs`). Ids may be text or missing, classes may be names, and
//! an image may have several labels.

use std::collections::{HashMap, HashSet};

use arrow::datatypes::Schema;
use bytes::Bytes;

use super::TableError;
use super::columns::{ColumnNames, Found, Rows, check_ids, is_text, item_type, label_of};
use super::decode::Contents;
use super::rows::{check_vectors, first_not_of_unit_length};
use super::schema::NamedMeta;
use super::table::FeatureTable;
use crate::ids::{ClassId, InstanceId};
use crate::storage::Location;

/// What a table of another program has beside its [`FeatureTable`].
#[derive(Clone, Debug, PartialEq)]
pub struct Foreign {
    /// The table's name, for errors.
    pub table: String,
    /// How its rows are named.
    pub rows: RowNames,
    /// What its labels are.
    pub labels: ForeignLabels,
    /// The first row that is not of unit length, with its length, where the metadata does not say which
    /// length rows have.
    pub not_unit: Option<(usize, f64)>,
    /// The first row of zeros alone, likewise.
    pub zero: Option<usize>,
    /// What was understood, in words.
    pub about: String,
}

/// How the rows of a table are named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum RowNames {
    /// By the table's ids.
    #[default]
    Ids,
    /// Not at all: the ids are the numbers of the rows.
    Unnamed,
    /// By numbers other than the table's ids, `[rows]`.
    Numbers(Vec<InstanceId>),
    /// By text, `[rows]`; the ids are the numbers of the rows.
    Texts(Vec<String>),
}

impl RowNames {
    /// The name of a row; none where its id is the name.
    pub fn name(&self, row: usize) -> Option<String> {
        match self {
            Self::Ids | Self::Unnamed => None,
            Self::Numbers(numbers) => Some(numbers[row].to_string()),
            Self::Texts(texts) => Some(texts[row].clone()),
        }
    }
}

/// The labels of a table of another program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForeignLabels {
    /// None.
    None,
    /// A number for each image, or none.
    Numbers,
    /// A name for each image, or none; the classes are the sorted names.
    Names,
    /// Any number of labels for each image.
    Sets {
        /// `[rows]`: the numbers of the labels, or with names their positions in the classes; ascending, each once.
        rows: Vec<Vec<u32>>,
        /// Whether the labels are names.
        are_names: bool,
    },
}

impl ForeignLabels {
    /// Whether labels are names, or else numbers; nothing where there are none.
    pub fn are_names(&self) -> Option<bool> {
        match self {
            Self::None => None,
            Self::Numbers => Some(false),
            Self::Names => Some(true),
            Self::Sets { are_names, .. } => Some(*are_names),
        }
    }
}

impl FeatureTable {
    /// Reads a table, with what only tables of other programs have where another program wrote it. Without
    /// `names`, such a table has the columns of the format, with ids and classes that are numbers, and a table
    /// may be empty.
    ///
    /// # Errors
    /// The first thing that is wrong, with the row or column that it is about; if several columns can be meant.
    pub fn read_foreign(
        location: &Location,
        names: Option<&ColumnNames>,
    ) -> Result<(Self, Option<Foreign>), TableError> {
        let table = location.to_string();
        if location.local_path().is_some_and(std::path::Path::is_dir) {
            let reason = "it is a folder, expected a file such as the `bank.arrow` of a checkpoint".into();
            return Err(TableError::NotATable { table, reason });
        }
        match location.read() {
            Err(error) if error.is_not_found() => Err(TableError::NotThere { table }),
            other => of_bytes(&table, other?, names),
        }
    }
}

/// Reads a table from the bytes of its file, which errors call `table`. Without `names`, a table of another
/// program has the columns of the format too.
pub(super) fn of_bytes(
    table: &str,
    bytes: Bytes,
    names: Option<&ColumnNames>,
) -> Result<(FeatureTable, Option<Foreign>), TableError> {
    let malformed = |source| TableError::Malformed { table: table.into(), source };
    let not_a_table = |reason| TableError::NotATable { table: table.into(), reason };
    let contents = Contents::of(bytes).map_err(malformed)?;
    let named = NamedMeta::of(contents.schema()).map_err(not_a_table)?;
    let is_ours = named.is_ours;
    let found = match names.filter(|_| !is_ours) {
        None => Found::of_format(table, contents.schema())?,
        Some(names) => Found::of(table, contents.schema(), names)?,
    };
    let (schema, says_length) = (contents.schema().clone(), named.unit_length.is_some());
    // Only a table of another program can have its ids in another column.
    let with_cure = |error: TableError| match (error, found.id.filter(|_| names.is_some() && !is_ours)) {
        (TableError::Id { table, row, id, reason }, Some(at)) => {
            let column = schema.field(at).name().clone();
            let cure = "name another by --id-column, or none by ''";
            let reason = format!(
                "holds {id} in row {row}: {reason}, expected ids from 0 to {}, each once: {cure}",
                u32::MAX
            );
            TableError::Column { table, column, reason }
        }
        (error, _) => error,
    };
    let mut rows = Rows::default();
    for batch in contents.batches(&found.positions()).map_err(malformed)? {
        rows.append(table, &found, &batch.map_err(malformed)?).map_err(with_cure)?;
    }
    if names.is_some() && rows.ids.is_empty() {
        return Err(TableError::Empty { table: table.into() });
    }
    let Rows { ids, mut labels, updated_step, features, dim, id_texts, names, named: of_row, sets } = rows;
    let dim = named.dim(dim).map_err(not_a_table)?;
    let not_unit = if says_length { None } else { first_not_of_unit_length(dim, &features) };
    let is_zero = |row: &[f32]| row.iter().all(|&x| x == 0.0);
    let zero = not_unit.and_then(|_| features.chunks_exact(dim).position(is_zero));
    let classes = labels.iter().flatten().map(|class| class.index() + 1).max().unwrap_or(0);
    let mut meta = named.complete(dim, not_unit.is_none(), classes);
    let label = found.label.map(|at| schema.field(at));
    let kind_of_labels = match label.map(|field| (item_type(field.data_type()).is_some(), field.data_type()))
    {
        None => ForeignLabels::None,
        Some((false, kind)) if is_text(kind) => {
            let (classes, places) = sorted(names);
            meta.classes = classes;
            let class = |number: u32| ClassId(places[number as usize] as u16);
            labels = of_row.iter().map(|number| number.map(class)).collect();
            ForeignLabels::Names
        }
        Some((false, _)) => ForeignLabels::Numbers,
        Some((true, kind)) => {
            let are_names = item_type(kind).is_some_and(is_text);
            let mut rows = sets;
            if are_names {
                let (classes, places) = sorted(names);
                meta.classes = classes;
                for labels in &mut rows {
                    labels.iter_mut().for_each(|label| *label = places[*label as usize]);
                    labels.sort_unstable();
                }
            } else {
                let mut numbers: Vec<u32> = rows.iter().flatten().copied().collect();
                numbers.sort_unstable();
                numbers.dedup();
                meta.classes = numbers.iter().map(ToString::to_string).collect();
            }
            ForeignLabels::Sets { rows, are_names }
        }
    };
    check_ids(meta.kind, &ids, |row| (table.into(), row)).map_err(with_cure)?;
    for (row, &label) in labels.iter().enumerate() {
        label_of(table, row, Some(ClassId::to_stored(label)), meta.classes.len())?;
    }
    check_vectors(table, &meta, 0, &features)?;
    check_texts(table, &schema, &found, &id_texts)?;
    let read = FeatureTable { meta, ids, labels, updated_step, features };
    if is_ours {
        return Ok((read, None));
    }
    let rows = match found.id {
        None => RowNames::Unnamed,
        Some(at) if is_text(schema.field(at).data_type()) => RowNames::Texts(id_texts),
        Some(_) => RowNames::Ids,
    };
    let has_labels = read.labels.iter().any(Option::is_some)
        || matches!(&kind_of_labels, ForeignLabels::Sets { rows, .. } if rows.iter().any(|labels| !labels.is_empty()));
    let labels = if has_labels { kind_of_labels } else { ForeignLabels::None };
    let about = about(&schema, &found, &read, &labels);
    Ok((read, Some(Foreign { table: table.into(), rows, labels, not_unit, zero, about })))
}

/// The names in order, and the place of each of the old numbers.
fn sorted(names: HashMap<String, u32>) -> (Vec<String>, Vec<u32>) {
    let mut names: Vec<(String, u32)> = names.into_iter().collect();
    names.sort_unstable();
    let mut places = vec![0; names.len()];
    for (place, (_, number)) in (0..).zip(&names) {
        places[*number as usize] = place;
    }
    (names.into_iter().map(|(name, _)| name).collect(), places)
}

/// Checks that no id occurs twice.
fn check_texts(table: &str, schema: &Schema, found: &Found, texts: &[String]) -> Result<(), TableError> {
    let mut seen = HashSet::with_capacity(texts.len());
    match (texts.iter().position(|text| !seen.insert(text.as_str())), found.id) {
        (Some(row), Some(at)) => Err(TableError::Column {
            table: table.into(),
            column: schema.field(at).name().clone(),
            reason: format!(
                "holds `{}` in row {row}, which occurs twice, expected ids: name another by --id-column, or none by ''",
                texts[row]
            ),
        }),
        _ => Ok(()),
    }
}

/// What was understood of a table, in words.
fn about(schema: &Schema, found: &Found, table: &FeatureTable, labels: &ForeignLabels) -> String {
    let name =
        |at: Option<usize>| at.map_or_else(String::new, |at| format!(" of `{}`", schema.field(at).name()));
    let is_floating = |at: Option<usize>| at.is_some_and(|at| schema.field(at).data_type().is_floating());
    let classes = table.meta.classes.len();
    let labels = match labels {
        ForeignLabels::None if found.label.is_some() => "no label in any row".to_owned(),
        ForeignLabels::None => "no labels".to_owned(),
        ForeignLabels::Numbers if is_floating(found.label) => {
            "class numbers as floats, NaN for none,".to_owned()
        }
        ForeignLabels::Numbers => "class numbers".to_owned(),
        ForeignLabels::Names => format!("{classes} class names"),
        ForeignLabels::Sets { are_names: true, .. } => format!("several labels an image, {classes} names"),
        ForeignLabels::Sets { are_names: false, .. } => format!("several labels an image, {classes} numbers"),
    };
    let ids = if found.id.is_some() { "ids" } else { "no ids, so the numbers of rows" };
    let item =
        item_type(schema.field(found.vector).data_type()).map_or_else(String::new, ToString::to_string);
    format!(
        "{} rows, vectors of {} {item}{}, {labels}{}, {ids}{}",
        table.len(),
        table.meta.dim,
        name(Some(found.vector)),
        name(found.label),
        name(found.id)
    )
}
