//! A manifest that was edited or damaged: whatever the bytes are, reading them ends in a manifest or an error.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = instdisc::dataset::Manifest::parse(bytes);
});
