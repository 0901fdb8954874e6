//! The development kit's meta.mat that somebody else wrote: whatever the bytes are, reading them ends.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    instdisc::ingest::fuzzing::synsets(bytes);
});
