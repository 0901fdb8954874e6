//! The image formats, with a file for the header and pixels of each. This file has shared code, and recognises a
//! format by a file's first bytes.

pub(super) mod bmp;
pub(super) mod gif;
pub(super) mod jpeg;
pub(super) mod png;
pub(super) mod pnm;
pub(super) mod tiff;
pub(super) mod webp;

use super::{Format, ImageError};

/// Up to 256 colours; those that a file does not define are black, as in Pillow.
#[derive(Clone, Debug)]
pub(super) struct Palette([[u8; 3]; 256]);

impl Palette {
    /// Takes the first three of every `stride` bytes as a colour.
    pub(super) fn new(entries: &[u8], stride: usize) -> Self {
        let mut colours = [[0; 3]; 256];
        for (colour, entry) in colours.iter_mut().zip(entries.chunks_exact(stride)) {
            colour.copy_from_slice(&entry[..3]);
        }
        Self(colours)
    }

    /// Returns a palette of greys, in which each index is its own value.
    pub(super) fn grey() -> Self {
        Self(std::array::from_fn(|index| [index as u8; 3]))
    }

    /// Exchanges red and blue.
    #[must_use]
    pub(super) fn reversed(mut self) -> Self {
        self.0.iter_mut().for_each(|colour| colour.reverse());
        self
    }

    pub(super) fn colour(&self, index: u8) -> [u8; 3] {
        self.0[usize::from(index)]
    }
}

/// Unpacks the first `count` values of `bits` bits (1, 2, 4 or 8) each, the highest bits of a byte first.
pub(super) fn packed(bytes: &[u8], count: usize, bits: usize) -> impl Iterator<Item = u8> {
    let in_byte = (8 / bits).max(1);
    let mask = if bits < 8 { (1 << bits) - 1 } else { 0xFF };
    let values = bytes
        .iter()
        .flat_map(move |&byte| (1..=in_byte).map(move |number| (byte >> (8 - number * bits.min(8))) & mask));
    values.take(count)
}

