//! The formats of images, a file for each: its header, and its pixels.

pub(super) mod bmp;
pub(super) mod gif;
pub(super) mod jpeg;
pub(super) mod png;
pub(super) mod pnm;
pub(super) mod tiff;
pub(super) mod webp;
