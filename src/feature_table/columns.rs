//! Columns of a feature table from any program, and their values.

use std::collections::HashMap;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Float16Type, Float32Type, Float64Type, Int64Type, Schema};

use super::schema::Kind;
use super::{MOST_CLASSES, TableError};
use crate::ids::{ClassId, InstanceId};

/// Names of columns in a table from another program. Without a name, a column is found by the format's name
/// (`instance_id`, `feature`, `label`), or as the only one of fitting type and name. An empty name means no
/// ids or labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ColumnNames {
    /// Column of ids: distinct integers or text.
    pub id: Option<String>,
    /// Column of vectors: lists of floats, all of one length.
    pub vector: Option<String>,
    /// Column of classes: integers (-1 for none) or names, null for none, or lists of them.
    pub label: Option<String>,
}

/// Role of a column, with the rules to find it.
struct Role {
    name: &'static str,
    /// Name in the format.
    usual: &'static str,
    /// Other accepted names, in lower case, separated by spaces; empty accepts any.
    others: &'static str,
    fits: fn(&DataType) -> bool,
    expected: &'static str,
    option: &'static str,
}

const VECTOR: Role = Role {
    name: "vectors",
    usual: "feature",
    others: "",
    fits: is_vectors,
    expected: "lists of float16, float32 or float64",
    option: "--vector-column",
};
const ID: Role = Role {
    name: "ids",
    usual: "instance_id",
    others: "id ids image_id key __key__ path image_path file filename file_name url uuid",
    fits: |kind| is_number(kind) || is_text(kind),
    expected: "integers or text",
    option: "--id-column",
};
const LABEL: Role = Role {
    name: "labels",
    usual: "label",
    others: "labels class classes class_id class_name class_label label_name fine_label coarse_label category \
             categories target targets tags y",
    fits: is_labels,
    expected: "integers, whole floats or text, or lists of integers or text",
    option: "--label-column",
};
const STEP: Role = Role {
    name: "steps",
    usual: "updated_step",
    fits: is_number,
    expected: "integers",
    others: "",
    option: "",
};

/// Columns of a table, as indices into its schema.
#[derive(Debug)]
pub(super) struct Found {
    pub id: Option<usize>,
    pub vector: usize,
    pub label: Option<usize>,
    step: Option<usize>,
}

impl Found {
    /// Finds the format's columns by name.
    pub(super) fn of_format(table: &str, schema: &Schema) -> Result<Self, TableError> {
        let search = Search { table, schema, given: Vec::new() };
        let numbers = |role: Role| Role { fits: is_number, expected: "integers", ..role };
        Ok(Self {
            id: Some(search.named(&numbers(ID), ID.usual)?),
            vector: search.named(&VECTOR, VECTOR.usual)?,
            label: search.usual(&numbers(LABEL))?,
            step: search.usual(&STEP)?,
        })
    }

    /// Finds the columns in a table of another program.
    ///
    /// # Errors
    /// If a named column is missing or has another type, several columns fit a role, or none has vectors.
    pub(super) fn of(table: &str, schema: &Schema, names: &ColumnNames) -> Result<Self, TableError> {
        let given =
            [&names.vector, &names.id, &names.label].into_iter().flatten().map(String::as_str).collect();
        let search = Search { table, schema, given };
        let vector = search.find(&VECTOR, names.vector.as_deref())?.ok_or_else(|| {
            let columns: Vec<_> = schema
                .fields()
                .iter()
                .map(|field| format!("`{}` of {}", field.name(), field.data_type()))
                .collect();
            let reason = format!("no column holds {}, it has {}", VECTOR.expected, columns.join(", "));
            TableError::NotATable { table: table.into(), reason }
        })?;
        Ok(Self {
            id: search.find(&ID, names.id.as_deref())?,
            vector,
            label: search.find(&LABEL, names.label.as_deref())?,
            step: search.usual(&STEP)?,
        })
    }