/// Offset, bytes and name of image formats that are not decoded. An ISO media file has its brand at the fifth byte.
const OTHER_IMAGES: [(usize, &[u8], &str); 25] = [
    (0, b"\xFF\x0A", "JPEG XL"),
    (0, b"\0\0\0\x0CJXL \r\n\x87\n", "JPEG XL"),
    (0, b"\0\0\0\x0CjP  \r\n\x87\n", "JPEG 2000"),
    (0, b"\xFF\x4F\xFF\x51", "JPEG 2000"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftypavis", "AVIF"),
    (4, b"ftyphei", "HEIC"),
    (4, b"ftyphev", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (4, b"ftypmsf1", "HEIC"),
    (4, b"ftypcrx", "Canon CR3"),
    (0, b"8BPS", "Photoshop (PSD)"),
    (0, b"\0\0\x01\0", "ICO"),
    (0, b"\0\0\x02\0", "CUR"),
    (0, b"DDS ", "DDS"),
    (0, b"\x76\x2F\x31\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"qoif", "QOI"),
    (0, b"farbfeld", "farbfeld"),
    (0, b"II\xBC\x01", "JPEG XR"),
    (0, b"FUJIFILMCCD-RAW", "Fujifilm RAF"),
    (0, b"gimp xcf", "GIMP (XCF)"),
    (0, b"\xC5\xD0\xD3\xC6", "EPS"),
    (0, b"%!PS", "PostScript"),
    (0, b"SIMPLE  =", "FITS"),
];

/// Offset, bytes and name of files that are not images.
const NO_IMAGES: [(usize, &[u8], &str); 25] = [
    (0, b"version https://git-lfs", "a git-lfs pointer"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"PK\x05\x06", "a zip archive"),
    (0, b"\x1F\x8B", "a gzip file"),
    (0, b"\x28\xB5\x2F\xFD", "a zstd file"),
    (0, b"BZh", "a bzip2 file"),
    (0, b"\xFD7zXZ\0", "an xz file"),
    (0, b"7z\xBC\xAF\x27\x1C", "a 7z archive"),
    (0, b"Rar!\x1A\x07", "a rar archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"%PDF", "a PDF file"),
    (0, b"PAR1", "a Parquet file"),
    (0, b"\x89HDF\r\n\x1A\n", "an HDF5 file"),
    (0, b"\x93NUMPY", "a NumPy file"),
    (0, b"MATLAB 5.0 MAT", "a MATLAB file"),
    (0, b"Mac OS X        ", "a resource fork of macOS"),
    (4, b"\0\x02\0\0Mac OS X", "a resource fork of macOS"),
    (0, b"\x1A\x45\xDF\xA3", "a Matroska video"),
    (4, b"ftyp", "a video or another ISO media file"),
    (8, b"AVI ", "an AVI video"),
    (8, b"WAVE", "a WAVE recording"),
    (0, b"OggS", "an Ogg file"),
    (0, b"ID3", "an MP3 recording"),
    (0, b"fLaC", "a FLAC recording"),
    (0, b"SQLite format 3\0", "an SQLite database"),
];

/// Number of bytes at the start in which markup is searched.
const MARKUP_BYTES: usize = 1024;

/// Recognises the format of a file.
///
/// # Errors
/// If the file is empty or of a kind that is not decoded; the error names a known kind.
pub(super) fn recognise(bytes: &[u8]) -> Result<Format, ImageError> {
    if bytes.is_empty() {
        return Err(ImageError::Empty);
    }
    let has = |at: usize, magic: &[u8]| bytes.get(at..).is_some_and(|rest| rest.starts_with(magic));
    if has(0, b"\xFF\xD8") {
        return Ok(Format::Jpeg);
    }
    if has(0, b"\x89PNG\r\n\x1A\n") {
        return Ok(Format::Png);
    }
    if has(0, b"GIF87a") || has(0, b"GIF89a") {
        return Ok(Format::Gif);
    }
    if has(0, b"RIFF") && has(8, b"WEBP") {
        return Ok(Format::Webp);
    }
    let named = |table: &[(usize, &[u8], &'static str)]| {
        table.iter().find(|(at, magic, _)| has(*at, magic)).map(|(_, _, name)| *name)
    };
    if let Some(kind) = named(&OTHER_IMAGES) {
        return Err(ImageError::Unsupported { kind });
    }
    if has(0, b"II*\0") || has(0, b"MM\0*") || has(0, b"II+\0") || has(0, b"MM\0+") {
        return Ok(Format::Tiff);
    }
    if has(0, b"BM") && bytes.len() > 14 {
        return Ok(Format::Bmp);
    }
    if let [b'P', kind, space, ..] = bytes
        && (space.is_ascii_whitespace() || *space == 0x0B)
    {
        match kind {
            b'1'..=b'6' => return Ok(Format::Pnm),
            b'7' => return Err(ImageError::Unsupported { kind: "PAM (P7)" }),
            b'f' | b'F' => return Err(ImageError::Unsupported { kind: "PFM" }),
            _ => {}
        }
    }
    if let Some(kind) = named(&NO_IMAGES) {
        return Err(ImageError::NotAnImage { kind });
    }
    match markup(bytes) {
        Some("SVG") => Err(ImageError::Unsupported { kind: "SVG" }),
        Some(kind) => Err(ImageError::NotAnImage { kind }),
        None => Err(ImageError::UnknownFormat),
    }
}

/// Returns the kind of a text in angle brackets or braces; failed downloads often leave pages of errors.
fn markup(bytes: &[u8]) -> Option<&'static str> {
    let start = &bytes[..bytes.len().min(MARKUP_BYTES)];
    let start = start.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(start).trim_ascii_start();
    let lower = start.to_ascii_lowercase();
    let has = |text: &str| memchr::memmem::find(&lower, text.as_bytes()).is_some();
    match start.first()? {
        b'<' if has("<svg") => Some("SVG"),
        b'<' if has("<html") || has("<!doctype html") || has("<head") => Some("an HTML page"),
        b'<' if has("<?xml") || has("<error>") => Some("an XML document"),
        b'{' | b'[' if serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_ok() => {
            Some("a JSON document")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_decoded_is_named() {
        for (bytes, expected) in [
            (&b"\xFF\x0A\x10\x20"[..], "JPEG XL is not supported"),
            (b"\0\0\0\x20ftypavif\0\0\0\0", "AVIF is not supported"),
            (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC is not supported"),
            (b"8BPS\0\x01", "Photoshop (PSD) is not supported"),
            (b"\0\0\x01\0\x01\0", "ICO is not supported"),
            (b"<?xml version='1.0'?>\n<svg xmlns='x'/>", "SVG is not supported"),
            (b"P7\nWIDTH 1\n", "PAM (P7) is not supported"),
            (b"\n<!DOCTYPE html><title>404</title>", "the file is an HTML page, not an image"),
            (
                b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
                "the file is an XML document, not an image",
            ),
            (b"version https://git-lfs.github.com/spec/v1\n", "the file is a git-lfs pointer, not an image"),
            (b"PK\x03\x04\x14\0", "the file is a zip archive, not an image"),
            (b"{\"error\": 403}", "the file is a JSON document, not an image"),
            (b"", "the file is empty"),
            (b"hello", "the file is not an image of a known kind"),
        ] {
            assert_eq!(recognise(bytes).expect_err("not decoded").to_string(), expected);
        }
    }
}
