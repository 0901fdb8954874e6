use super::*;
use crate::dataset::Place;
use crate::ids::InstanceId;
use crate::image::{DecodedImage, Limits, check, encode_jpeg, luma, shrink};
use crate::rng::{Purpose, Stream};

fn random_views(count: u64, seed: u64) -> Vec<ViewHash> {
    let mut stream = Stream::new(seed, Purpose::Test, 0, 0);
    (0..count).map(|_| ViewHash(std::array::from_fn(|_| stream.bits()))).collect()
}

fn flipped(view: ViewHash, stream: &mut Stream, bits: u32) -> ViewHash {
    let mut places: Vec<usize> = (0..256).collect();
    stream.shuffle(&mut places);
    let mut words = view.0;
    places[..bits as usize].iter().for_each(|place| words[place / 64] ^= 1 << (place % 64));
    ViewHash(words)
}

fn look(number: usize, view: ViewHash) -> Look {
    Look { digest: Digest::of(&number.to_le_bytes()), view: Some(view) }
}

fn looks(views: &[ViewHash]) -> Vec<Look> {
    views.iter().enumerate().map(|(number, &view)| look(number, view)).collect()
}

/// Computes the groups if none are known before.
fn groups(looks: &[Look]) -> Vec<u32> {
    super::groups(looks, Vec::new(), |_| true)
}

/// Computes the groups by their definition, comparing each image with each other one.
fn brute_force(looks: &[Look]) -> Vec<u32> {
    let sets = Sets::new(looks.len());
    for (one, a) in (0..).zip(looks) {
        for (other, b) in (0..one).zip(looks) {
            let is_near = a.view.zip(b.view).is_some_and(|(a, b)| a.distance(&b) <= MOST_DIFFERING_BITS);
            if a.digest == b.digest || is_near {
                sets.join(one, other);
            }
        }
    }
    sets.roots()
}

/// Returns sets of images that are difficult in different ways.
fn hard_sets() -> Vec<(&'static str, Vec<Look>)> {
    let mut stream = Stream::new(3, Purpose::Test, 0, 0);
    let scenes = random_views(6, 4);
    let mut noisy = |scene: ViewHash, bits: u32| {
        let bits = (f64::from(bits) * stream.unit()) as u32;
        flipped(scene, &mut stream, bits)
    };
    let mut sets = vec![("random", looks(&random_views(300, 5)))];
    for bits in [4, 10, 14, 20, 30, 45] {
        let views: Vec<ViewHash> = (0..300).map(|number| noisy(scenes[number % 3], bits)).collect();
        sets.push(("scenes", looks(&views)));
    }
    // A scene that drifts: near-duplicates of near-duplicates reach far.
    let mut view = scenes[3];
    let drift: Vec<ViewHash> = (0..300)
        .map(|_| {
            view = flipped(view, &mut stream, 9);
            view
        })
        .collect();
    sets.push(("drift", looks(&drift)));
    // Scenes that differ in few bits: their balls touch, or nearly do.
    for apart in [21, 30, 41, 50, 61] {
        let other = flipped(scenes[4], &mut stream, apart);
        let views: Vec<ViewHash> =
            (0..300).map(|number| flipped([scenes[4], other][number % 2], &mut stream, 5)).collect();
        sets.push(("touching", looks(&views)));
    }
    // Differences in only one half of the bits leave whole bands equal.
    let [a, b, c, d] = scenes[5].0;
    let halves = random_views(400, 6)
        .into_iter()
        .map(|random| ViewHash([a, b, c, d ^ (random.0[3] & random.0[2] & 0xFFFF_FFFF)]));
    sets.push(("equal bands", looks(&halves.collect::<Vec<_>>())));
    // Pairs at the limit and one bit beyond it.
    let mut views = random_views(150, 1);
    for bits in [MOST_DIFFERING_BITS, MOST_DIFFERING_BITS + 1] {
        let others: Vec<_> = views[..150].iter().map(|&view| flipped(view, &mut stream, bits)).collect();
        views.extend(others);
    }
    sets.push(("the limit", looks(&views)));
    let mut mixed = looks(&random_views(50, 7));
    mixed.extend(mixed.clone().into_iter().map(|look| Look { view: None, ..look }));
    mixed.extend((0..50).map(|number| Look { digest: Digest::of(&[number % 7]), view: None }));
    sets.push(("without a view", mixed));
    sets
}

#[test]
fn groups_are_the_closure_of_all_near_pairs_on_any_number_of_threads() {
    for threads in [1, 8] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        for (name, looks) in hard_sets() {
            assert_eq!(pool.install(|| groups(&looks)), brute_force(&looks), "{name}");
        }
    }
}

#[test]
fn groups_that_are_extended_are_those_found_from_scratch() {
    let mut stream = Stream::new(8, Purpose::Test, 0, 0);
    for (name, looks) in hard_sets() {
        for share in [0.0, 0.02, 0.5] {
            let is_new: Vec<bool> = looks.iter().map(|_| stream.unit() < share).collect();
            let old: Vec<u32> =
                (0..).zip(&is_new).filter(|(_, new)| !**new).map(|(image, _)| image).collect();
            let old_looks: Vec<Look> = old.iter().map(|&image| looks[image as usize]).collect();
            let known = groups(&old_looks);
            let known = old.iter().zip(&known).map(|(&image, &root)| (image, old[root as usize])).collect();
            let extended = super::groups(&looks, known, |image| is_new[image as usize]);
            assert_eq!(extended, groups(&looks), "{name} {share}");
        }
    }
}

