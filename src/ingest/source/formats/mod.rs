//! What a layout means: one file for each form in which people hold images.
//!
//! A form lists records and says what it knows of each; splits, classes and labels are decided over all records
//! together by [`super::arrange`]. What a tar is, its members decide: [`collect_tars`].

mod cifar;
mod columns;
pub(super) mod devkit;
pub(super) mod folder;
mod imagenet;
pub(super) mod list;
mod mat;
pub(super) mod parquet;
mod tar;
mod webdataset;

use rayon::prelude::*;

use self::tar::Tar;
use super::SourceFormat;
use super::archive::{Member, Spool};
use super::discover::FILES_AT_ONCE;
use super::names::{is_image, is_tar};
use super::records::{Container, Evidence, ImageBytes, Naming, Record, Records, shown};
use crate::ingest::{IngestError, work_through};
use crate::storage::Location;

#[cfg(feature = "fuzzing")]
pub(crate) use mat::read_synsets;

/// Lists the tars and adds their images; `others` are files beside them.
pub(super) fn collect_tars(
    records: &mut Records<'_>,
    containers: &[Container],
    others: &[(String, Location)],
) -> Result<SourceFormat, IngestError> {
    let spool = Spool::new();
    let packed: Vec<_> = containers.iter().filter(|container| container.compression.is_some()).collect();
    let sizes = work_through(packed.len(), FILES_AT_ONCE, |number| packed[number].location.size())?;
    spool.check_space(sizes.iter().sum())?;
    let options = records.options;
    let column = options.label_column.as_deref();
    let open = |container| Tar::open(container, &spool, column);
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
    let mut nested = None;
    for tar in tars {
        let origin = records.add_origin(&tar.name);
        tar.push_skipped(records, origin);
        let container = records.containers.add_file(tar.file);
        for Member { path, bytes, extent, .. } in tar.index.members {
            if is_image(&path) {
                let place = ImageBytes { container, extent, bytes };
                let path = path.into_boxed_str();
                records.push(Record {
                    origin,
                    path,
                    evidence: Evidence::Folders,
                    split: None,
                    place,
                    fault: None,
                });
            } else {
                let path = shown(&tar.name, &path);
                if nested.is_none() && is_tar(&path) {
                    nested = Some(path.clone());
                }
                records.pass_over("not an image by its name", &path);
            }
        }
    }
    if let (true, Some(tar)) = (records.list().is_empty(), nested) {
        let reason = format!("it holds no image, but tars, such as `{tar}`: unpack it and ingest the folder");
        return Err(records.wrong(reason));
    }
    records.naming = Naming::BelowSplit;
    Ok(SourceFormat::Tar)
}
