//! An image that somebody else wrote: whatever the bytes are, reading them ends.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    instdisc::ingest::fuzzing::image(bytes);
});