    /// Returns the indices in the schema, ascending.
    pub(super) fn positions(&self) -> Vec<usize> {
        let mut all: Vec<_> =
            [self.id, Some(self.vector), self.label, self.step].into_iter().flatten().collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// Search for columns in a schema.
struct Search<'a> {
    table: &'a str,
    schema: &'a Schema,
    /// Explicitly named columns, each usable only for its own role.
    given: Vec<&'a str>,
}

impl Search<'_> {
    /// Finds the column of a role: by the given name, the usual name, or as the only one that fits.
    fn find(&self, role: &Role, given: Option<&str>) -> Result<Option<usize>, TableError> {
        if let Some(name) = given {
            let is_left_out = name.is_empty() && role.usual != VECTOR.usual;
            return if is_left_out { Ok(None) } else { self.named(role, name).map(Some) };
        }
        if let Some(at) = self.usual(role)? {
            return Ok(Some(at));
        }
        let is_meant = |field: &Field| {
            let name = field.name().to_lowercase();
            !self.given.contains(&field.name().as_str())
                && (role.fits)(field.data_type())
                // Floats may be anything, so they are labels only if named explicitly.
                && !field.data_type().is_floating()
                && (role.others.is_empty() || role.others.split(' ').any(|other| other == name))
        };
        let fields = self.schema.fields().iter().enumerate();
        let meant: Vec<usize> = fields.filter(|(_, field)| is_meant(field)).map(|(at, _)| at).collect();
        if let [_, _, ..] = meant.as_slice() {
            let names: Vec<_> =
                meant.iter().map(|&at| format!("`{}`", self.schema.field(at).name())).collect();
            return Err(TableError::Ambiguous {
                table: self.table.into(),
                columns: names.join(" or "),
                role: role.name,
                option: role.option,
            });
        }
        Ok(meant.first().copied())
    }

    fn named(&self, role: &Role, name: &str) -> Result<usize, TableError> {
        let others: Vec<_> = self.schema.fields().iter().map(|field| format!("`{}`", field.name())).collect();
        let missing = || {
            let hint = if self.given.contains(&name) {
                format!("; where bank and queries differ give {} for each", role.option)
            } else {
                String::new()
            };
            wrong(self.table, name, format!("is missing, the table has {}{hint}", others.join(", ")))
        };
        let at = self.schema.fields().iter().position(|field| field.name() == name).ok_or_else(missing)?;
        if self.schema.fields().iter().skip(at + 1).any(|field| field.name() == name) {
            return Err(wrong(self.table, name, "is there twice: rename one of the two".into()));
        }
        let holds = self.schema.field(at).data_type();
        if (role.fits)(holds) {
            return Ok(at);
        }
        Err(wrong(self.table, name, format!("holds {holds}, expected {}", role.expected)))
    }

    fn usual(&self, role: &Role) -> Result<Option<usize>, TableError> {
        let is_there = self.schema.fields().iter().any(|field| field.name() == role.usual);
        is_there.then(|| self.named(role, role.usual)).transpose()
    }
}

fn wrong(table: &str, column: &str, reason: String) -> TableError {
    TableError::Column { table: table.into(), column: column.into(), reason }
}

fn value_type(kind: &DataType) -> &DataType {
    if let DataType::Dictionary(_, values) = kind { values } else { kind }
}

fn is_number(kind: &DataType) -> bool {
    value_type(kind).is_integer() || *kind == DataType::Null
}

