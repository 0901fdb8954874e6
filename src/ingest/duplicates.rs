//! Pictures that occur more than once: byte for byte, or to the eye.

use std::collections::HashMap;

use rayon::prelude::*;

use super::view_hash::MOST_DIFFERING_BITS;
use crate::dataset::{DuplicateCounts, DuplicateRow, ViewHash};
use crate::ids::InstanceId;
use crate::storage::Digest;

/// Bits of a band: two views that differ in few bits agree in a band but for one bit at most.
const BAND_BITS: u32 = 16;
const BANDS: usize = 256 / BAND_BITS as usize;

// One differing bit in each band may be missed by an exact look-up; two in each are beyond the limit.
const _: () = assert!((MOST_DIFFERING_BITS as usize) < 2 * BANDS);

/// What a picture is compared by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub(super) digest: Digest,
    pub(super) view: Option<ViewHash>,
}

/// The group of each picture: the place of its first member. A picture without a twin is alone in its group.
///
/// Groups are closed: a twin of a twin is in the group too.
pub(super) fn groups(looks: &[Look]) -> Vec<u32> {
    let mut sets = Sets::new(looks.len());
    let mut identical: HashMap<Digest, u32> = HashMap::with_capacity(looks.len());
    let mut views: HashMap<ViewHash, u32> = HashMap::new();
    for (place, look) in (0..).zip(looks) {
        sets.join(place, *identical.entry(look.digest).or_insert(place));
        if let Some(view) = look.view {
            sets.join(place, *views.entry(view).or_insert(place));
        }
    }
    // Each view once: many equal pictures must not be compared with each other.
    let mut distinct: Vec<(u32, ViewHash)> = views.into_iter().map(|(view, place)| (place, view)).collect();
    distinct.sort_unstable_by_key(|(place, _)| *place);
    let pairs: Vec<Vec<(u32, u32)>> =
        (0..BANDS).into_par_iter().map(|band| near_pairs(&distinct, band)).collect();
    pairs.into_iter().flatten().for_each(|(a, b)| sets.join(a, b));
    (0..looks.len() as u32).map(|place| sets.root(place)).collect()
}

/// Pairs that look the same and agree in this band but for one bit at most.
fn near_pairs(views: &[(u32, ViewHash)], band: usize) -> Vec<(u32, u32)> {
    let bits = |view: &ViewHash| (view.0[band / 4] >> (BAND_BITS as usize * (band % 4))) as u16;
    // The views in the order of their bits in the band, and where each value begins.
    let mut starts = vec![0_u32; (1 << BAND_BITS) + 1];
    for (_, view) in views {
        starts[usize::from(bits(view)) + 1] += 1;
    }
    for value in 1..starts.len() {
        starts[value] += starts[value - 1];
    }
    let mut next = starts.clone();
    let mut order = vec![0_u32; views.len()];
    for (place, (_, view)) in (0..).zip(views) {
        let slot = &mut next[usize::from(bits(view))];
        order[*slot as usize] = place;
        *slot += 1;
    }
    let mut pairs = Vec::new();
    for (place, (first, view)) in (0_u32..).zip(views) {
        let own = bits(view);
        let probes = std::iter::once(own).chain((0..BAND_BITS).map(|bit| own ^ (1 << bit)));
        for probe in probes {
            let range = starts[usize::from(probe)] as usize..starts[usize::from(probe) + 1] as usize;
            for &other in &order[range] {
                let (second, other_view) = &views[other as usize];
                if other > place && view.distance(other_view) <= MOST_DIFFERING_BITS {
                    pairs.push((*first, *second));
                }
            }
        }
    }
    pairs
}

/// Disjoint sets; the root of a set is its lowest member.
struct Sets(Vec<u32>);

impl Sets {
    fn new(len: usize) -> Self {
        Self((0..len as u32).collect())
    }

    fn root(&mut self, mut member: u32) -> u32 {
        while self.0[member as usize] != member {
            let above = self.0[self.0[member as usize] as usize];
            self.0[member as usize] = above;
            member = above;
        }
        member
    }

    fn join(&mut self, a: u32, b: u32) {
        let (a, b) = (self.root(a), self.root(b));
        self.0[a.max(b) as usize] = a.min(b);
    }
}

/// A picture of a dataset.
#[derive(Clone, Debug)]
pub(super) struct Listed<'a> {
    pub(super) split: &'a str,
    pub(super) id: InstanceId,
    pub(super) path: &'a str,
    pub(super) look: Look,
}

