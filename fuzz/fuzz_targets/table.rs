//! A feature table that somebody else wrote, or that was damaged: whatever the bytes are, reading them ends in a
//! table or an error.

#![no_main]

use instdisc::feature_table::FeatureTable;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = FeatureTable::from_bytes("table", bytes.to_vec().into());
});
