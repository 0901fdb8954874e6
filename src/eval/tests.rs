//! Tables that are drawn, for all tests of this module.

use super::*;
use crate::feature_table::{ColumnNames, FeatureTable, Kind, StoredTable, Table, TableMeta};
use crate::ids::{ClassId, InstanceId};
use crate::rng::{Purpose, Stream};
use crate::search::{Neighbours, search};
use crate::storage::Location;
use crate::units::Temperature;

mod duplicates;
mod reports;
mod votes;

pub(crate) fn temperature(value: f64) -> Temperature {
    Temperature::new(value).expect("a temperature")
}

pub(crate) fn table(seed: u64, rows: usize, dim: usize, classes: usize) -> FeatureTable {
    let mut stream = Stream::new(seed, Purpose::Test, 0, 0);
    let mut features = Vec::new();
    for _ in 0..rows {
        let drawn: Vec<f64> = (0..dim).map(|_| stream.normal()).collect();
        let length = drawn.iter().map(|x| x * x).sum::<f64>().sqrt();
        features.extend(drawn.iter().map(|x| (x / length) as f32));
    }
    FeatureTable {
        meta: TableMeta {
            kind: Kind::Embedding,
            layer: "projection".into(),
            dim,
            dataset_digest: "d".into(),
            split: "val".into(),
            split_digest: None,
            weights: None,
            device: None,
            precision: None,
            step: 1,
            unit_length: true,
            classes: (0..classes).map(|class| format!("class {class}")).collect(),
        },
        ids: (0..rows as u32).map(InstanceId).collect(),
        labels: (0..rows).map(|_| Some(ClassId(stream.below(classes as u64) as u16))).collect(),
        updated_step: vec![None; rows],
        features,
    }
}

pub(crate) fn options(k: usize) -> KnnOptions {
    KnnOptions { k: vec![k], ..KnnOptions::default() }
}