/// The rows of `duplicates.parquet` and their counts. A leak is a picture of `train` with a twin in another
/// split.
pub(super) fn find(pictures: &[Listed<'_>]) -> (Vec<DuplicateRow>, DuplicateCounts) {
    let looks: Vec<Look> = pictures.iter().map(|picture| picture.look).collect();
    let roots = groups(&looks);
    let mut members: std::collections::BTreeMap<u32, Vec<usize>> = std::collections::BTreeMap::new();
    for (place, &root) in roots.iter().enumerate() {
        if root as usize != place {
            members.entry(root).or_insert_with(|| vec![root as usize]).push(place);
        }
    }
    let (mut rows, mut counts) = (Vec::new(), DuplicateCounts::default());
    for (group, places) in (0..).zip(members.values()) {
        let first = &pictures[places[0]];
        let same = |place: &usize| pictures[*place].look.digest == first.look.digest;
        if places.iter().all(same) {
            counts.identical_groups += 1;
        } else {
            counts.visual_groups += 1;
        }
        counts.pictures += places.len() as u64;
        let is_training = |place: &&usize| pictures[**place].split == super::TRAINING_SPLIT;
        let training = places.iter().filter(is_training).count();
        if training < places.len() {
            counts.leaks += training as u64;
        }
        for place in places {
            let Listed { split, id, path, look } = &pictures[*place];
            rows.push(DuplicateRow {
                group,
                split: (*split).to_owned(),
                id: *id,
                path: (*path).to_owned(),
                identical: same(place),
                distance: look.view.zip(first.look.view).map(|(a, b)| a.distance(&b)),
            });
        }
    }
    (rows, counts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, Stream};

    fn random_views(count: u64) -> Vec<ViewHash> {
        let mut stream = Stream::new(1, Purpose::Report, 0, 0);
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

    #[test]
    fn every_pair_within_the_limit_is_found_and_none_beyond_it() {
        let mut stream = Stream::new(2, Purpose::Report, 0, 0);
        let mut views = random_views(500);
        let near: Vec<ViewHash> =
            views.iter().map(|&view| flipped(view, &mut stream, MOST_DIFFERING_BITS)).collect();
        let far: Vec<ViewHash> =
            views.iter().map(|&view| flipped(view, &mut stream, MOST_DIFFERING_BITS + 1)).collect();
        views.extend(near);
        views.extend(far);
        let looks: Vec<Look> = views.iter().enumerate().map(|(number, &view)| look(number, view)).collect();
        let found = groups(&looks);
        for place in 0..500 {
            assert_eq!(found[500 + place], place as u32, "a near one");
            // A far one may be near to the near one of its picture, but then it is in the group with reason.
            let alone = views[1000 + place].distance(&views[500 + place]) > MOST_DIFFERING_BITS;
            assert_eq!(found[1000 + place] == 1000 + place as u32, alone);
        }
    }

    #[test]
    fn groups_are_counted_and_leaks_are_training_pictures_with_a_twin_elsewhere() {
        let views = random_views(4);
        let picture = |split, id: u32, bytes: &[u8], view: usize| Listed {
            split,
            id: InstanceId(id),
            path: "p",
            look: Look { digest: Digest::of(bytes), view: Some(views[view]) },
        };
        let pictures = [
            picture("train", 0, b"a", 0),
            picture("train", 1, b"a", 0),
            picture("train", 2, b"b", 1),
            picture("val", 0, b"c", 1),
            picture("val", 1, b"d", 2),
        ];
        let (rows, counts) = find(&pictures);
        let expected = DuplicateCounts { identical_groups: 1, visual_groups: 1, pictures: 4, leaks: 1 };
        assert_eq!(counts, expected);
        let shown: Vec<_> =
            rows.iter().map(|row| (row.group, row.split.as_str(), row.id.0, row.identical)).collect();
        assert_eq!(
            shown,
            [(0, "train", 0, true), (0, "train", 1, true), (1, "train", 2, true), (1, "val", 0, false)]
        );
        assert!(rows.iter().all(|row| row.distance == Some(0)));
    }

    #[test]
    fn pictures_without_a_view_are_twins_only_byte_for_byte() {
        let plain = |bytes: &[u8]| Look { digest: Digest::of(bytes), view: None };
        assert_eq!(groups(&[plain(b"a"), plain(b"b"), plain(b"a")]), [0, 1, 0]);
    }
}