/// Collecting the pairs of these images took 9 GB.
#[test]
fn many_near_images_are_grouped_without_comparing_each_with_each() {
    let mut stream = Stream::new(9, Purpose::Test, 0, 0);
    let scenes = random_views(2, 10);
    let views: Vec<ViewHash> = (0..20_000)
        .map(|number| {
            let bits = (16.0 * stream.unit()) as u64;
            let mut words = scenes[number % 2].0;
            (0..bits).for_each(|_| {
                let bit = (256.0 * stream.unit()) as usize;
                words[bit / 64] ^= 1 << (bit % 64);
            });
            ViewHash(words)
        })
        .collect();
    let found = groups(&looks(&views));
    assert!((0..).zip(&found).all(|(place, &root)| root == place % 2));
}

#[test]
fn groups_are_counted_and_leaks_are_training_images_with_a_near_duplicate_elsewhere() {
    let views = random_views(4, 1);
    let row = |id: u32, bytes: &[u8], view: usize| IndexRow {
        id: InstanceId(id),
        label: None,
        path: "p".into(),
        place: Place::default(),
        image: Digest::of(bytes),
        view: Some(views[view]),
    };
    let train = [row(0, b"a", 0), row(1, b"a", 0), row(2, b"b", 1)];
    let val = [row(0, b"c", 1), row(1, b"d", 2)];
    let index = Index::from([("train".to_owned(), train.into()), ("val".to_owned(), val.into())]);
    let images: Vec<SplitRow<'_>> = split_rows(&index).collect();
    let looks: Vec<Look> = images.iter().map(|(_, row)| Look::of(row.image, row.view, true)).collect();
    let rows = rows(&images, &groups(&looks));
    let expected = DuplicateCounts { identical_groups: 1, visual_groups: 1, images: 4, leaks: 1 };
    assert_eq!(count(&rows), expected);
    let shown: Vec<_> =
        rows.iter().map(|row| (row.group, row.split.as_str(), row.id.0, row.identical)).collect();
    assert_eq!(
        shown,
        [(0, "train", 0, true), (0, "train", 1, true), (1, "train", 2, true), (1, "val", 0, false)]
    );
    assert!(rows.iter().all(|row| row.distance == Some(0)));
}

/// Makes an image of random waves, of which longer ones are stronger, as in photographs.
fn waves(seed: u64, width: u32, height: u32) -> DecodedImage {
    let mut stream = Stream::new(seed, Purpose::Test, 0, 0);
    let mut wave = |_| {
        let (a, b) = (stream.range(-60.0, 60.0), stream.range(-60.0, 60.0));
        (a, b, stream.range(0.0, 6.3), 60.0 / (3.0 + f64::hypot(a, b)))
    };
    let waves: Vec<(f64, f64, f64, f64)> = (0..150).map(&mut wave).collect();
    let value = |x: f64, y: f64| {
        let sum: f64 = waves.iter().map(|(a, b, phase, size)| size * (a * x + b * y + phase).sin()).sum();
        (128.0 + 3.0 * sum).clamp(0.0, 255.0) as u8
    };
    let pixels = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
    let rgb = pixels.flat_map(|(x, y)| {
        let grey = value(f64::from(x) / f64::from(width), f64::from(y) / f64::from(height));
        [grey, grey.saturating_add(3), grey / 2]
    });
    DecodedImage { width, height, rgb: rgb.collect() }
}

fn hash(image: &DecodedImage) -> ViewHash {
    view_hash(&luma(image)).expect("a view")
}

#[test]
fn a_image_keeps_its_view_when_it_is_re_encoded_and_resized() {
    for seed in 0..4 {
        let original = waves(seed, 300, 225);
        let view = hash(&original);
        for quality in [30, 75] {
            let bytes = encode_jpeg(&original, quality).expect("encoded");
            let (_, luma, _) = check(&bytes, &Limits::default()).expect("decoded");
            let distance = view_hash(&luma).expect("a view").distance(&view);
            assert!(distance <= MOST_DIFFERING_BITS, "{seed} quality {quality}: {distance}");
        }
        for side in [250, 150] {
            let smaller = shrink(&original, Some(side), None).expect("smaller");
            let distance = hash(&smaller).distance(&view);
            assert!(distance <= MOST_DIFFERING_BITS, "{seed} side {side}: {distance}");
        }
    }
}

#[test]
fn different_images_have_different_views() {
    let views: Vec<ViewHash> = (0..40).map(|seed| hash(&waves(seed, 100, 80))).collect();
    for (place, view) in views.iter().enumerate() {
        assert!(views[..place].iter().all(|other| other.distance(view) > 2 * MOST_DIFFERING_BITS));
    }
}

#[test]
fn a_image_without_contrast_has_no_view() {
    let plain = DecodedImage { width: 50, height: 40, rgb: vec![200; 6000] };
    assert_eq!(view_hash(&luma(&plain)), None);
}

#[test]
fn sides_smaller_than_the_grid_have_a_view() {
    for (width, height) in [(1, 200), (200, 1), (32, 32), (63, 65)] {
        assert!(view_hash(&luma(&waves(3, width, height))).is_some(), "{width}x{height}");
    }
}

/// The bits of a view are stored, so no library or machine may change them.
#[test]
fn views_stay_what_they_are() {
    let image = DecodedImage {
        width: 70,
        height: 50,
        rgb: (0..70 * 50_u32).flat_map(|at| [(at * at / 7 % 251) as u8, (at % 256) as u8, 9]).collect(),
    };
    let expected = [4708841393625396969, 5105021546860658204, 8991270538749293908, 7679891659174624471];
    assert_eq!(hash(&image).0, expected);
}
