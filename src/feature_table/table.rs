//! Feature tables in memory: reading, checking, writing.

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;
use serde::Serialize;

use super::TableError;
use super::columns::check_ids;
use super::foreign::of_bytes;
use super::rows::{PendingVectors, Table, normalise, split};
use super::schema::{Kind, TableMeta};
use super::writer::{RowColumns, TableWriter};
use crate::ids::{ClassId, InstanceId};
use crate::storage::{Location, Published};

/// Feature table in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct FeatureTable {
    /// Metadata of the features.
    pub meta: TableMeta,
    /// `[rows]`: instance of each row.
    pub ids: Vec<InstanceId>,
    /// `[rows]`: class of each row, if it has one.
    pub labels: Vec<Option<ClassId>>,
    /// `[rows]`: in a bank, the training step that last wrote the row.
    pub updated_step: Vec<Option<u64>>,
    /// `[rows * dim]`: vectors, row after row.
    pub features: Vec<f32>,
}

/// Summary of a table, as `inspect` prints it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TableSummary {
    /// Always `feature_table`.
    pub kind: &'static str,
    /// Metadata of the features.
    pub table: TableMeta,
    /// Number of rows.
    pub rows: usize,
    /// Number of rows with a label.
    pub labelled: usize,
    /// Number of rows that no step has written yet, in a bank.
    pub never_updated: Option<usize>,
    /// Mean age of the other rows in steps, in a bank.
    pub mean_age_steps: Option<f64>,
}

impl FeatureTable {
    /// Returns the number of rows.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Returns whether the table has no rows.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Returns the vector of a row.
    pub fn feature(&self, row: usize) -> &[f32] {
        &self.features[row * self.meta.dim..][..self.meta.dim]
    }

    /// Returns a summary of the table.
    pub fn summary(&self) -> TableSummary {
        let updated: Vec<u64> = self.updated_step.iter().filter_map(|&step| step).collect();
        let is_bank = self.meta.kind == Kind::Bank;
        let age = |step: &u64| self.meta.step.saturating_sub(step + 1) as f64;
        let mean = updated.iter().map(age).sum::<f64>() / updated.len().max(1) as f64;
        TableSummary {
            kind: "feature_table",
            rows: self.len(),
            labelled: self.labels.iter().flatten().count(),
            never_updated: is_bank.then(|| self.len() - updated.len()),
            mean_age_steps: (is_bank && !updated.is_empty()).then_some(mean),
            table: self.meta.clone(),
        }
    }

    /// Returns the table with rows of unit length: itself if its rows have that, else a normalised copy.
    pub fn at_unit_length(&self) -> Cow<'_, Self> {
        if self.meta.unit_length {
            return Cow::Borrowed(self);
        }
        let mut copy = self.clone();
        normalise(&mut copy.features, self.meta.dim);
        copy.meta.unit_length = true;
        Cow::Owned(copy)
    }

    /// Checks that vectors are finite, and have unit length if the metadata says so.
    ///
    /// # Errors
    /// If a row is invalid, with the first one.
    pub fn check(&self) -> Result<(), TableError> {
        self.meta.check(0, &self.features)
    }

    /// Concatenates the tables of several files, given with their names.
    ///
    /// # Errors
    /// If the files are not parts of one table.
    ///
    /// # Panics
    /// If there are no files.
    pub fn join<E: From<TableError>>(
        files: impl IntoIterator<Item = Result<(String, Self), E>>,
    ) -> Result<Self, E> {
        let mut files = files.into_iter();
        let (first, mut whole) = files.next().expect("a table has a file")?;
        // Each file with its first row.
        let mut parts = vec![(first, 0)];
        for file in files {
            let (name, part) = file?;
            if part.meta != whole.meta {
                let reason = format!("it is not part of the same table as {}", parts[0].0);
                return Err(TableError::NotATable { table: name, reason }.into());
            }
            parts.push((name, whole.len()));
            whole.ids.extend(part.ids);
            whole.labels.extend(part.labels);
            whole.updated_step.extend(part.updated_step);
            whole.features.extend(part.features);
        }
        if parts.len() > 1 {
            check_ids(whole.meta.kind, &whole.ids, |row| {
                let (name, first_row) = &parts[parts.partition_point(|(_, first)| *first <= row) - 1];
                (name.clone(), row - first_row)
            })?;
        }
        Ok(whole)
    }

    /// Reads a table and checks it against the format. Accepts tables of other programs too: an Arrow IPC
    /// file or stream or a Parquet file with the format's ids and vectors, without nulls.
    ///
    /// # Errors
    /// If the table is invalid, with the first faulty row or column.
    pub fn read(location: &Location) -> Result<Self, TableError> {
        Ok(Self::read_foreign(location, None)?.0)
    }

    /// Reads a table from the bytes of its file; `table` is its name in errors.
    ///
    /// # Errors
    /// As [`FeatureTable::read`].
    pub fn from_bytes(table: &str, bytes: Bytes) -> Result<Self, TableError> {
        Ok(of_bytes(table, bytes, None)?.0)
    }

    /// Publishes the table atomically.
    ///
    /// # Errors
    /// If the store fails.
    ///
    /// # Panics
    /// If the columns differ in length.
    pub fn write(&self, location: &Location) -> Result<Published, TableError> {
        let Self { meta, ids, labels, updated_step, features } = self;
        assert_eq!(features.len(), self.len() * meta.dim, "a vector for each row");
        let columns = RowColumns { ids, labels, updated_steps: updated_step };
        TableWriter::write(location, meta, columns, |rows| {
            Ok(features[rows.start * meta.dim..rows.end * meta.dim].to_vec())
        })
    }
}

impl Table for FeatureTable {
    fn meta(&self) -> &TableMeta {
        &self.meta
    }

    fn rows(&self) -> usize {
        self.ids.len()
    }

    fn id(&self, row: usize) -> InstanceId {
        self.ids[row]
    }

    fn label(&self, row: usize) -> Option<ClassId> {
        self.labels[row]
    }

    fn updated_steps(&self, rows: Range<usize>) -> Result<Vec<Option<u64>>, TableError> {
        Ok(self.updated_step[rows].to_vec())
    }

    fn ranges(&self, longest: usize) -> Vec<Range<usize>> {
        split(0..self.len(), longest).collect()
    }

    fn start_read(&self, rows: Range<usize>) -> PendingVectors<'_> {
        let dim = self.meta.dim;
        let features = &self.features[rows.start * dim..rows.end * dim];
        PendingVectors::memory(features, dim, rows.start)
    }
}
