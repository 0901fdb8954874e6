//! Interpretation of layouts, with one file for each supported format.
//!
//! A format lists records with its evidence of each; [`super::arrange`] decides splits, classes and labels over all
//! records together. [`collect_tars`] recognises the kind of a tar by its members.
//! [`choose_column`] selects columns of tables and lists.

mod cifar;
pub(super) mod devkit;
pub(super) mod folder;
mod imagenet;
pub(super) mod list;
pub(super) mod parquet;
mod webdataset;

use std::sync::Arc;

use bytes::Bytes;
use rayon::prelude::*;

#[cfg(feature = "fuzzing")]
pub(crate) use devkit::read_synsets;

use super::SourceFormat;
use super::archive::{Index, Member, SourceFile, Spool, read_index, unpack};
use super::discover::FILES_AT_ONCE;
use super::names::{examples, first_of, is_among, is_tar};
use super::records::{Container, ImageBytes, Records, Word, shown};
use crate::ingest::{IngestError, work_through};
use crate::storage::Location;

/// Maximum size in bytes of a member that contains text rather than pixels.
const MOST_TEXT_BYTES: u64 = 16 << 20;

/// Lists the tars and adds their images; `others` are files beside them.
pub(super) fn collect_tars(
    records: &mut Records<'_>,
    containers: &[Container],
    others: &[(String, Location)],
) -> Result<SourceFormat, IngestError> {
    let packed: Vec<_> = containers.iter().filter(|container| container.compression.is_some()).collect();
    let spool = if packed.is_empty() { None } else { Some(Spool::new()?) };
    if let Some(spool) = &spool {
        let sizes = work_through(packed.len(), FILES_AT_ONCE, |number| packed[number].location.size())?;
        spool.check_space(sizes.iter().sum())?;
    }
    let options = records.options;
    let column = options.label_column.as_deref();
    let open = |container| Tar::open(container, spool.as_ref(), column);
    let tars: Vec<Tar> = containers.par_iter().map(open).collect::<Result<_, IngestError>>()?;
    let wants = |format| options.format == format || options.format == SourceFormat::Auto;
    if wants(SourceFormat::Cifar) && tars.iter().all(cifar::is_archive) {
        cifar::collect(records, &tars)?;
        return Ok(SourceFormat::Cifar);
    }
    if let Some(tar) = tars.iter().find(|tar| cifar::is_pickled(tar)) {
        let reason = "CIFAR in Python's pickle format; download the binary version (cifar-10-binary.tar.gz)";
        return Err(IngestError::layout(&tar.location, reason));
    }
    if wants(SourceFormat::Imagenet) && tars.iter().any(imagenet::is_archive) {
        imagenet::collect(records, tars, others)?;
        return Ok(SourceFormat::Imagenet);
    }
    let is_webdataset = options.format == SourceFormat::Webdataset;
    if !wants(SourceFormat::Tar) && !is_webdataset {
        let reason =
            format!("`--format {}` was asked for, but it holds none of its files", options.format.name());
        return Err(records.wrong(reason));
    }
    if is_webdataset || tars.iter().any(|tar| webdataset::has_samples(tar, options)) {
        webdataset::collect(records, tars)?;
        return Ok(SourceFormat::Tar);
    }
    if let (Some(column), None) = (&options.label_column, &options.labels) {
        let reason = format!("`--label-column {column}` has no effect: no image has a json member beside it");
        return Err(records.wrong(reason));
    }
    let nested = tars.iter().find_map(|tar| {
        let member = tar.index.members.iter().find(|member| is_tar(&member.path))?;
        Some(shown(&tar.name, &member.path))
    });
    tars.into_iter().for_each(|tar| tar.push_files(records, None));
    if let (true, Some(tar)) = (records.list.is_empty(), nested) {
        let reason = format!("it holds no image, but tars, such as `{tar}`: unpack it and ingest the folder");
        return Err(records.wrong(reason));
    }
    Ok(SourceFormat::Tar)
}

/// A listed tar.
#[derive(Debug)]
struct Tar {
    location: Location,
    /// Name below the source.
    name: String,
    /// File with the tar's bytes: a copy, if the tar is compressed.
    file: SourceFile,
    index: Index,
}

impl Tar {
    /// Lists a tar, and keeps of its json members only fields that may be labels, including `label_column`. A
    /// compressed tar needs the spool.
    fn open(
        container: &Container,
        spool: Option<&Arc<Spool>>,
        label_column: Option<&str>,
    ) -> Result<Self, IngestError> {
        let mut file = SourceFile::open(&container.location)?;
        if let Some(compression) = container.compression {
            file = unpack(&file, compression, spool.expect("made where a tar is compressed"))?;
        }
        let mut index = read_index(&file, &webdataset::is_label)?;
        index.members.iter_mut().for_each(|member| webdataset::keep_labels(member, label_column));
        Ok(Self { location: container.location.clone(), name: container.name.clone(), file, index })
    }

