//! Reading a feature table: parse, check, then use.

use std::io::Cursor;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float16Type, Float32Type, Int64Type};
use arrow::ipc::reader::FileReader;

use super::schema::fields;
use super::{FeatureTable, Kind, TableError, TableMeta, UNIT_TOLERANCE};
use crate::ids::{ClassId, InstanceId};
use crate::storage::Location;

impl FeatureTable {
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
        let fits = |value: &DataType| *schema.fields() == fields(meta.dim, value.clone());
        if meta.dim == 0 || !(fits(&DataType::Float32) || fits(&DataType::Float16)) {
            return Err(not_a_table(format!("its columns are {:?}", schema.fields())));
        }
        let mut read = Self {
            meta,
            ids: Vec::new(),
            labels: Vec::new(),
            updated_step: Vec::new(),
            features: Vec::new(),
        };
        for batch in reader {
            read.append(&table, &batch.map_err(malformed)?)?;
        }
        read.check(&table)?;
        Ok(read)
    }

    fn append(&mut self, table: &str, batch: &RecordBatch) -> Result<(), TableError> {
        let ids = batch.column(0).as_primitive::<Int64Type>();
        let labels = batch.column(2).as_primitive::<Int64Type>();
        let steps = batch.column(3).as_primitive::<Int64Type>();
        let first = self.len();
        for (offset, &id) in ids.values().iter().enumerate() {
            let wrong =
                TableError::Id { table: table.into(), row: first + offset, id, reason: "out of range" };
            self.ids.push(InstanceId::from_stored(id).ok_or(wrong)?);
        }
        for (offset, label) in labels.iter().enumerate() {
            let class = label.map(|label| {
                let wrong = TableError::Label { table: table.into(), row: first + offset, label };
                ClassId::from_stored(label).ok_or(wrong)
            });
            self.labels.push(class.transpose()?.flatten());
        }
        self.updated_step.extend(steps.iter().map(|step| step.and_then(|step| u64::try_from(step).ok())));
        let values = batch.column(1).as_fixed_size_list();
        let from = values.value_offset_at(0);
        let count = batch.num_rows() * self.meta.dim;
        if let Some(values) = values.values().as_primitive_opt::<Float32Type>() {
            self.features.extend_from_slice(&values.values()[from..from + count]);
        } else {
            let values = values.values().as_primitive::<Float16Type>();
            self.features.extend(values.values()[from..from + count].iter().map(|value| value.to_f32()));
        }
        Ok(())
    }

    /// Checks the invariants of the format.
    fn check(&self, table: &str) -> Result<(), TableError> {
        let mut seen = vec![false; self.ids.iter().map(|id| id.row() + 1).max().unwrap_or(0)];
        for (row, id) in self.ids.iter().enumerate() {
            let wrong = |reason| Err(TableError::Id { table: table.into(), row, id: id.to_stored(), reason });
            if std::mem::replace(&mut seen[id.row()], true) {
                return wrong("it occurs twice");
            }
            if self.meta.kind == Kind::Bank && row > 0 && self.ids[row - 1] > *id {
                return wrong("the ids of a bank ascend");
            }
        }
        for (row, feature) in self.features.chunks_exact(self.meta.dim).enumerate() {
            let square: f64 = feature.iter().map(|&value| f64::from(value).powi(2)).sum();
            if !square.is_finite() {
                return Err(TableError::NotFinite { table: table.into(), row });
            }
            let length = square.sqrt();
            if self.meta.unit_length && (length - 1.0).abs() > UNIT_TOLERANCE {
                return Err(TableError::NotUnit { table: table.into(), row, length });
            }
        }
        Ok(())
    }
}
