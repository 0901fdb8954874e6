//! Edited or damaged manifest: reading any bytes gives a manifest or an error.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = instdisc::dataset::Manifest::parse(bytes);
});
