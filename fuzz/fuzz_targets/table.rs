//! Untrusted or damaged feature table: reading any bytes gives a table or an error.

#![no_main]

use instdisc::feature_table::FeatureTable;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = FeatureTable::from_bytes("table", bytes.to_vec().into());
});
