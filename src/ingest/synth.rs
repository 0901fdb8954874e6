//! A small synthetic labelled image set: textured shapes on cluttered ground.
//!
//! A class is a shape and a texture. Pose, size, hues, ground and noise are random and independent of the class. So
//! raw pixels tell little about it, and an encoder that learned to ignore crops and colours tells much.

use std::f64::consts::{PI, TAU};
use std::path::PathBuf;

use rayon::prelude::*;
use serde::Serialize;

use crate::failure::Failure;
use crate::image::{DecodedImage, encode_jpeg};
use crate::progress::Progress;
use crate::rng::{Purpose, Stream};
use crate::storage::{Location, PublishMode, StorageError};

/// Luma of the three inks, 0..255, which separates a shape from its ground whatever the hues.
const INK: (f64, f64) = (20.0, 80.0);
const GROUND: (f64, f64) = (110.0, 150.0);
const OTHER_INK: (f64, f64) = (185.0, 240.0);
/// Quality of the JPEG files.
const QUALITY: u8 = 90;
/// Classes, each a shape with a texture.
const CLASSES: [(&str, Shape, Texture); 10] = [
    ("checked_disc", Shape::Disc, Texture::Checks),
    ("dotted_star", Shape::Star, Texture::Dots),
    ("plain_cross", Shape::Cross, Texture::Plain),
    ("plain_ring", Shape::Ring, Texture::Plain),
    ("ringed_square", Shape::Square, Texture::Rings),
    ("striped_disc", Shape::Disc, Texture::Stripes),
    ("striped_square", Shape::Square, Texture::Stripes),
    ("striped_triangle", Shape::Triangle, Texture::Stripes),
    ("checked_triangle", Shape::Triangle, Texture::Checks),
    ("dotted_ring", Shape::Ring, Texture::Dots),
];

#[derive(Clone, Copy, Debug)]
enum Shape {
    Disc,
    Ring,
    Square,
    Triangle,
    Cross,
    Star,
}

#[derive(Clone, Copy, Debug)]
enum Texture {
    Plain,
    Stripes,
    Checks,
    Dots,
    Rings,
}

/// Options of the image set.
#[derive(Clone, Debug)]
pub struct SynthOptions {
    /// Folder, which must be empty or absent.
    pub dest: PathBuf,
    /// Number of training images of each class.
    pub train_per_class: usize,
    /// Number of validation images of each class.
    pub val_per_class: usize,
    /// Side of an image, in pixels.
    pub image_size: u32,
    /// Seed of all random values.
    pub seed: u64,
}

impl Default for SynthOptions {
    fn default() -> Self {
        Self {
            dest: PathBuf::from("images"),
            train_per_class: 200,
            val_per_class: 50,
            image_size: 40,
            seed: 0,
        }
    }
}

/// Result of drawing an image set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SynthReport {
    /// Folder of the images.
    pub dest: String,
    /// Names of the classes.
    pub classes: Vec<String>,
    /// Total number of images.
    pub images: usize,
    /// Whether the same set existed before.
    pub already_done: bool,
}

/// Error from drawing an image set.
#[derive(Debug, thiserror::Error)]
pub enum SynthError {
    /// The folder contains something else.
    #[error("{dest}: it is not empty, and not this image set")]
    NotEmpty {
        /// The folder.
        dest: String,
    },
    /// A size or a number is out of range.
    #[error("{reason}")]
    Options {
        /// Valid range.
        reason: &'static str,
    },
    /// A file cannot be written.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl SynthError {
    /// Returns the kind of failure, for the exit code.
    pub fn failure(&self) -> Failure {
        match self {
            Self::NotEmpty { .. } | Self::Options { .. } => Failure::Usage,
            Self::Storage(error) => error.failure(),
        }
    }
}

/// Draws the image set in ImageFolder layout, `train/<class>/0000.jpg` and `val/<class>/0000.jpg`.
///
/// # Errors
/// If something else is in the folder, or it cannot be written.
pub fn synth(options: &SynthOptions, progress: &dyn Progress) -> Result<SynthReport, SynthError> {
    if options.image_size < 16 || options.train_per_class == 0 {
        return Err(SynthError::Options { reason: "images have at least 16 pixels, and classes one image" });
    }
    let dest = Location::from_path(&options.dest)?;
    // Written last: records that the set is complete, and its options.
    let mark = dest.join("synth.json");
    let recipe = serde_json::json!({
        "train_per_class": options.train_per_class,
        "val_per_class": options.val_per_class,
        "image_size": options.image_size,
        "seed": options.seed,
    })
    .to_string();
    let report = |already_done| SynthReport {
        dest: options.dest.display().to_string(),
        classes: CLASSES.iter().map(|(name, ..)| (*name).to_owned()).collect(),
        images: CLASSES.len() * (options.train_per_class + options.val_per_class),
        already_done,
    };
    let unfinished = dest.join("synth.unfinished");
    let is_whole = mark.exists()?;
    if is_whole && mark.read()? == recipe {
        return Ok(report(true));
    }
    if is_whole || !unfinished.exists()? && !dest.list()?.is_empty() {
        return Err(SynthError::NotEmpty { dest: dest.to_string() });
    }
    unfinished.publish("", PublishMode::Overwrite)?;
    progress.begin("draw", report(false).images as u64);
    for (split, first, count) in
        [("train", 0, options.train_per_class), ("val", options.train_per_class, options.val_per_class)]
    {
        let all: Vec<(usize, usize)> =
            (0..CLASSES.len()).flat_map(|class| (0..count).map(move |number| (class, number))).collect();
        all.par_iter().try_for_each(|&(class, number)| {
            let image = draw(options, class, first + number);
            let bytes = encode_jpeg(&image, QUALITY).expect("a small RGB image can be encoded");
            let path = format!("{split}/{}/{number:04}.jpg", CLASSES[class].0);
            progress.advance(1);
            dest.join(&path).publish(bytes, PublishMode::Overwrite)
        })?;
    }
    progress.finish();
    mark.publish(recipe, PublishMode::Overwrite)?;
    unfinished.delete()?;
    Ok(report(false))
}

