//! The columns of a feature table from any program, and their values.

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float16Type, Float32Type, Float64Type, Int64Type, Schema};

use super::error::TableError;
use super::schema::Kind;
use crate::ids::{ClassId, InstanceId};

/// The names of columns in a table that another program wrote. What is not given has the name of the format:
/// `instance_id`, `feature`, `label`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ColumnNames {
    /// The column of the ids: integers, each once.
    pub id: Option<String>,
    /// The column of the vectors: lists of floats, all of one length.
    pub vector: Option<String>,
    /// The column of the classes: integers, null or -1 for none.
    pub label: Option<String>,
}

/// The columns of a table, as positions in its schema.
#[derive(Debug)]
pub(super) struct Found {
    names: [String; 4],
    id: usize,
    vector: usize,
    label: Option<usize>,
    step: Option<usize>,
}

impl Found {
    /// Finds the columns and checks their types.
    pub(super) fn of(table: &str, schema: &Schema, names: &ColumnNames) -> Result<Self, TableError> {
        let wrong = |column: &str, reason: String| TableError::Column {
            table: table.into(),
            column: column.into(),
            reason,
        };
        let of = |given: &Option<String>, usual: &str| given.as_deref().unwrap_or(usual).to_owned();
        let names = [
            of(&names.id, "instance_id"),
            of(&names.vector, "feature"),
            of(&names.label, "label"),
            "updated_step".to_owned(),
        ];
        let position = |name: &str| schema.fields().iter().position(|field| field.name() == name);
        let needed = |name: &str| {
            let others: Vec<_> = schema.fields().iter().map(|field| format!("`{}`", field.name())).collect();
            position(name)
                .ok_or_else(|| wrong(name, format!("is missing, the table has {}", others.join(", "))))
        };
        let [id_name, vector_name, label_name, step_name] = &names;
        let (id, vector) = (needed(id_name)?, needed(vector_name)?);
        let label = if label_name == "label" { position("label") } else { Some(needed(label_name)?) };
        let step = position(step_name);
        let holds = |at: usize| schema.field(at).data_type();
        let expect = |column: &str, at: usize, fits: bool, expected: &str| {
            let reason = || format!("holds {}, expected {expected}", holds(at));
            if fits { Ok(()) } else { Err(wrong(column, reason())) }
        };
        expect(id_name, id, holds(id).is_integer(), "integers")?;
        expect(vector_name, vector, is_vectors(holds(vector)), "lists of float16, float32 or float64")?;
        for (name, at) in [(label_name, label), (step_name, step)] {
            if let Some(at) = at {
                let fits = holds(at).is_integer() || *holds(at) == DataType::Null;
                expect(name, at, fits, "integers")?;
            }
        }
        Ok(Self { names, id, vector, label, step })
    }

