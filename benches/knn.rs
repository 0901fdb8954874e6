//! The exact search on small drawn tables. `instdisc bench knn` times one at full size, and
//! benches/knn_faiss.py compares it with faiss.

#![expect(missing_docs, reason = "criterion's macro makes a public function")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use instdisc::eval::{Shape, draw_tables, search};

fn exact_search(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("knn");
    group.sample_size(10);
    for (name, shape, queries, rows, dim, k) in [
        ("uniform-queries1000-rows20000-dim128-k200", Shape::Uniform, 1000, 20_000, 128, 200),
        ("clusters-queries1000-rows20000-dim128-k200", Shape::Clusters, 1000, 20_000, 128, 200),
        ("uniform-queries1-rows20000-dim128-k200", Shape::Uniform, 1, 20_000, 128, 200),
        ("uniform-queries200-rows5000-dim2048-k200", Shape::Uniform, 200, 5000, 2048, 200),
    ] {
        let (bank, queries) = draw_tables(shape, rows, queries, dim, 0);
        group.throughput(Throughput::Elements((queries.len() * rows) as u64));
        group.bench_function(name, |bencher| bencher.iter(|| search(&bank, &queries, k, false)));
    }
    group.finish();
}

criterion_group!(benches, exact_search);
criterion_main!(benches);
