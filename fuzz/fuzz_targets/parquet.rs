//! A Parquet file of images that somebody else wrote: whatever the bytes are, reading them ends.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    instdisc::ingest::fuzzing::source("x.parquet", bytes);
});
