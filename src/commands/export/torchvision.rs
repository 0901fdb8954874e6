//! Weights as torchvision loads them.

use std::collections::HashMap;

use safetensors::SafeTensors;
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
    let state = checkpoint.state()?;
    let bytes = checkpoint.read(MODEL)?;
    let damaged = || CheckpointError::Damaged { file: folder.join(MODEL).to_string() };
    let weights = SafeTensors::deserialize(&bytes).map_err(|_| damaged())?;
    let arch = state.encoder["arch"].as_str().unwrap_or_default().to_owned();
    let projection = if arch.starts_with("resnet") { "fc." } else { "classifier.6." };
    let kept: Vec<_> = weights
        .tensors()
        .into_iter()
        .filter(|(name, _)| with_projection || !name.starts_with(projection))
        .collect();
    let count = kept.len();
    // PyTorch's tools look for the first entry.
    let about = HashMap::from([
        ("format".to_owned(), "pt".to_owned()),
        ("arch".to_owned(), arch),
        ("step".to_owned(), checkpoint.manifest().step.to_string()),
    ]);
    let mut file = safetensors::serialize(kept, Some(about)).map_err(|_| damaged())?;
    sort_metadata(&mut file).ok_or_else(damaged)?;
    output.publish(file, PublishMode::Overwrite)?;
    Ok(count)
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
