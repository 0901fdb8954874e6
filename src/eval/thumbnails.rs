//! Thumbnails for the page.

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;

use crate::augment::{EvalTransform, evaluate};
use crate::dataset::{Manifest, read_paths};
use crate::ids::{BankRow, InstanceId};
use crate::image::{DecodedImage, Encoded, ExifOrientation, encode_jpeg, probe};
use crate::loader::{ReadContext, Source, open_split};
use crate::storage::Location;

use super::EvalError;

/// Longest side of a thumbnail, in pixels.
const SIDE: u32 = 96;
/// JPEG quality of thumbnails.
const QUALITY: u8 = 82;
/// Images held in memory at a time.
const CHUNK: usize = 128;

/// Side of an image in a sprite, in pixels.
pub const SPRITE_SIDE: u32 = 32;
/// Images per row of a sprite.
pub const SPRITE_COLUMNS: u32 = 50;

/// Thumbnails of some instances of a split.
#[derive(Clone, Debug, Default)]
pub struct Thumbnails {
    jpegs: BTreeMap<InstanceId, Vec<u8>>,
    paths: BTreeMap<InstanceId, String>,
}

impl Thumbnails {
    /// Loads the images of these instances as thumbnails.
    ///
    /// # Errors
    /// If the split cannot be read.
    pub fn load(
        dataset: &Location,
        manifest: &Manifest,
        split: &str,
        ids: impl IntoIterator<Item = InstanceId>,
    ) -> Result<Self, EvalError> {
        let source = open_split(dataset, manifest, split, None)?;
        let ids: BTreeSet<InstanceId> = ids.into_iter().collect();
        let paths = read_paths(dataset, manifest.split(dataset, split)?, &ids)?;
        Ok(Self { jpegs: squares(source.as_ref(), ids, thumbnail), paths })
    }

    /// Creates thumbnails without images, only with the instances' names.
    pub fn named(names: impl IntoIterator<Item = (InstanceId, String)>) -> Self {
        Self { jpegs: BTreeMap::new(), paths: names.into_iter().collect() }
    }

    /// Adds the image of a file; skips the image if it cannot be decoded.
    pub fn add(&mut self, id: InstanceId, path: &str, bytes: &[u8], orientation: ExifOrientation) {
        self.jpegs.extend(thumbnail(bytes, orientation).map(|jpeg| (id, jpeg)));
        self.paths.insert(id, path.to_owned());
    }

    /// Iterates over the JPEGs in the order of the ids.
    pub fn by_id(&self) -> impl Iterator<Item = (InstanceId, &[u8])> {
        self.jpegs.iter().map(|(id, jpeg)| (*id, jpeg.as_slice()))
    }

    /// Returns the original path of an instance: `<class>/<file>`.
    pub fn path(&self, id: InstanceId) -> Option<&str> {
        self.paths.get(&id).map(String::as_str)
    }

    /// Returns the JPEG of an instance.
    pub fn get(&self, id: InstanceId) -> Option<&[u8]> {
        self.jpegs.get(&id).map(Vec::as_slice)
    }
}

/// Combines small images of some instances into one image: rows of [`SPRITE_COLUMNS`] squares of
/// [`SPRITE_SIDE`] pixels, in the given order.
///
/// # Errors
/// If the split cannot be read.
pub fn sprite(
    dataset: &Location,
    manifest: &Manifest,
    split: &str,
    ids: &[InstanceId],
) -> Result<DecodedImage, EvalError> {
    let source = open_split(dataset, manifest, split, None)?;
    let squares = squares(source.as_ref(), ids.iter().copied(), |bytes, orientation| {
        square(bytes, orientation, SPRITE_SIDE)
    });
    let (side, columns) = (SPRITE_SIDE as usize, SPRITE_COLUMNS as usize);
    let (width, height) = (side * columns, side * ids.len().div_ceil(columns).max(1));
    let mut rgb = vec![0; 3 * width * height];
    for (at, id) in ids.iter().enumerate() {
        let Some(image) = squares.get(id) else { continue };
        let own = image.width as usize;
        for y in 0..side {
            for x in 0..side {
                // Enlarge a smaller image by repeating its pixels.
                let from = 3 * ((y * own / side) * own + x * own / side);
                let to = 3 * ((at / columns * side + y) * width + at % columns * side + x);
                rgb[to..to + 3].copy_from_slice(&image.rgb[from..from + 3]);
            }
        }
    }
    Ok(DecodedImage { width: width as u32, height: height as u32, rgb })
}

/// Calls `make` on each instance's encoded image; omits images that cannot be decoded.
fn squares<T: Send>(
    source: &dyn Source,
    ids: impl IntoIterator<Item = InstanceId>,
    make: impl Fn(&[u8], ExifOrientation) -> Option<T> + Sync,
) -> BTreeMap<InstanceId, T> {
    let wanted: BTreeSet<InstanceId> = ids.into_iter().filter(|id| id.row() < source.len()).collect();
    // In the order of the shards, so that each row group is read once.
    let layout = source.layout();
    let in_order: Vec<BankRow> = (0..layout.groups())
        .flat_map(|group| layout.members(group))
        .copied()
        .filter(|position| wanted.contains(&source.ids()[position.row()]))
        .collect();
    let orientation = source.instances().exif_orientation;
    let reading = ReadContext::default();
    let mut made = BTreeMap::new();
    for some in in_order.chunks(CHUNK) {
        let fetched = source.fetch_rows(some, &reading);
        made.par_extend(some.par_iter().zip(&fetched).filter_map(|(position, fetched)| {
            Some((source.ids()[position.row()], make(&fetched.as_ref().ok()?.bytes, orientation)?))
        }));
    }
    made
}

fn thumbnail(bytes: &[u8], orientation: ExifOrientation) -> Option<Vec<u8>> {
    encode_jpeg(&square(bytes, orientation, SIDE)?, QUALITY).ok()
}

/// Crops the centre of an image to a square of at most `side` pixels; small images are not enlarged.
fn square(bytes: &[u8], orientation: ExifOrientation, side: u32) -> Option<DecodedImage> {
    let header = probe(bytes).ok()?;
    let side = header.width.min(header.height).clamp(1, side);
    let plane = (side * side) as usize;
    let mut planes = vec![0; 3 * plane];
    let transform = EvalTransform::ResizeCenterCrop { resize: side, crop: side };
    evaluate(&Encoded::ingested(bytes, orientation).ok()?, transform, &mut planes).ok()?;
    let rgb = (0..plane).flat_map(|at| [planes[at], planes[plane + at], planes[2 * plane + at]]).collect();
    Some(DecodedImage { width: side, height: side, rgb })
}
