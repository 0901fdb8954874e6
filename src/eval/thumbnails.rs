//! Small pictures for the page.

use std::collections::HashMap;

use crate::dataset::Manifest;
use crate::ids::{InstanceId, Position};
use crate::loader::{DatasetSource, EvalTransform, Source, evaluate_pixels};
use crate::picture::{Picture, encode_jpeg};
use crate::storage::Location;

use super::EvalError;

/// The side of a thumbnail, in pixels.
const SIDE: u32 = 64;
/// The quality of its JPEG.
const QUALITY: u8 = 80;

/// Thumbnails of some instances of a split.
#[derive(Debug, Default)]
pub struct Thumbnails {
    jpegs: HashMap<InstanceId, Vec<u8>>,
}

impl Thumbnails {
    /// Makes the thumbnails of these instances.
    ///
    /// # Errors
    /// If the split cannot be read.
    pub fn load(
        dataset: &Location,
        manifest: &Manifest,
        split: &str,
        ids: impl IntoIterator<Item = InstanceId>,
    ) -> Result<Self, EvalError> {
        let source = DatasetSource::open(dataset, manifest, split, None)?;
        let mut jpegs = HashMap::new();
        for id in ids {
            if id.row() >= source.len() || jpegs.contains_key(&id) {
                continue;
            }
            let rows = source.read(&[Position(id.0)])?;
            // A picture that cannot be shown leaves its place empty.
            if let Some(jpeg) = rows.first().and_then(|row| thumbnail(&row.bytes)) {
                jpegs.insert(id, jpeg);
            }
        }
        Ok(Self { jpegs })
    }

    /// The JPEG of an instance.
    pub fn get(&self, id: InstanceId) -> Option<&[u8]> {
        self.jpegs.get(&id).map(Vec::as_slice)
    }
}

fn thumbnail(bytes: &[u8]) -> Option<Vec<u8>> {
    let plane = (SIDE * SIDE) as usize;
    let mut planes = vec![0; 3 * plane];
    let transform = EvalTransform::ResizeCenterCrop { resize: SIDE, crop: SIDE };
    evaluate_pixels(bytes, transform, &mut planes).ok()?;
    let rgb = (0..plane).flat_map(|at| [planes[at], planes[plane + at], planes[2 * plane + at]]).collect();
    encode_jpeg(&Picture { width: SIDE, height: SIDE, rgb }, QUALITY).ok()
}