    /// Reads a small member.
    fn read(&self, member: &Member) -> Result<Bytes, IngestError> {
        if member.bytes > MOST_TEXT_BYTES {
            return Err(IngestError::layout(
                &self.location,
                format!("its member `{}` is too long", member.path),
            ));
        }
        Ok(self.file.read(&member.extent, member.bytes)?)
    }

    /// Adds the tar's images, with their folders as classes; `split` is that of the whole archive, if known.
    fn push_files(self, records: &mut Records<'_>, split: Option<Word>) {
        let origin = records.add_origin(&self.name);
        push_others(records, origin, &self.index);
        let container = records.containers.add_file(self.file);
        for Member { path, bytes, extent, .. } in self.index.members {
            records.push_file(origin, path, split, ImageBytes { container, extent, bytes });
        }
    }
}

/// Adds the entries of a tar that cannot be taken.
fn push_others(records: &mut Records<'_>, origin: u32, index: &Index) {
    for path in &index.replaced {
        records.pass_over(origin, "replaced by a later member of the same name", path);
    }
    index.faults.iter().for_each(|(path, fault)| records.push_fault(origin, path, *fault));
}

/// Names of the column that contains the label.
const LABEL_NAMES: [&str; 12] = [
    "label",
    "labels",
    "fine_label",
    "class",
    "cls",
    "wnid",
    "synset",
    "target",
    "category",
    "label_name",
    "class_name",
    "class_id",
];
/// Name of the column that contains the split.
const SPLIT_NAME: &str = "split";

/// Names of columns that may also contain the split, but are not read.
const OTHER_SPLIT_NAMES: [&str; 6] = ["splits", "set", "subset", "partition", "data_split", "phase"];

/// Warns of a column that may contain the split and is not read; also of `split` itself, unless `reads_split` is set.
fn unread_split(names: &[&str], reads_split: bool) -> Option<String> {
    let has_split = names.iter().any(|name| name.eq_ignore_ascii_case(SPLIT_NAME));
    if has_split && reads_split {
        return None;
    }
    let is_one = |name: &&&str| is_among(name, &OTHER_SPLIT_NAMES) || name.eq_ignore_ascii_case(SPLIT_NAME);
    let found = names.iter().find(is_one)?;
    let instead = if reads_split {
        "a column `split` is"
    } else {
        "folders, names of containers and `--splits` say what is which split"
    };
    Some(format!("the column `{found}` is not read as the split; {instead}"))
}

/// Returns the requested column, or the only one with a known name, in any case; `None` if there is none.
///
/// # Errors
/// The reason, if the requested column does not exist, or several have known names.
fn choose_column(
    names: &[&str],
    option: &str,
    asked: Option<&str>,
    known: &[&str],
) -> Result<Option<usize>, String> {
    if let Some(asked) = asked {
        let found = names.iter().position(|name| *name == asked);
        return found.map(Some).ok_or_else(|| {
            let all = first_of(names, names.len());
            format!("`{option} {asked}`: the source lacks this column; its columns are {all}")
        });
    }
    let found: Vec<usize> = (0..names.len()).filter(|&at| is_among(names[at], known)).collect();
    match found.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(*one)),
        several => {
            let several: Vec<&str> = several.iter().map(|&at| names[at]).collect();
            Err(format!("several columns could be meant, {}: `{option}` names one", examples(&several)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_that_may_be_the_split_is_warned_of() {
        assert_eq!(unread_split(&["path", "split", "set"], true), None);
        assert!(unread_split(&["path", "Subset"], true).expect("unread").contains("a column `split` is"));
        assert!(unread_split(&["path", "split"], false).expect("unread").contains("`--splits`"));
        assert_eq!(unread_split(&["path", "label"], false), None);
    }

    #[test]
    fn one_known_name_is_meant_and_several_are_refused() {
        let choose = |names: &[&str], asked| choose_column(names, "--label-column", asked, &LABEL_NAMES);
        assert_eq!(choose(&["image", "Label"], None), Ok(Some(1)));
        assert_eq!(choose(&["image"], None), Ok(None));
        assert_eq!(choose(&["label", "class"], Some("class")), Ok(Some(1)));
        assert!(
            choose(&["label", "class"], None)
                .expect_err("two")
                .contains("`label`, `class`: `--label-column` names one")
        );
        assert!(choose(&["a", "b"], Some("c")).expect_err("none").contains("its columns are `a`, `b`"));
    }
}