/// Position and look of a shape, with its ground.
struct Scene {
    centre: (f64, f64),
    radius: f64,
    angle: f64,
    period: f64,
    ink: [f64; 3],
    other_ink: [f64; 3],
    ground: [f64; 3],
    slope: [f64; 3],
    slope_angle: f64,
    blobs: Vec<(f64, f64, f64, [f64; 3])>,
}

impl Scene {
    fn random(stream: &mut Stream) -> Self {
        let blobs = (0..2)
            .map(|_| {
                let [x, y] = [stream.range(-1.0, 1.0), stream.range(-1.0, 1.0)];
                (x, y, stream.range(0.1, 0.25), colour(stream, GROUND))
            })
            .collect();
        Self {
            centre: (stream.range(-0.2, 0.2), stream.range(-0.2, 0.2)),
            radius: stream.range(0.6, 0.85),
            angle: stream.range(-0.5, 0.5),
            period: stream.range(0.85, 1.15),
            ink: colour(stream, INK),
            other_ink: colour(stream, OTHER_INK),
            ground: colour(stream, GROUND),
            slope: [stream.range(-30.0, 30.0), stream.range(-30.0, 30.0), stream.range(-30.0, 30.0)],
            slope_angle: stream.range(0.0, TAU),
            blobs,
        }
    }

    /// Returns the colour at a point of the image, whose corners are at ±1.
    fn at(&self, x: f64, y: f64, shape: Shape, texture: Texture) -> [f64; 3] {
        let (dx, dy) = ((x - self.centre.0) / self.radius, (y - self.centre.1) / self.radius);
        let (sin, cos) = self.angle.sin_cos();
        let (u, v) = (dx * cos + dy * sin, dy * cos - dx * sin);
        if shape.contains(u, v) {
            return if texture.is_dark(u / self.period, v / self.period) { self.ink } else { self.other_ink };
        }
        if let Some((.., colour)) = self.blobs.iter().find(|(bx, by, r, _)| libm::hypot(x - bx, y - by) < *r)
        {
            return *colour;
        }
        let along = x * self.slope_angle.cos() + y * self.slope_angle.sin();
        std::array::from_fn(|channel| self.ground[channel] + along * self.slope[channel])
    }
}

impl Shape {
    /// Returns whether a point is inside of the shape, which is about as large as the unit disc.
    fn contains(self, u: f64, v: f64) -> bool {
        let radius = libm::hypot(u, v);
        let turn = v.atan2(u);
        match self {
            Self::Disc => radius < 0.9,
            Self::Ring => (0.5..0.95).contains(&radius),
            Self::Square => u.abs().max(v.abs()) < 0.78,
            Self::Triangle => radius * (((turn + PI / 3.0).rem_euclid(TAU / 3.0)) - PI / 3.0).cos() < 0.5,
            Self::Cross => u.abs().min(v.abs()) < 0.28 && u.abs().max(v.abs()) < 0.95,
            Self::Star => radius < 0.7 + 0.3 * (5.0 * turn).cos(),
        }
    }
}

impl Texture {
    fn is_dark(self, u: f64, v: f64) -> bool {
        match self {
            Self::Plain => true,
            Self::Stripes => (u * 2.5).rem_euclid(1.0) < 0.5,
            Self::Checks => ((u * 2.2).floor() + (v * 2.2).floor()).rem_euclid(2.0) < 1.0,
            Self::Dots => {
                let near = |value: f64| (value * 2.2).rem_euclid(1.0) - 0.5;
                libm::hypot(near(u), near(v)) < 0.3
            }
            Self::Rings => (libm::hypot(u, v) * 2.5).rem_euclid(1.0) < 0.5,
        }
    }
}

/// Draws a colour whose luma (ITU-R BT.601) is in the range.
fn colour(stream: &mut Stream, luma: (f64, f64)) -> [f64; 3] {
    loop {
        let drawn: [f64; 3] = std::array::from_fn(|_| stream.range(0.0, 255.0));
        let own = 0.299 * drawn[0] + 0.587 * drawn[1] + 0.114 * drawn[2];
        if (luma.0..luma.1).contains(&own) {
            return drawn;
        }
    }
}

/// Draws one image, with four samples for each pixel.
fn draw(options: &SynthOptions, class: usize, number: usize) -> DecodedImage {
    let mut stream = Stream::new(options.seed, Purpose::Synth, class as u64, number as u64);
    let scene = Scene::random(&mut stream);
    let (_, shape, texture) = CLASSES[class];
    let side = options.image_size;
    let place = |pixel: u32, sub: f64| (f64::from(pixel) + sub) * 2.0 / f64::from(side) - 1.0;
    let mut rgb = Vec::with_capacity(side as usize * side as usize * 3);
    for row in 0..side {
        for column in 0..side {
            let samples = [(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)]
                .map(|(dx, dy)| scene.at(place(column, dx), place(row, dy), shape, texture));
            for channel in 0..3 {
                let mean = samples.iter().map(|sample| sample[channel]).sum::<f64>() / 4.0;
                rgb.push((mean + 6.0 * stream.normal()).clamp(0.0, 255.0) as u8);
            }
        }
    }
    DecodedImage { width: side, height: side, rgb }
}