pub(super) fn is_text(kind: &DataType) -> bool {
    matches!(value_type(kind), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

/// Returns the type of a list's items.
pub(super) fn item_type(kind: &DataType) -> Option<&DataType> {
    match kind {
        DataType::FixedSizeList(item, _) | DataType::List(item) | DataType::LargeList(item) => {
            Some(item.data_type())
        }
        _ => None,
    }
}

fn is_vectors(kind: &DataType) -> bool {
    item_type(kind).is_some_and(DataType::is_floating)
}

fn is_labels(kind: &DataType) -> bool {
    let item = item_type(kind).unwrap_or(kind);
    // Pandas stores integers with gaps as floats, and gaps as NaN.
    is_number(item) || is_text(item) || kind.is_floating()
}

/// Returns the values of a column of lists, and the offsets of the rows in them.
fn list_parts(lists: &ArrayRef) -> (ArrayRef, Vec<usize>) {
    match lists.data_type() {
        DataType::List(_) => {
            let list = lists.as_list::<i32>();
            (list.values().clone(), list.value_offsets().iter().map(|&at| at as usize).collect())
        }
        DataType::LargeList(_) => {
            let list = lists.as_list::<i64>();
            (list.values().clone(), list.value_offsets().iter().map(|&at| at as usize).collect())
        }
        _ => {
            let list = lists.as_fixed_size_list();
            let length = list.value_length() as usize;
            (list.values().clone(), (0..=list.len()).map(|row| row * length).collect())
        }
    }
}

/// Rows read from a table so far.
#[derive(Debug, Default)]
pub(super) struct Rows {
    pub ids: Vec<InstanceId>,
    pub labels: Vec<Option<ClassId>>,
    pub updated_step: Vec<Option<u64>>,
    pub features: Vec<f32>,
    /// Length of a vector, once known.
    pub dim: Option<usize>,
    /// Ids that are text; `ids` then numbers the rows.
    pub id_texts: Vec<String>,
    /// Class names, each with its number in the order of first use; empty if classes are numbers.
    pub names: HashMap<String, u32>,
    /// By row: number of its class in `names`, if rows have one name each.
    pub named: Vec<Option<u32>>,
    /// By row: its labels, if rows may have several: numbers, or those of `names`.
    pub sets: Vec<Vec<u32>>,
}

impl Rows {
    /// Appends the rows of a batch with the columns of [`Found::positions`].
    pub(super) fn append(
        &mut self,
        table: &str,
        found: &Found,
        batch: &RecordBatch,
    ) -> Result<(), TableError> {
        let positions = found.positions();
        let schema = batch.schema();
        let column = |at: usize| {
            let index = positions.iter().position(|position| *position == at);
            let index = index.expect("the batch has the columns that were asked for");
            (schema.field(index).name().as_str(), batch.column(index))
        };
        let first = self.ids.len();
        let null_in =
            |array: &ArrayRef| (0..array.len()).find(|row| array.is_null(*row)).unwrap_or(0) + first;
        let (vector_name, vectors) = column(found.vector);
        if vectors.null_count() > 0 {
            return Err(wrong(table, vector_name, format!("is null in row {}", null_in(vectors))));
        }
        let numbered = || Int64Array::from_iter_values(first as i64..(first + batch.num_rows()) as i64);
        let ids = match found.id.map(column) {
            None => numbered(),
            Some((name, ids)) => {
                let is_text = is_text(ids.data_type());
                let ids = cast_to(table, ids, if is_text { &DataType::Utf8 } else { ids.data_type() })?;
                if ids.logical_null_count() > 0 {
                    return Err(wrong(table, name, format!("is null in row {}", null_in(&ids))));
                }
                if is_text {
                    self.id_texts.extend(ids.as_string::<i32>().iter().flatten().map(ToOwned::to_owned));
                    numbered()
                } else {
                    integers(table, name, &ids)?
                }
            }
        };
        let nothing = || Int64Array::new_null(batch.num_rows());
        let labels = match found.label.map(column) {
            Some((name, labels)) if item_type(labels.data_type()).is_some() => {
                self.append_sets(table, name, first, labels)?;
                nothing()
            }
            Some((name, labels)) if is_text(labels.data_type()) => {
                self.append_names(table, name, labels)?;
                nothing()
            }
            Some((name, labels)) if labels.data_type().is_floating() => {
                whole_numbers(table, name, first, labels)?
            }
            Some((name, labels)) => integers(table, name, labels)?,
            None => nothing(),
        };
        let steps = match found.step.map(column) {
            Some((name, steps)) => integers(table, name, steps)?,
            None => nothing(),
        };
        for (row, &id) in (first..).zip(ids.values()) {
            self.ids.push(id_of(table, row, id)?);
        }
        for (row, label) in (first..).zip(&labels) {
            self.labels.push(label_of(table, row, label, MOST_CLASSES)?);
        }
        self.updated_step.extend(steps.iter().map(step_of));
        self.append_vectors(first, vectors).map_err(|reason| wrong(table, vector_name, reason))
    }

    fn append_names(&mut self, table: &str, name: &str, labels: &ArrayRef) -> Result<(), TableError> {
        let labels = cast_to(table, labels, &DataType::Utf8)?;
        for label in labels.as_string::<i32>() {
            let row = self.named.len();
            let number = label.map(|label| self.label(table, name, row, label)).transpose()?;
            if number.is_some_and(|number| number as usize == MOST_CLASSES) {
                let class = label.unwrap_or_default();
                let reason = format!(
                    "holds more than {MOST_CLASSES} class names, the first beyond is `{class}` in row {row}"
                );
                return Err(wrong(table, name, reason));
            }
            self.named.push(number);
        }
        Ok(())
    }

    /// Returns the number of a class name.
    fn label(&mut self, table: &str, name: &str, row: usize, label: &str) -> Result<u32, TableError> {
        if label.is_empty() {
            let reason =
                format!("holds a class without a name in row {row}, expected null where there is none");
            return Err(wrong(table, name, reason));
        }
        if let Some(&number) = self.names.get(label) {
            return Ok(number);
        }
        let number = self.names.len() as u32;
        self.names.insert(label.to_owned(), number);
        Ok(number)
    }

    fn append_sets(
        &mut self,
        table: &str,
        name: &str,
        first: usize,
        lists: &ArrayRef,
    ) -> Result<(), TableError> {
        let (values, edges) = list_parts(lists);
        let are_text = is_text(values.data_type());
        let values = cast_to(table, &values, if are_text { &DataType::Utf8 } else { &DataType::Int64 })?;
        for (at, edge) in edges.windows(2).enumerate() {
            let row = first + at;
            let range = if lists.is_null(at) { 0..0 } else { edge[0]..edge[1] };
            let mut labels = Vec::with_capacity(range.len());
            for value in range {
                if values.is_null(value) {
                    return Err(wrong(table, name, format!("holds a null in row {row}")));
                }
                labels.push(if are_text {
                    let label = values.as_string::<i32>().value(value);
                    self.label(table, name, row, label)?
                } else {
                    let label = values.as_primitive::<Int64Type>().value(value);
                    let expected =
                        || format!("holds {label} in row {row}, expected labels from 0 to {}", u32::MAX);
                    u32::try_from(label).map_err(|_| wrong(table, name, expected()))?
                });
            }
            labels.sort_unstable();
            labels.dedup();
            self.sets.push(labels);
        }
        Ok(())
    }

    fn append_vectors(&mut self, first: usize, vectors: &ArrayRef) -> Result<(), String> {
        let (values, edges) = list_parts(vectors);
        if let DataType::FixedSizeList(_, dim) = vectors.data_type() {
            self.dim.get_or_insert(*dim as usize);
        }
        for (row, edge) in edges.windows(2).enumerate() {
            let (length, row) = (edge[1] - edge[0], first + row);
            let dim = *self.dim.get_or_insert(length);
            if length != dim {
                return Err(format!("has {length} numbers in row {row}, expected {dim}"));
            }
        }
        let (Some(&start), Some(&end)) = (edges.first(), edges.last()) else { return Ok(()) };
        let values = values.slice(start, end - start);
        if values.null_count() > 0 {
            let at = (0..values.len()).find(|at| values.is_null(*at)).unwrap_or(0);
            let row = first + at / self.dim.unwrap_or(1).max(1);
            return Err(format!("holds a null in row {row}"));
        }
        match values.data_type() {
            DataType::Float16 => self
                .features
                .extend(values.as_primitive::<Float16Type>().values().iter().map(|value| value.to_f32())),
            DataType::Float64 => self
                .features
                .extend(values.as_primitive::<Float64Type>().values().iter().map(|value| *value as f32)),
            _ => self.features.extend_from_slice(values.as_primitive::<Float32Type>().values()),
        }
        Ok(())
    }
}

/// Converts a column to integers; nulls are kept.
fn integers(table: &str, name: &str, array: &ArrayRef) -> Result<Int64Array, TableError> {
    let nulls = array.logical_null_count();
    let array = cast_to(table, array, &DataType::Int64)?;
    if array.null_count() > nulls {
        return Err(wrong(table, name, "holds a number beyond 64 bits".into()));
    }
    Ok(array.as_primitive::<Int64Type>().clone())
}

/// Converts a column of floats to integers; NaN becomes null.
fn whole_numbers(table: &str, name: &str, first: usize, array: &ArrayRef) -> Result<Int64Array, TableError> {
    let array = cast_to(table, array, &DataType::Float64)?;
    let whole = |(row, value): (usize, Option<f64>)| match value.filter(|value| !value.is_nan()) {
        Some(value) if value.fract() == 0.0 && value.abs() <= f64::from(u32::MAX) => Ok(Some(value as i64)),
        Some(value) => {
            let row = first + row;
            let reason = format!(
                "holds {value} in row {row}, expected whole numbers, or NaN where there is none: name another by \
                 --label-column, or none by ''"
            );
            Err(wrong(table, name, reason))
        }
        None => Ok(None),
    };
    array.as_primitive::<Float64Type>().iter().enumerate().map(whole).collect()
}

fn cast_to(table: &str, array: &ArrayRef, kind: &DataType) -> Result<ArrayRef, TableError> {
    cast(array, kind).map_err(|source| TableError::Malformed { table: table.into(), source })
}

/// Converts the number in a file to the instance of a row.
pub(super) fn id_of(table: &str, row: usize, id: i64) -> Result<InstanceId, TableError> {
    let wrong = || TableError::Id { table: table.into(), row, id, reason: "out of range" };
    InstanceId::from_stored(id).ok_or_else(wrong)
}

/// Converts the number in a file to the class of a row, below `classes` and [`MOST_CLASSES`].
pub(super) fn label_of(
    table: &str,
    row: usize,
    label: Option<i64>,
    classes: usize,
) -> Result<Option<ClassId>, TableError> {
    let Some(label) = label else { return Ok(None) };
    let classes = classes.min(MOST_CLASSES);
    let class = ClassId::from_stored(label).filter(|class| class.is_none_or(|class| class.index() < classes));
    class.ok_or_else(|| TableError::Label { table: table.into(), row, label, classes })
}

/// Converts the number in a file to the step of a row.
pub(super) fn step_of(step: Option<i64>) -> Option<u64> {
    step.and_then(|step| u64::try_from(step).ok())
}

/// Checks that no id occurs twice, and that the ids of a bank ascend. `place` returns the file of a row, and
/// the row within it.
pub(super) fn check_ids(
    kind: Kind,
    ids: &[InstanceId],
    place: impl FnOnce(usize) -> (String, usize),
) -> Result<(), TableError> {
    if ids.is_sorted_by(|a, b| a < b) {
        return Ok(());
    }
    // Memory depends on the number of rows, not on the ids, which may be as large as 2^32.
    let mut order: Vec<usize> = (0..ids.len()).collect();
    order.sort_unstable_by_key(|&row| (ids[row], row));
    let again = order.windows(2).filter(|pair| ids[pair[0]] == ids[pair[1]]).map(|pair| pair[1]).min();
    let falls = (1..ids.len()).find(|&row| ids[row - 1] > ids[row]).filter(|_| kind == Kind::Bank);
    let (row, reason) = match (again, falls) {
        (Some(row), falls) if falls.is_none_or(|falls| row <= falls) => (row, "it occurs twice"),
        (_, Some(row)) => (row, "the ids of a bank ascend"),
        _ => return Ok(()),
    };
    let (id, (table, row)) = (ids[row].to_stored(), place(row));
    Err(TableError::Id { table, row, id, reason })
}
