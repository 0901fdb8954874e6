//! A tar or a WebDataset shard that somebody else wrote: whatever the bytes are, reading them ends.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    instdisc::ingest::fuzzing::source("x.tar", bytes);
});
