//! Weights as torchvision loads them.

use std::collections::HashMap;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value};

use crate::checkpoint::{Checkpoint, CheckpointError, MODEL};
use crate::commands::CommandError;
use crate::storage::{Location, PublishMode};

/// Publishes a checkpoint's weights as one safetensors file, and returns the number of tensors.
///
/// Without the projection, the file holds the backbone alone: a torchvision model whose last layer is
/// `torch.nn.Identity()` loads it.
///
/// # Errors
/// If the checkpoint is damaged, or the store fails.
pub fn export_torchvision(
    folder: &Location,
    output: &Location,
    with_projection: bool,
) -> Result<usize, CommandError> {
    let checkpoint = Checkpoint::open(folder)?;
    let arch = checkpoint.state()?.encoder["arch"].as_str().unwrap_or_default().to_owned();
    let projection = if arch.starts_with("resnet") { "fc." } else { "classifier.6." };
    let kept = |name: &str| (with_projection || !name.starts_with(projection)).then(|| name.to_owned());
    let (tensors, file) = weights(&checkpoint, &arch, &kept, false)?;
    output.publish(file, PublishMode::Overwrite)?;
    Ok(tensors)
}

/// A checkpoint's tensors under other names, without those that get none: how many, and a safetensors file.
///
/// `counts` adds the number of batches that each batch norm has seen, 0, for libraries that ask for it.
///
/// # Errors
/// If the checkpoint is damaged, or the store fails.
pub(super) fn weights(
    checkpoint: &Checkpoint,
    arch: &str,
    renamed: &dyn Fn(&str) -> Option<String>,
    counts: bool,
) -> Result<(usize, Vec<u8>), CommandError> {
    let bytes = checkpoint.read(MODEL)?;
    let damaged = || CheckpointError::Damaged { file: checkpoint.folder().join(MODEL).to_string() };
    let tensors = SafeTensors::deserialize(&bytes).map_err(|_| damaged())?;
    let mut kept: Vec<_> =
        tensors.tensors().into_iter().filter_map(|(name, tensor)| Some((renamed(&name)?, tensor))).collect();
    let count = kept.len();
    if counts {
        let of_norm = |(name, _): &(String, _)| {
            Some(name.strip_suffix("running_mean")?.to_owned() + "num_batches_tracked")
        };
        let names: Vec<String> = kept.iter().filter_map(of_norm).collect();
        let none = TensorView::new(Dtype::I64, Vec::new(), &[0; 8]).map_err(|_| damaged())?;
        kept.extend(names.into_iter().map(|name| (name, none.clone())));
    }
    // PyTorch's tools look for the first entry.
    let about = HashMap::from([
        ("format".to_owned(), "pt".to_owned()),
        ("arch".to_owned(), arch.to_owned()),
        ("step".to_owned(), checkpoint.manifest().step.to_string()),
    ]);
    let mut file = safetensors::serialize(kept, Some(about)).map_err(|_| damaged())?;
    sort_metadata(&mut file).ok_or_else(damaged)?;
    Ok((count, file))
}

/// Brings the metadata of a safetensors file into the order of their keys. They come out of a hash map, and the same
/// weights shall give the same bytes.
fn sort_metadata(file: &mut [u8]) -> Option<()> {
    let (length, rest) = file.split_first_chunk_mut::<8>()?;
    let header = rest.get_mut(..usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    let mut entries: Map<String, Value> = serde_json::from_slice(header).ok()?;
    entries.get_mut("__metadata__")?.as_object_mut()?.sort_keys();
    // Spaces fill it up, as they did.
    let text = serde_json::to_vec(&entries).ok()?;
    header.get_mut(..text.len())?.copy_from_slice(&text);
    header[text.len()..].fill(b' ');
    Some(())
}
