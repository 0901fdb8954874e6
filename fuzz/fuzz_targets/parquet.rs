//! Untrusted Parquet file of images: reading ends for any bytes.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    instdisc::ingest::fuzzing::source("x.parquet", bytes);
});
