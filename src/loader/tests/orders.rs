//! Tests of the orders: complete, equal for all ways of reading, resumable anywhere, and mixed well.

use super::*;
use crate::ids::RankShare;
use crate::loader::plan::order::GroupedOrder;

/// Makes row groups of seven rows, read by rows and by groups.
fn both(len: u32) -> [Arc<dyn Source>; 2] {
    let source = MemorySource::in_groups(rows(len), 7);
    [Arc::new(source.clone()), Watched::new(source, true, None)]
}

#[test]
fn a_windowed_epoch_has_every_instance_once_and_reads_the_same_by_rows_and_by_groups() {
    for len in [1, 6, 7, 8, 30, 100, 141] {
        let [by_rows, by_groups] = both(len);
        let options = LoaderOptions { shuffle: WINDOWED, epochs: 3, ..options() };
        let all = batches(&by_rows, options);
        assert_eq!(all, batches(&by_groups, options));
        for epoch in 2..5 {
            let mut ids: Vec<u32> =
                ids(&all.iter().filter(|batch| batch.epoch == epoch).cloned().collect::<Vec<_>>());
            ids.sort_unstable();
            assert_eq!(ids, (0..len).collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_loader_of_several_epochs_gives_what_one_for_each_gives() {
    for source in both(61) {
        for (shuffle, drop_last) in
            [(WINDOWED, false), (WINDOWED, true), (Shuffle::Windowed { rows: 3 }, true)]
        {
            let options = LoaderOptions { shuffle, drop_last, ..options() };
            let each = (2..6).flat_map(|epoch| batches(&source, LoaderOptions { epoch, ..options }));
            let all = batches(&source, LoaderOptions { epochs: 4, ..options });
            assert_eq!(all, each.collect::<Vec<_>>());
            assert_eq!(all.len() as u64, 4 * options.steps(61));
        }
    }
}

#[test]
fn resuming_at_twenty_random_steps_gives_the_uninterrupted_sequence() {
    let mut stream = Stream::new(3, Purpose::Test, 0, 0);
    let [by_rows, by_groups] = both(150);
    for (source, shuffle) in [(&by_rows, Shuffle::Exact), (&by_rows, WINDOWED), (&by_groups, WINDOWED)] {
        let options = LoaderOptions { shuffle, epochs: 3, ..options() };
        let whole = batches(source, options);
        for _ in 0..20 {
            let at = stream.below(whole.len() as u64) as usize;
            let (epoch, first_step) = (whole[at].epoch, whole[at].step_in_epoch);
            let resumed = LoaderOptions { epoch, first_step, epochs: 5 - epoch, ..options };
            assert_eq!(batches(source, resumed), whole[at..]);
        }
    }
}

#[test]
fn an_epoch_is_asked_for_by_itself_and_resumes_at_its_end() {
    let source = source(30);
    let never = std::sync::atomic::AtomicBool::new(false);
    let from = LoaderOptions { first_step: 4, epochs: 2, ..options() };
    let mut loader = Loader::start(Arc::clone(&source), Recipe::imagenet(16), from).expect("started");
    assert!(loader.next_of(2, &never).is_none());
    let mut third = Vec::new();
    while let Some(batch) = loader.next_of(3, &never) {
        third.push(batch.expect("a good one"));
    }
    assert_eq!(third, batches(&source, LoaderOptions { epoch: 3, ..options() }));
    assert!(loader.next_of(4, &never).is_none());
}

#[test]
fn the_parts_of_any_number_of_ranks_are_the_global_batch() {
    for source in both(61) {
        let options = LoaderOptions { shuffle: WINDOWED, epochs: 2, ..options() };
        let whole = batches(&source, options);
        for ranks in [2, 3, 8] {
            let part = |rank| batches(&source, LoaderOptions { share: RankShare { rank, ranks }, ..options });
            let parts: Vec<_> = (0..ranks).map(part).collect();
            for (step, whole) in whole.iter().enumerate() {
                let images = |batch: &Batch| {
                    let side = batch.pixels.len() / batch.ids.len().max(1);
                    let pixels = batch.pixels.chunks(side.max(1)).map(<[u8]>::to_vec);
                    batch.ids.iter().copied().zip(pixels).collect::<Vec<_>>()
                };
                let mut together: Vec<_> = (0..ranks).flat_map(|rank| images(&parts[rank][step])).collect();
                together.sort();
                let mut expected = images(whole);
                expected.sort();
                assert_eq!(together, expected);
                for (rank, of_rank) in parts.iter().enumerate() {
                    let global = &of_rank[step].global;
                    assert_eq!(global.bank_rows, whole.bank_rows);
                    let own: Vec<_> =
                        global.shares[rank].iter().map(|index| global.bank_rows[index.index()]).collect();
                    assert_eq!(own, of_rank[step].bank_rows);
                }
            }
        }
    }
}

#[test]
fn a_rank_reads_about_its_own_region_of_the_shards_in_every_epoch() {
    let (ranks, groups) = (4, 60);
    let mut read = Vec::new();
    for rank in 0..ranks {
        let source = MemorySource::in_groups(rows(groups * 4), 4);
        let source = Watched::new(source, true, None);
        let share = RankShare { rank, ranks };
        let shuffle = Shuffle::Windowed { rows: 120 };
        let options = LoaderOptions { shuffle, epochs: 3, batch_size: 60, share, ..options() };
        batches(&(Arc::clone(&source) as Arc<dyn Source>), options);
        read.push(source.groups.lock().expect("a lock").clone());
    }
    let all: BTreeSet<usize> = read.iter().flatten().copied().collect();
    assert_eq!(all.len(), groups as usize);
    for groups_of_rank in &read {
        // A quarter of the groups, and those around its edges.
        assert!(groups_of_rank.len() < 42, "{groups_of_rank:?}");
        let span = groups_of_rank.last().expect("some") - groups_of_rank.first().expect("some");
        assert!(span < 45, "{groups_of_rank:?}");
    }
}

#[test]
fn little_memory_changes_no_batch() {
    let [by_rows, by_groups] = both(150);
    let options = LoaderOptions { shuffle: WINDOWED, epochs: 2, batch_size: 20, ..options() };
    let expected = batches(&by_rows, options);
    for source in [by_rows, by_groups] {
        let small = LoaderOptions { memory_limit: 250_000, ..options };
        assert_eq!(batches(&source, small), expected);
        let smaller = LoaderOptions { memory_limit: 100_000, ..options };
        let error = Loader::start(source, Recipe::imagenet(16), smaller).expect_err("too little");
        assert!(matches!(error, LoaderError::Memory { limit: 100_000, .. }), "{error}");
    }
}

/// Returns the number of pairs of a batch's images that share a row group, relative to chance.
fn pairs_of_a_group(layout: &Layout, order: impl Fn(u64) -> BankRow, batch: u64) -> f64 {
    let mut group_of = vec![0; layout.rows()];
    for group in 0..layout.groups() {
        layout.members(group).iter().for_each(|bank_row| group_of[bank_row.row()] = group);
    }
    let rows = layout.rows() as u64;
    let mut together = 0_u64;
    for first in (0..rows).step_by(batch as usize) {
        let mut counts = vec![0_u64; layout.groups()];
        (first..rows.min(first + batch))
            .for_each(|epoch_index| counts[group_of[order(epoch_index).row()]] += 1);
        together += counts.iter().map(|count| count * count.saturating_sub(1) / 2).sum::<u64>();
    }
    let in_groups: u64 = (0..layout.groups()).map(|group| layout.members(group).len() as u64).sum::<u64>();
    let group = in_groups as f64 / layout.groups() as f64;
    let chance = in_groups as f64 * (batch - 1) as f64 / 2.0 * (group - 1.0) / (rows - 1) as f64;
    together as f64 / chance
}

/// The figures of docs/architecture.md: 200,000 rows in groups of 256, batches of 256.
#[test]
fn a_window_mixes_row_groups_as_well_as_its_length_allows() {
    let layout = Layout::regular(200_000, 256, 200_000);
    let exact = EpochOrder::new(1, 0, 200_000);
    let uniform = pairs_of_a_group(&layout, |epoch_index| exact.at(epoch_index as usize), 256);
    assert!((uniform - 1.0).abs() < 0.02, "{uniform}");
    for (window, windows) in [(4_096, 49.0), (16_384, 13.0), (65_536, 4.0)] {
        let order = GroupedOrder::shuffled(1, 0, &layout, window);
        let pairs = pairs_of_a_group(&layout, |epoch_index| order.at(&layout, epoch_index), 256);
        // Within a window rows are mixed uniformly, so the ratio to chance is the number of windows.
        assert!((pairs / windows - 1.0).abs() < 0.03, "{window}: {pairs}");
    }
}

#[test]
fn which_row_groups_share_a_window_changes_from_epoch_to_epoch() {
    let layout = Layout::regular(200_000, 256, 200_000);
    let window_of = |epoch| {
        let order = GroupedOrder::shuffled(1, epoch, &layout, 16_384);
        let mut windows = vec![0; layout.groups()];
        for window in 0..order.windows() {
            order.groups(window).iter().for_each(|&group| windows[group as usize] = window);
        }
        windows
    };
    let (first, second) = (window_of(0), window_of(1));
    let (mut both, mut once) = (0_u32, 0_u32);
    for a in 0..layout.groups() {
        for b in 0..a {
            once += u32::from(first[a] == first[b]);
            both += u32::from(first[a] == first[b] && second[a] == second[b]);
        }
    }
    // One pair in thirteen meets again by chance.
    let again = f64::from(both) / f64::from(once);
    assert!((0.06..0.1).contains(&again), "{again}");
}

#[test]
fn any_index_of_a_windowed_order_is_known_at_once_and_windows_are_equal() {
    let layout = Layout::regular(10_000, 64, 10_000);
    let order = GroupedOrder::shuffled(9, 4, &layout, 1_500);
    let lens: Vec<u64> =
        (0..order.windows()).map(|window| order.epoch_indices(window).count() as u64).collect();
    assert!(lens.iter().all(|len| len.abs_diff(10_000 / 7) <= 64), "{lens:?}");
    let mut seen = vec![false; 10_000];
    for epoch_index in (0..10_000).rev() {
        let window = order.window_at(epoch_index);
        let bank_row = order.at(&layout, epoch_index);
        let group = (bank_row.0 / 64) as usize;
        assert!(order.groups(window).contains(&(group as u32)));
        assert!(!std::mem::replace(&mut seen[bank_row.row()], true));
    }
}
