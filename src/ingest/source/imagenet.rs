//! The official ILSVRC2012 archives.
//!
//! The training archive is a tar of one tar for each class; the validation archive is flat and has its labels
//! elsewhere: in the development kit, or in a csv of file name and WordNet id. Nothing is unpacked: a picture is
//! a range of the archive.

use std::collections::HashMap;

use rayon::prelude::*;

use super::archive::{Index, Member};
use super::collect::{Collector, Label, Place};
use super::names::{file_name, is_picture};
use super::tars::Tar;
use super::{devkit, tars, wrong};
use crate::ingest::IngestError;

/// The archive of class tars.
fn is_training(tar: &Tar) -> bool {
    let members = &tar.index.members;
    !members.is_empty() && members.iter().all(|member| member.path.ends_with(".tar"))
}

/// The flat archive of validation pictures.
fn is_validation(tar: &Tar) -> bool {
    // In a folder of their class they are an ImageFolder.
    tar.index.members.first().is_some_and(|member| member.path.starts_with("ILSVRC2012_val_"))
}

fn is_devkit(tar: &Tar) -> bool {
    tar.index.members.iter().any(|member| member.path.ends_with(devkit::GROUND_TRUTH))
}

/// Whether a tar is one of the official ones.
pub(super) fn is_archive(tar: &Tar) -> bool {
    is_training(tar) || is_validation(tar)
}

/// Adds the pictures of the archives that are there.
pub(super) fn collect(collector: &mut Collector<'_>, tars: Vec<Tar>) -> Result<(), IngestError> {
    let (mut kits, archives): (Vec<Tar>, Vec<Tar>) = tars.into_iter().partition(is_devkit);
    // Of a single archive the split may be called otherwise.
    let single = if let [_] = archives.as_slice() { collector.options.split.clone() } else { None };
    for mut tar in archives {
        if is_training(&tar) {
            let split = single.as_deref().unwrap_or("train");
            if collector.wants(split) {
                training(collector, &mut tar, split)?;
            }
        } else if is_validation(&tar) {
            let split = single.as_deref().unwrap_or("val");
            if collector.wants(split) {
                validation(collector, &mut tar, kits.pop(), split)?;
            }
        } else {
            let reason = "it is neither the training nor the validation archive of ILSVRC2012";
            return Err(wrong(&tar.location, reason));
        }
    }
    Ok(())
}

fn training(collector: &mut Collector<'_>, tar: &mut Tar, split: &str) -> Result<(), IngestError> {
    let classes = std::mem::take(&mut tar.index.members);
    let indexes: Vec<Index> =
        classes.par_iter().map(|class| tar.index_of(class)).collect::<Result<_, IngestError>>()?;
    let container = tar.keep(collector);
    for (class, index) in classes.iter().zip(indexes) {
        let name = file_name(&class.path).trim_end_matches(".tar");
        for (path, reason) in &index.others {
            tars::pass_over(collector, path, reason);
        }
        for Member { path, bytes, extent, .. } in index.members {
            if !is_picture(&path) {
                collector.passed_over += 1;
                continue;
            }
            let path = format!("{name}/{}", file_name(&path));
            collector.add(split, &path, Label::Name(name), Place { container, extent, bytes })?;
        }
    }
    Ok(())
}

fn validation(
    collector: &mut Collector<'_>,
    tar: &mut Tar,
    kit: Option<Tar>,
    split: &str,
) -> Result<(), IngestError> {
    let labels = labels(collector, tar, kit)?;
    let members = std::mem::take(&mut tar.index.members);
    let container = tar.keep(collector);
    for Member { path, bytes, extent, .. } in members {
        let name = file_name(&path);
        if !is_picture(name) {
            collector.passed_over += 1;
            continue;
        }
        let stem = name.split('.').next().unwrap_or(name);
        let class = labels.get(stem).ok_or_else(|| wrong(&tar.location, format!("{name} has no label")))?;
        let path = format!("{class}/{name}");
        collector.add(split, &path, Label::Name(class), Place { container, extent, bytes })?;
    }
    Ok(())
}

/// The class of each picture, by its name without ending.
fn labels(
    collector: &Collector<'_>,
    tar: &Tar,
    kit: Option<Tar>,
) -> Result<HashMap<String, String>, IngestError> {
    if let Some(file) = &collector.options.labels {
        return devkit::labels_from(file);
    }
    if let Some(kit) = kit {
        return devkit::labels_of_kit(&kit);
    }
    let beside =
        [devkit::ARCHIVE, devkit::CSV].into_iter().filter_map(|name| tar.location.with_file_name(name));
    for file in beside {
        if file.exists()? {
            return devkit::labels_from(&file);
        }
    }
    let reason = format!(
        "the validation pictures have no labels: put {} or {} beside the archive, or name one with --labels",
        devkit::ARCHIVE,
        devkit::CSV
    );
    Err(wrong(&tar.location, reason))
}