    /// The positions in the schema, ascending.
    pub(super) fn positions(&self) -> Vec<usize> {
        let mut all: Vec<_> =
            [Some(self.id), Some(self.vector), self.label, self.step].into_iter().flatten().collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

fn is_vectors(kind: &DataType) -> bool {
    match kind {
        DataType::FixedSizeList(item, _) | DataType::List(item) | DataType::LargeList(item) => {
            item.data_type().is_floating()
        }
        _ => false,
    }
}

/// The rows of a table while they are read.
#[derive(Debug, Default)]
pub(super) struct Rows {
    pub columns: Columns,
    pub features: Vec<f32>,
    /// The length of a vector, once it is known.
    pub dim: Option<usize>,
}

impl Rows {
    /// Adds the rows of a batch with the columns of [`Found::positions`].
    pub(super) fn append(
        &mut self,
        table: &str,
        found: &Found,
        batch: &RecordBatch,
    ) -> Result<(), TableError> {
        let positions = found.positions();
        let column = |at: usize| {
            let index = positions.iter().position(|position| *position == at);
            batch.column(index.expect("the batch has the columns that were asked for"))
        };
        let [id_name, vector_name, label_name, step_name] = &found.names;
        let wrong = |name: &str, reason: String| TableError::Column {
            table: table.into(),
            column: name.into(),
            reason,
        };
        let integers = |name: &str, array: &ArrayRef, nulls: usize| {
            let array = cast(array, &DataType::Int64)
                .map_err(|source| TableError::Malformed { table: table.into(), source })?;
            if array.null_count() > nulls {
                return Err(wrong(name, "holds a number beyond 64 bits".into()));
            }
            Ok(array)
        };
        let first = self.columns.ids.len();
        let null_in =
            |array: &ArrayRef| (0..array.len()).find(|row| array.is_null(*row)).unwrap_or(0) + first;
        let ids = column(found.id);
        if ids.logical_null_count() > 0 {
            return Err(wrong(id_name, format!("is null in row {}", null_in(ids))));
        }
        let vectors = column(found.vector);
        if vectors.null_count() > 0 {
            return Err(wrong(vector_name, format!("is null in row {}", null_in(vectors))));
        }
        let nothing = Int64Array::new_null(batch.num_rows());
        let optional = |name: &str, at: Option<usize>| match at {
            Some(at) => integers(name, column(at), column(at).logical_null_count()),
            None => Ok(std::sync::Arc::new(nothing.clone()) as ArrayRef),
        };
        let (labels, steps) = (optional(label_name, found.label)?, optional(step_name, found.step)?);
        let ids = integers(id_name, ids, 0)?;
        let int64 = |array: &ArrayRef| array.as_primitive::<Int64Type>().clone();
        self.columns.append(table, &int64(&ids), &int64(&labels), &int64(&steps))?;
        self.append_vectors(first, vectors).map_err(|reason| wrong(vector_name, reason))
    }

    fn append_vectors(&mut self, first: usize, vectors: &ArrayRef) -> Result<(), String> {
        let (values, edges): (ArrayRef, Vec<usize>) = match vectors.data_type() {
            DataType::List(_) => {
                let list = vectors.as_list::<i32>();
                (list.values().clone(), list.value_offsets().iter().map(|&at| at as usize).collect())
            }
            DataType::LargeList(_) => {
                let list = vectors.as_list::<i64>();
                (list.values().clone(), list.value_offsets().iter().map(|&at| at as usize).collect())
            }
            _ => {
                let list = vectors.as_fixed_size_list();
                let dim = list.value_length() as usize;
                self.dim.get_or_insert(dim);
                (list.values().clone(), (0..=list.len()).map(|row| row * dim).collect())
            }
        };
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

/// The columns beside the vectors.
#[derive(Debug, Default)]
pub(super) struct Columns {
    pub ids: Vec<InstanceId>,
    pub labels: Vec<Option<ClassId>>,
    pub updated_step: Vec<Option<u64>>,
}

impl Columns {
    /// Adds the rows of another file.
    pub(super) fn extend(&mut self, other: Self) {
        self.ids.extend(other.ids);
        self.labels.extend(other.labels);
        self.updated_step.extend(other.updated_step);
    }

    /// Adds the rows of a batch.
    pub(super) fn append(
        &mut self,
        table: &str,
        ids: &Int64Array,
        labels: &Int64Array,
        steps: &Int64Array,
    ) -> Result<(), TableError> {
        let first = self.ids.len();
        for (offset, &id) in ids.values().iter().enumerate() {
            let wrong =
                || TableError::Id { table: table.into(), row: first + offset, id, reason: "out of range" };
            self.ids.push(InstanceId::from_stored(id).ok_or_else(wrong)?);
        }
        for (offset, label) in labels.iter().enumerate() {
            let class = label.map(|label| {
                let classes = usize::from(u16::MAX) + 1;
                let wrong = || TableError::Label { table: table.into(), row: first + offset, label, classes };
                ClassId::from_stored(label).ok_or_else(wrong)
            });
            self.labels.push(class.transpose()?.flatten());
        }
        self.updated_step.extend(steps.iter().map(|step| step.and_then(|step| u64::try_from(step).ok())));
        Ok(())
    }

    /// The number of classes that the labels need.
    pub(super) fn classes(&self) -> usize {
        self.labels.iter().flatten().map(|class| class.index() + 1).max().unwrap_or(0)
    }

    /// Checks what the format promises of ids and labels.
    pub(super) fn check(&self, table: &str, kind: Kind, classes: usize) -> Result<(), TableError> {
        check_ids(table, kind, &self.ids)?;
        let is_wrong = |label: &Option<ClassId>| label.is_some_and(|class| class.index() >= classes);
        match self.labels.iter().position(is_wrong) {
            Some(row) => {
                let label = ClassId::to_stored(self.labels[row]);
                Err(TableError::Label { table: table.into(), row, label, classes })
            }
            None => Ok(()),
        }
    }
}

/// Checks that no id occurs twice, and that the ids of a bank ascend.
pub(super) fn check_ids(table: &str, kind: Kind, ids: &[InstanceId]) -> Result<(), TableError> {
    let wrong = |row: usize, reason| {
        let id = ids[row].to_stored();
        Err(TableError::Id { table: table.into(), row, id, reason })
    };
    if ids.is_sorted_by(|a, b| a < b) {
        return Ok(());
    }
    // Memory for the rows, whatever the ids are: one may be as high as 2^32.
    let mut order: Vec<usize> = (0..ids.len()).collect();
    order.sort_unstable_by_key(|&row| (ids[row], row));
    let again = order.windows(2).filter(|pair| ids[pair[0]] == ids[pair[1]]).map(|pair| pair[1]).min();
    let falls = (1..ids.len()).find(|&row| ids[row - 1] > ids[row]).filter(|_| kind == Kind::Bank);
    match (again, falls) {
        (Some(row), falls) if falls.is_none_or(|falls| row <= falls) => wrong(row, "it occurs twice"),
        (_, Some(row)) => wrong(row, "the ids of a bank ascend"),
        _ => Ok(()),
    }
}
