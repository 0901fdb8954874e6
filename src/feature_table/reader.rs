//! Reading a feature table: parse, check, then use.

use std::io::Cursor;

use arrow::array::{AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Float16Type, Float32Type, Int64Type, Schema};
use arrow::ipc::reader::FileReader;

use super::rows::check_vectors;
use super::schema::fields;
use super::{FeatureTable, Kind, TableError, TableMeta};
use crate::ids::{ClassId, InstanceId};
use crate::storage::Location;

impl FeatureTable {
    /// Reads a table that lies in several files, each a table of its own: a bank of several owners.
    ///
    /// # Errors
    /// As [`FeatureTable::read`]; also if the files are not parts of one table.
    ///
    /// # Panics
    /// If there is no file.
    pub fn read_all(files: &[Location]) -> Result<Self, TableError> {
        let mut whole = Self::read(&files[0])?;
        for file in &files[1..] {
            let part = Self::read(file)?;
            if part.meta != whole.meta {
                let reason = format!("it is not of one table with {}", files[0]);
                return Err(TableError::NotATable { table: file.to_string(), reason });
            }
            whole.ids.extend(part.ids);
            whole.labels.extend(part.labels);
            whole.updated_step.extend(part.updated_step);
            whole.features.extend(part.features);
        }
        if files.len() > 1 {
            check_ids(&files[0].to_string(), whole.meta.kind, &whole.ids)?;
        }
        Ok(whole)
    }

    /// Reads a table and checks everything that the format promises.
    ///
    /// # Errors
    /// The first thing that is wrong, with the row that it is about.
    pub fn read(location: &Location) -> Result<Self, TableError> {
        let table = location.to_string();
        let malformed = |source| TableError::Malformed { table: table.clone(), source };
        let bytes = location.read()?;
        let reader = FileReader::try_new(Cursor::new(bytes), None).map_err(malformed)?;
        let schema = reader.schema();
        let not_a_table = |reason| TableError::NotATable { table: table.clone(), reason };
        let meta = TableMeta::from_metadata(&schema).map_err(not_a_table)?;
        value_type(&schema, meta.dim).map_err(not_a_table)?;
        let (mut columns, mut features) = (Columns::default(), Vec::new());
        for batch in reader {
            let batch = batch.map_err(malformed)?;
            let int64 = |at: usize| batch.column(at).as_primitive::<Int64Type>();
            columns.append(&table, int64(0), int64(2), int64(3))?;
            append_features(&mut features, &batch, meta.dim);
        }
        columns.check(&table, meta.kind)?;
        check_vectors(&table, &meta, 0, &features)?;
        let Columns { ids, labels, updated_step } = columns;
        Ok(Self { meta, ids, labels, updated_step, features })
    }
}

fn append_features(features: &mut Vec<f32>, batch: &RecordBatch, dim: usize) {
    let values = batch.column(1).as_fixed_size_list();
    let from = values.value_offset_at(0);
    let count = batch.num_rows() * dim;
    if let Some(values) = values.values().as_primitive_opt::<Float32Type>() {
        features.extend_from_slice(&values.values()[from..from + count]);
    } else {
        let values = values.values().as_primitive::<Float16Type>();
        features.extend(values.values()[from..from + count].iter().map(|value| value.to_f32()));
    }
}

/// The type of the numbers, where the columns are those of a table.
pub(super) fn value_type(schema: &Schema, dim: usize) -> Result<DataType, String> {
    let fits = |value: &DataType| dim > 0 && *schema.fields() == fields(dim, value.clone());
    let types = [DataType::Float32, DataType::Float16];
    types.into_iter().find(fits).ok_or_else(|| format!("its columns are {:?}", schema.fields()))
}

/// The columns beside the vectors.
#[derive(Debug, Default)]
pub(super) struct Columns {
    pub(super) ids: Vec<InstanceId>,
    pub(super) labels: Vec<Option<ClassId>>,
    pub(super) updated_step: Vec<Option<u64>>,
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
                let wrong = || TableError::Label { table: table.into(), row: first + offset, label };
                ClassId::from_stored(label).ok_or_else(wrong)
            });
            self.labels.push(class.transpose()?.flatten());
        }
        self.updated_step.extend(steps.iter().map(|step| step.and_then(|step| u64::try_from(step).ok())));
        Ok(())
    }

    /// Checks what the format promises of ids.
    pub(super) fn check(&self, table: &str, kind: Kind) -> Result<(), TableError> {
        check_ids(table, kind, &self.ids)
    }
}

fn check_ids(table: &str, kind: Kind, ids: &[InstanceId]) -> Result<(), TableError> {
    let mut seen = vec![false; ids.iter().map(|id| id.row() + 1).max().unwrap_or(0)];
    for (row, id) in ids.iter().enumerate() {
        let wrong = |reason| Err(TableError::Id { table: table.into(), row, id: id.to_stored(), reason });
        if std::mem::replace(&mut seen[id.row()], true) {
            return wrong("it occurs twice");
        }
        if kind == Kind::Bank && row > 0 && ids[row - 1] > *id {
            return wrong("the ids of a bank ascend");
        }
    }
    Ok(())
}
