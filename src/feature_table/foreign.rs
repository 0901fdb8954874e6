//! Tables of other programs: data beyond numeric ids and classes, and how the columns were interpreted.
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

/// Data of another program's table besides its [`FeatureTable`].
#[derive(Clone, Debug, PartialEq)]
pub struct Foreign {
    /// Name of the table, for errors.
    pub table: String,
    /// Names of the rows.
    pub rows: RowNames,
    /// Kind of the labels.
    pub labels: ForeignLabels,
    /// First row without unit length, with its length; set only if the metadata does not state whether rows
    /// have unit length.
    pub not_unit: Option<(usize, f64)>,
    /// First row that is all zeros, under the same condition.
    pub zero: Option<usize>,
    /// Description of the interpretation, for people.
    pub about: String,
}

/// Names of a table's rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum RowNames {
    /// Ids of the table.
    #[default]
    Ids,
    /// None: the ids are the numbers of the rows.
    Unnamed,
    /// Numbers other than the table's ids, `[rows]`.
    Numbers(Vec<InstanceId>),
    /// Text, `[rows]`; the ids are the numbers of the rows.
    Texts(Vec<String>),
}

impl RowNames {
    /// Returns the name of a row; `None` if its id is the name.
    pub fn name(&self, row: usize) -> Option<String> {
        match self {
            Self::Ids | Self::Unnamed => None,
            Self::Numbers(numbers) => Some(numbers[row].to_string()),
            Self::Texts(texts) => Some(texts[row].clone()),
        }
    }
}

/// Labels of another program's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForeignLabels {
    /// No labels.
    None,
    /// At most one number for each image.
    Numbers,
    /// At most one name for each image; the classes are the sorted names.
    Names,
    /// Any number of labels for each image.
    Sets {
        /// `[rows]`: numbers of the labels, or for names their indices in the classes; ascending and distinct.
        rows: Vec<Vec<u32>>,
        /// Whether the labels are names.
        are_names: bool,
    },
}

impl ForeignLabels {
    /// Returns whether labels are names rather than numbers; `None` without labels.
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
    /// Reads a table, and further data if another program wrote it. Without `names`, such a table must have
    /// the format's columns with numeric ids and classes, and it may be empty.
    ///
    /// # Errors
    /// If the table is invalid, with the first faulty row or column, or if several columns fit a role.
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

/// Reads a table from the bytes of its file; `table` is its name in errors. Without `names`, a table of
/// another program must have the format's columns too.
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

/// Returns the sorted names, and the new index of each old number.
fn sorted(names: HashMap<String, u32>) -> (Vec<String>, Vec<u32>) {
    let mut names: Vec<(String, u32)> = names.into_iter().collect();
    names.sort_unstable();
    let mut places = vec![0; names.len()];
    for (place, (_, number)) in (0..).zip(&names) {
        places[*number as usize] = place;
    }
    (names.into_iter().map(|(name, _)| name).collect(), places)
}

/// Checks that no text id occurs twice.
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

/// Describes for people how a table was interpreted.
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
