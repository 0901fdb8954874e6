//! Reading a feature table whole: parse, check, then use.

use bytes::Bytes;

use super::columns::{ColumnNames, Found, Rows, check_ids};
use super::decode::Contents;
use super::meta::NamedMeta;
use super::rows::{check_vectors, is_unit_length};
use super::{FeatureTable, TableError};
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
        Self::join(files.iter().map(|file| Ok((file.to_string(), Self::read(file)?))))
    }

    /// Makes one table of those of several files, given with their names.
    ///
    /// # Errors
    /// If the files are not parts of one table.
    ///
    /// # Panics
    /// If there is no file.
    pub fn join<E: From<TableError>>(
        files: impl IntoIterator<Item = Result<(String, Self), E>>,
    ) -> Result<Self, E> {
        let mut files = files.into_iter();
        let (first, mut whole) = files.next().expect("a table has a file")?;
        let mut count = 1;
        for file in files {
            let (name, part) = file?;
            count += 1;
            if part.meta != whole.meta {
                let reason = format!("it is not part of the same table as {first}");
                return Err(TableError::NotATable { table: name, reason }.into());
            }
            whole.ids.extend(part.ids);
            whole.labels.extend(part.labels);
            whole.updated_step.extend(part.updated_step);
            whole.features.extend(part.features);
        }
        if count > 1 {
            check_ids(&first, whole.meta.kind, &whole.ids)?;
        }
        Ok(whole)
    }

    /// Reads a table and checks everything that the format promises. Tables of other programs are taken too:
    /// an Arrow IPC file or stream or a Parquet file that holds ids and vectors without nulls.
    ///
    /// # Errors
    /// The first thing that is wrong, with the row or column that it is about.
    pub fn read(location: &Location) -> Result<Self, TableError> {
        Self::read_with(location, &ColumnNames::default())
    }

    /// Likewise, with other names of columns in tables that this program did not write.
    ///
    /// # Errors
    /// As [`FeatureTable::read`].
    pub fn read_with(location: &Location, names: &ColumnNames) -> Result<Self, TableError> {
        let table = location.to_string();
        if location.local_path().is_some_and(std::path::Path::is_dir) {
            let reason = "it is a folder, expected a file such as the `bank.arrow` of a checkpoint".into();
            return Err(TableError::NotATable { table, reason });
        }
        match location.read() {
            Err(error) if error.is_not_found() => Err(TableError::NotThere { table }),
            other => Self::from_bytes(&table, other?, names),
        }
    }

    /// Reads a table from the bytes of its file, which errors call `table`.
    ///
    /// # Errors
    /// As [`FeatureTable::read`].
    pub fn from_bytes(table: &str, bytes: Bytes, names: &ColumnNames) -> Result<Self, TableError> {
        let malformed = |source| TableError::Malformed { table: table.into(), source };
        let not_a_table = |reason| TableError::NotATable { table: table.into(), reason };
        let contents = Contents::of(bytes).map_err(malformed)?;
        let named = NamedMeta::of(&contents.schema).map_err(not_a_table)?;
        let usual = ColumnNames::default();
        let found = Found::of(table, &contents.schema, if named.is_ours { &usual } else { names })?;
        let mut rows = Rows::default();
        contents
            .read(&found.positions(), |batch| rows.append(table, &found, batch).map_err(Wrong::Table))
            .map_err(|error| match error {
                Wrong::Table(error) => error,
                Wrong::Arrow(source) => malformed(source),
            })?;
        let dim = rows.dim.or(named.dim).filter(|dim| *dim > 0);
        let dim = dim.ok_or_else(|| not_a_table("its vectors have no length".into()))?;
        if let Some(said) = named.dim.filter(|said| *said != dim) {
            let reason = format!("its vectors have {dim} numbers, its metadata says {said}");
            return Err(not_a_table(reason));
        }
        let Rows { columns, features, .. } = rows;
        let meta = named.complete(dim, || is_unit_length(dim, &features), columns.classes());
        columns.check(table, meta.kind, meta.classes.len())?;
        check_vectors(table, &meta, 0, &features)?;
        Ok(Self {
            meta,
            ids: columns.ids,
            labels: columns.labels,
            updated_step: columns.updated_step,
            features,
        })
    }
}

/// What ends the reading of batches.
enum Wrong {
    Table(TableError),
    Arrow(arrow::error::ArrowError),
}

impl From<arrow::error::ArrowError> for Wrong {
    fn from(error: arrow::error::ArrowError) -> Self {
        Self::Arrow(error)
    }
}
