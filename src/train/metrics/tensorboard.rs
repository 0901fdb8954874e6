//! TensorBoard event files.
//!
//! A file is a sequence of records: length (8 bytes), its masked CRC-32C, message, its masked CRC-32C. The messages are
//! the parts of `tensorflow/core/util/event.proto` and `framework/summary.proto` that scalars and histograms need.

use prost::Message;

/// One event.
#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<SummaryValue>,
}

#[derive(Clone, PartialEq, Message)]
struct SummaryValue {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(oneof = "Shown", tags = "2, 5")]
    shown: Option<Shown>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Shown {
    #[prost(float, tag = "2")]
    Scalar(f32),
    #[prost(message, tag = "5")]
    Histogram(Histogram),
}

#[derive(Clone, PartialEq, Message)]
struct Histogram {
    #[prost(double, tag = "1")]
    min: f64,
    #[prost(double, tag = "2")]
    max: f64,
    #[prost(double, tag = "3")]
    num: f64,
    #[prost(double, tag = "4")]
    sum: f64,
    #[prost(double, tag = "5")]
    sum_squares: f64,
    #[prost(double, repeated, tag = "6")]
    bucket_limit: Vec<f64>,
    #[prost(double, repeated, tag = "7")]
    bucket: Vec<f64>,
}

/// Contents of an event file.
#[derive(Clone, Debug)]
pub(super) struct EventFile(Vec<u8>);

impl EventFile {
    /// Creates a file without events, started at this time (seconds since 1970).
    pub(super) fn new(time: f64) -> Self {
        let mut file = Self(Vec::new());
        file.add(time, 0, What::FileVersion("brain.Event:2".into()));
        file
    }

    /// Adds the numbers of a step by name.
    pub(super) fn scalars(&mut self, time: f64, step: u64, scalars: impl IntoIterator<Item = (String, f64)>) {
        let value = scalars
            .into_iter()
            .map(|(tag, number)| SummaryValue { tag, shown: Some(Shown::Scalar(number as f32)) });
        self.add(time, step, What::Summary(Summary { value: value.collect() }));
    }

    /// Adds counts by the upper edges of their buckets.
    pub(super) fn histogram(&mut self, time: f64, step: u64, tag: &str, buckets: &[(u64, u64)]) {
        let weighted = |power| buckets.iter().map(|&(edge, n)| (edge as f64).powi(power) * n as f64).sum();
        let histogram = Histogram {
            min: 0.0,
            max: buckets.last().map_or(0.0, |(edge, _)| *edge as f64),
            num: weighted(0),
            sum: weighted(1),
            sum_squares: weighted(2),
            bucket_limit: buckets.iter().map(|(edge, _)| *edge as f64).collect(),
            bucket: buckets.iter().map(|(_, count)| *count as f64).collect(),
        };
        let value = vec![SummaryValue { tag: tag.to_owned(), shown: Some(Shown::Histogram(histogram)) }];
        self.add(time, step, What::Summary(Summary { value }));
    }

    /// Returns the file's bytes.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        self.0.clone()
    }

    fn add(&mut self, wall_time: f64, step: u64, what: What) {
        let message = Event { wall_time, step: step as i64, what: Some(what) }.encode_to_vec();
        let length = (message.len() as u64).to_le_bytes();
        for part in [length.as_slice(), message.as_slice()] {
            self.0.extend_from_slice(part);
            self.0.extend_from_slice(&masked(crc32c::crc32c(part)).to_le_bytes());
        }
    }
}

/// Masks a checksum as TFRecord does, so that checksums of data that contains checksums are well behaved.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xA282_EAD8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_those_that_tensorboard_writes() {
        // From tensorboard's own EventFileWriter: the version record of a file begun at time 1.0.
        let file = EventFile::new(1.0).to_bytes();
        assert_eq!(file[..8], 24_u64.to_le_bytes());
        assert_eq!(file[12..21], [0x09, 0, 0, 0, 0, 0, 0, 0xF0, 0x3F]);
        assert_eq!(&file[21..36], b"\x1a\x0dbrain.Event:2");
        assert_eq!(file.len(), 8 + 4 + 24 + 4);
    }

    #[test]
    fn a_scalar_is_read_back() {
        let mut file = EventFile::new(0.0);
        let before = file.0.len();
        file.scalars(2.5, 7, [("loss".to_owned(), 0.5)]);
        let record = &file.0[before..];
        let event = Event::decode(&record[12..record.len() - 4]).expect("an event");
        assert_eq!((event.wall_time, event.step), (2.5, 7));
        let Some(What::Summary(summary)) = event.what else { panic!("a summary") };
        assert_eq!(summary.value[0].tag, "loss");
        assert_eq!(summary.value[0].shown, Some(Shown::Scalar(0.5)));
    }

    #[test]
    fn the_checksum_is_the_masked_one_of_tfrecord() {
        // crc32c("123456789") is 0xE3069283 (RFC 3720).
        assert_eq!(crc32c::crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(masked(0), 0xA282_EAD8);
    }
}
