//! Weights and optimiser states: safetensors files.

use std::collections::BTreeMap;

use safetensors::SafeTensors;
use safetensors::tensor::Metadata;
use serde_json::{Map, Value, json};

use super::WITHOUT_DIGEST;
use crate::commands::CommandError;
use crate::storage::Location;

/// Bytes before the header: its length.
const LENGTH_BYTES: u64 = 8;
/// The longest header, in bytes, as the format has it.
const MOST_HEADER_BYTES: u64 = 100_000_000;

/// Where the header of a safetensors file ends, if the file begins like one.
pub(super) fn header_bytes(head: &[u8]) -> Option<u64> {
    let (length, rest) = head.split_first_chunk::<8>()?;
    let length = u64::from_le_bytes(*length);
    (rest.first() == Some(&b'{') && (2..=MOST_HEADER_BYTES).contains(&length))
        .then_some(LENGTH_BYTES + length)
}

/// What the tensors of a file are; its header alone is read, unless everything is to be checked.
///
/// # Errors
/// If it is damaged, or the store fails.
pub(super) fn inspect(location: &Location, header_bytes: u64, check: bool) -> Result<Value, CommandError> {
    let damaged =
        |reason: String| CommandError::Data(format!("{location}: not a whole safetensors file: {reason}"));
    let bytes = location.size()?;
    if bytes < header_bytes {
        return Err(damaged(format!("{bytes} bytes of a header of {header_bytes}")));
    }
    let header = location.read_range(0..header_bytes)?;
    let metadata: Metadata = serde_json::from_slice(header.get(LENGTH_BYTES as usize..).unwrap_or_default())
        .map_err(|error| damaged(error.to_string()))?;
    let whole = header_bytes + metadata.data_len() as u64;
    if bytes != whole {
        return Err(damaged(format!("{bytes} bytes, its header tells of {whole}")));
    }
    let mut numbers: BTreeMap<String, usize> = BTreeMap::new();
    let mut shapes = Map::new();
    for name in metadata.offset_keys() {
        let Some(tensor) = metadata.info(&name) else { continue };
        *numbers.entry(format!("{:?}", tensor.dtype).to_lowercase()).or_default() +=
            tensor.shape.iter().product::<usize>();
        shapes.insert(name, json!(tensor.shape));
    }
    let mut summary = json!({
        "kind": "weights",
        "bytes": bytes,
        "tensors": shapes.len(),
        "numbers": numbers,
        "metadata": metadata.metadata().iter().flatten().collect::<BTreeMap<_, _>>(),
        "shapes": shapes,
    });
    if check {
        let text = location.read()?;
        SafeTensors::deserialize(&text).map_err(|error| damaged(error.to_string()))?;
        summary["verified_by"] = json!(WITHOUT_DIGEST);
    }
    Ok(summary)
}
