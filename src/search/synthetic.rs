//! Feature tables of random vectors, for benchmarks.

use rayon::prelude::*;

use crate::feature_table::{FeatureTable, Kind, TableMeta, normalise};
use crate::ids::{ClassId, InstanceId};
use crate::rng::{Purpose, Stream};

/// Number of classes in a random table.
const CLASSES: usize = 1000;
/// Typical cosine between two vectors of one class in [`Shape::Clusters`].
const CLASS_COSINE: f64 = 0.4;
/// Rows drawn from one stream.
const BLOCK: usize = 4096;

/// Distribution of random vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Uniform on the sphere: the worst case, as no direction is more likely.
    Uniform,
    /// Around 1000 class directions, rows sorted by class, with a spectrum that falls like that of features:
    /// the variance of component i is proportional to 1/√(i + 1).
    Clusters,
}

impl std::str::FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "uniform" => Ok(Self::Uniform),
            "clusters" => Ok(Self::Clusters),
            _ => Err("expected `uniform` or `clusters`".into()),
        }
    }
}

/// Draws a bank and queries of one shape: unit vectors, which depend on the seed alone.
pub fn draw_tables(
    shape: Shape,
    rows: usize,
    queries: usize,
    dim: usize,
    seed: u64,
) -> (FeatureTable, FeatureTable) {
    let centres = draw_rows(CLASSES, dim, |row, out| {
        let mut stream = Stream::new(seed, Purpose::SyntheticTable, 0, row as u64);
        direction(&mut stream, shape, out);
    });
    let draw = |table: u64, rows: usize| {
        let class = |row: usize| row * CLASSES / rows;
        let features = draw_rows(rows, dim, |row, out| {
            let mut stream = Stream::new(seed, Purpose::SyntheticTable, table, row as u64);
            direction(&mut stream, shape, out);
            if shape == Shape::Clusters {
                let centre = &centres[class(row) * dim..][..dim];
                for (x, c) in out.iter_mut().zip(centre) {
                    let (own, common) = ((1.0 - CLASS_COSINE).sqrt(), CLASS_COSINE.sqrt());
                    *x = (own * f64::from(*x) + common * f64::from(*c)) as f32;
                }
                normalise(out, dim);
            }
        });
        FeatureTable {
            meta: TableMeta {
                kind: if table == 1 { Kind::Bank } else { Kind::Embedding },
                layer: "projection".into(),
                dim,
                dataset_digest: "drawn".into(),
                split: if table == 1 { "train".into() } else { "val".into() },
                unit_length: true,
                classes: (0..CLASSES).map(|class| format!("class {class:04}")).collect(),
                ..TableMeta::default()
            },
            ids: (0..rows as u32).map(InstanceId).collect(),
            labels: (0..rows).map(|row| Some(ClassId(class(row) as u16))).collect(),
            updated_step: vec![None; rows],
            features,
        }
    };
    (draw(1, rows), draw(2, queries))
}

fn draw_rows(rows: usize, dim: usize, draw: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    let mut features = vec![0.0; rows * dim];
    features.par_chunks_mut(BLOCK * dim).enumerate().for_each(|(block, features)| {
        for (row, out) in features.chunks_exact_mut(dim).enumerate() {
            draw(block * BLOCK + row, out);
        }
    });
    features
}

fn direction(stream: &mut Stream, shape: Shape, out: &mut [f32]) {
    for (i, x) in out.iter_mut().enumerate() {
        let spread = if shape == Shape::Clusters { (i as f64 + 1.0).powf(-0.25) } else { 1.0 };
        *x = (spread * stream.normal()) as f32;
    }
    let dim = out.len();
    normalise(out, dim);
}
