//! The official ILSVRC2012 archives.
//!
//! The training archive is a tar with one tar for each class. The validation archive is flat; its labels are in the
//! development kit, or in a csv of file name and WordNet id. Nothing is unpacked: an image is a range of the
//! archive. The other archives of the download are skipped by name.

use rayon::prelude::*;

use super::super::archive::{Index, Member, read_nested};
use super::super::names::{file_name, splits_of_container};
use super::super::records::{ImageBytes, Records, Word, count};
use super::devkit;
use super::{Tar, push_others};
use crate::ingest::IngestError;
use crate::storage::Location;

/// Kind of an archive of the download.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Training,
    Validation,
    DevelopmentKit,
    /// An archive without images to train or evaluate on.
    PassedOver(&'static str),
}

/// Returns whether a member is the tar of a class, named by its WordNet id.
fn is_class(member: &Member) -> bool {
    file_name(&member.path).strip_suffix(".tar").is_some_and(devkit::is_wnid)
}

fn kind(tar: &Tar) -> Option<Kind> {
    let members = &tar.index.members;
    let all = |is: fn(&Member) -> bool| !members.is_empty() && members.iter().all(is);
    let first = members.first().map_or("", |member| file_name(&member.path));
    Some(match () {
        () if all(is_class) && tar.name.contains("_t3") => {
            Kind::PassedOver("the training images of task 3, which task 1 holds too")
        }
        () if all(is_class) => Kind::Training,
        // Images in a folder of their class are an ImageFolder instead.
        () if members.first().is_some_and(|member| member.path.starts_with("ILSVRC2012_val_")) => {
            Kind::Validation
        }
        () if first.starts_with("ILSVRC2012_test_") => Kind::PassedOver("test images, which have no labels"),
        () if members.iter().any(|member| member.path.ends_with(devkit::GROUND_TRUTH)) => {
            Kind::DevelopmentKit
        }
        () if all(|member| member.path.ends_with(".xml")) => Kind::PassedOver("bounding boxes"),
        () => return None,
    })
}

/// Returns whether a tar is one of the official archives of labelled images.
pub(super) fn is_archive(tar: &Tar) -> bool {
    matches!(kind(tar), Some(Kind::Training | Kind::Validation))
}

/// Adds the images of the archives; `others` are files beside them.
pub(super) fn collect(
    records: &mut Records<'_>,
    tars: Vec<Tar>,
    others: &[(String, Location)],
) -> Result<(), IngestError> {
    let (mut kits, mut training_archives) = (Vec::new(), Vec::new());
    let mut validation_archive = None;
    for tar in tars {
        match kind(&tar) {
            Some(Kind::Training) => {
                training_archives.push(tar.name.clone());
                if let [one, other] = training_archives.as_slice() {
                    return Err(records.wrong(format!(
                        "`{one}` and `{other}` are both archives of class tars: `--ignore GLOB` leaves one out"
                    )));
                }
                training(records, tar)?;
            }
            Some(Kind::Validation) => {
                validation_archive = Some(tar.location.clone());
                let split = split_if_unnamed(records, &tar, "val");
                tar.push_files(records, split);
            }
            Some(Kind::DevelopmentKit) => kits.push(tar),
            Some(Kind::PassedOver(what)) => count(&mut records.passed_over, what, || tar.name.clone()),
            None => {
                let reason =
                    "not an archive of ILSVRC2012's images, labels or boxes: `--ignore GLOB` leaves it out";
                return Err(IngestError::layout(&tar.location, reason));
            }
        }
    }
    let Some(validation_archive) = validation_archive else { return Ok(()) };
    if records.options.labels.is_some() || records.options.unlabelled {
        return Ok(());
    }
    const NOTE: &str = "labels of the validation images";
    if let Some(kit) = kits.pop() {
        let labels = devkit::labels_of_kit(&kit)?;
        devkit::give_labels(records, labels, NOTE, file_name(&kit.name));
        return Ok(());
    }
    let beside =
        [devkit::ARCHIVE, devkit::CSV].into_iter().filter_map(|name| validation_archive.with_file_name(name));
    let listed =
        others.iter().filter(|(name, _)| file_name(name) == devkit::CSV).map(|(_, file)| file.clone());
    for file in listed.chain(beside) {
        if file.exists()? {
            return devkit::give_labels_of(records, &file, NOTE, file.file_name());
        }
    }
    if records.options.split.as_deref() == Some("train") {
        return Ok(());
    }
    let reason = format!(
        "the validation images have no labels: put {} or {} beside the archive, name one with `--labels`, or take the \
         training archive alone with `--split train`",
        devkit::ARCHIVE,
        devkit::CSV
    );
    Err(IngestError::layout(&validation_archive, reason))
}

/// Returns the archive's split, if its name does not contain one.
fn split_if_unnamed(records: &mut Records<'_>, tar: &Tar, split: &str) -> Option<Word> {
    splits_of_container(file_name(&tar.name)).is_empty().then(|| records.word(split))
}

fn training(records: &mut Records<'_>, tar: Tar) -> Result<(), IngestError> {
    let read = |class| read_nested(&tar.file, class, &|_| false);
    let indexes: Vec<Index> = tar.index.members.par_iter().map(read).collect::<Result<_, IngestError>>()?;
    let split = split_if_unnamed(records, &tar, "train");
    let origin = records.add_origin(&tar.name);
    push_others(records, origin, &tar.index);
    let container = records.containers.add_file(tar.file);
    for (class, index) in tar.index.members.iter().zip(indexes) {
        let name = file_name(&class.path).trim_end_matches(".tar");
        push_others(records, origin, &index);
        for Member { path, bytes, extent, .. } in index.members {
            let path = format!("{name}/{}", file_name(&path));
            records.push_file(origin, path, split, ImageBytes { container, extent, bytes });
        }
    }
    Ok(())
}
