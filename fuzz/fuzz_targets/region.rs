//! Crop of an untrusted image: its pixels are those of the whole image.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    instdisc::image::fuzzing::region(bytes);
});
