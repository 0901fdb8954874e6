//! A JPEG that somebody else wrote, with tiles or without: taking them away ends in the file before or in nothing.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    instdisc::image::fuzzing::restored(bytes);
});
