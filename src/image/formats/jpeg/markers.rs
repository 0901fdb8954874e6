//! The markers of a JPEG, without a look at the data between them.

use memchr::memchr;

const START: u8 = 0xD8;
const END: u8 = 0xD9;
const SCAN: u8 = 0xDA;
/// Of the parameters behind the list of components in a scan's header: all coefficients with all their bits.
const WHOLE_SPECTRUM: [u8; 3] = [0, 63, 0];

/// A marker that a length follows, and what the length covers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment<'a> {
    /// The marker's second byte.
    pub marker: u8,
    /// Without the length.
    pub payload: &'a [u8],
    /// Where what follows it begins.
    end: usize,
}

/// The segments before the first scan, whose own is the last.
pub(crate) fn header_segments(bytes: &[u8]) -> impl Iterator<Item = Segment<'_>> {
    let mut at = Some(2);
    std::iter::from_fn(move || {
        loop {
            let (marker, behind) = next_marker(bytes, at?)?;
            at = Some(behind);
            if stands_alone(marker) {
                continue;
            }
            let payload = payload(bytes, behind)?;
            let end = behind + 2 + payload.len();
            at = (marker != SCAN).then_some(end);
            return Some(Segment { marker, payload, end });
        }
    })
}

/// The next marker, and where what follows it begins. As in libjpeg, anything may come before a marker.
fn next_marker(bytes: &[u8], mut at: usize) -> Option<(u8, usize)> {
    loop {
        at += memchr(0xFF, bytes.get(at..)?)?;
        while *bytes.get(at)? == 0xFF {
            at += 1;
        }
        if bytes[at] != 0 {
            return Some((bytes[at], at + 1));
        }
    }
}

fn stands_alone(marker: u8) -> bool {
    is_restart(marker) || matches!(marker, START | END | 0x01)
}

fn is_restart(marker: u8) -> bool {
    matches!(marker, 0xD0..=0xD7)
}

fn is_frame(marker: u8) -> bool {
    matches!(marker, 0xC0..=0xCF) && !matches!(marker, 0xC4 | 0xC8 | 0xCC)
}

/// What follows a marker, by its length.
fn payload(bytes: &[u8], at: usize) -> Option<&[u8]> {
    let len = usize::from(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?));
    bytes.get(at + 2..at + len)
}

/// Whether the image's frame is a progressive one.
pub(crate) fn is_progressive(bytes: &[u8]) -> bool {
    let frame = header_segments(bytes).find(|segment| is_frame(segment.marker));
    frame.is_some_and(|frame| matches!(frame.marker, 0xC2 | 0xC6 | 0xCA | 0xCE))
}

/// Whether the end marker is there, behind the start of a scan: a thumbnail in the header has one too.
pub(crate) fn has_end(bytes: &[u8]) -> bool {
    let scan = header_segments(bytes).find(|segment| segment.marker == SCAN);
    scan.is_some_and(|scan| memchr::memmem::find(&bytes[scan.end..], &[0xFF, END]).is_some())
}

/// The same image without what libjpeg would warn of in its headers, although no pixel depends on it.
///
/// Bytes between segments, comments and application segments but for the hints at the colour space go; an unknown
/// JFIF revision and an unknown transform become those that libjpeg takes them for, and so do the parameters of scans
/// that can have no others. What is behind the end goes too. The data of the scans stay as they are.
pub(super) fn without_harmless_flaws(bytes: &[u8]) -> Vec<u8> {
    let frame = header_segments(bytes).find(|segment| is_frame(segment.marker));
    let components = frame.and_then(|frame| frame.payload.get(5).copied());
    let is_sequential = frame.is_some_and(|frame| matches!(frame.marker, 0xC0 | 0xC1 | 0xC9));
    let mut clean = Vec::with_capacity(bytes.len());
    clean.extend_from_slice(&[0xFF, START]);
    let mut at = 2;
    // Where the data of a scan began that is not copied yet.
    let mut data = None;
    while let Some((marker, behind)) = next_marker(bytes, at) {
        at = behind;
        if data.is_some() && is_restart(marker) {
            continue;
        }
        if let Some(start) = data.take() {
            clean.extend_from_slice(&bytes[start..behind - 2]);
        }
        if marker == END {
            clean.extend_from_slice(&[0xFF, END]);
            return clean;
        }
        if stands_alone(marker) {
            continue;
        }
        let Some(payload) = payload(bytes, behind) else {
            // libjpeg reports what is wrong here.
            clean.extend_from_slice(&bytes[behind - 2..]);
            return clean;
        };
        at = behind + 2 + payload.len();
        let start = clean.len() + 4;
        let keep = match marker {
            0xE0 => payload.starts_with(b"JFIF\0") && payload.len() >= 14,
            0xEE => payload.starts_with(b"Adobe") && payload.len() >= 12,
            0xE1..=0xEF | 0xFE => false,
            _ => true,
        };
        if keep {
            clean.extend_from_slice(&[0xFF, marker]);
            clean.extend_from_slice(&bytes[behind..at]);
        }
        match marker {
            0xE0 if keep => clean[start + 5] = 1,
            0xEE if keep => {
                let transform = &mut clean[start + 11];
                *transform = match (components, *transform) {
                    (Some(3), known @ (0 | 1)) | (Some(4), known @ (0 | 2)) => known,
                    (Some(4), _) => 2,
                    _ => 1,
                };
            }
            SCAN => {
                if is_sequential && let Some(parameters) = clean[start..].last_chunk_mut::<3>() {
                    *parameters = WHOLE_SPECTRUM;
                }
                data = Some(at);
            }
            _ => {}
        }
    }
    if let Some(start) = data {
        clean.extend_from_slice(&bytes[start..]);
    }
    clean
}
