//! Duplicates: images that are equal byte for byte, or look alike.
//!
//! Two images are linked if their bytes are equal, or if their view hashes differ in at most [`MOST_DIFFERING_BITS`]
//! bits. A group is a connected component of these links, so it includes near-duplicates of near-duplicates.
//!
//! Groups are a union built while scanning, so memory is linear in the number of images, however many pairs there
//! are. A hash has 16 bands. In at least one of them, two near hashes differ in at most one bit, so only the 17
//! buckets for each band are compared. Within a bucket, the members of one set form balls about a representative: a
//! comparison with the representative decides for the whole ball, unless the ball is near and of another set.
//!
//! [`view_hash`] describes the look of an image in 256 bits, which survive re-encoding and resizing. Luma is averaged
//! over 64×64 cells. Of its cosine transform, the 16×16 lowest frequencies without the constant are kept, and each
//! gives a bit: whether it is above their median. All sums are integers, so the bits are the same on every machine.
//!
//! # Source
//! The design follows Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, section
//! 3.2, with the grid of PDQ (Facebook, "The TMK+PDQF Video-Hashing Algorithm and the PDQ Image-Hashing
//! Algorithm", 2019): a larger grid distinguishes more images.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use rayon::prelude::*;

use super::validate::ImageInfo;
use super::{PROGRAM, TRAINING_SPLIT};
use crate::dataset::{
    DatasetError, DuplicateCounts, DuplicateRow, IndexRow, IngestRecord, Manifest, ViewHash, read_duplicates,
    write_duplicates,
};
use crate::image::Luma;
use crate::storage::{Digest, Location};

/// Number of bits of a band: two near views agree in some band except for at most one bit.
const BAND_BITS: u32 = 16;
const BANDS: usize = 256 / BAND_BITS as usize;
const BUCKETS: usize = 1 << BAND_BITS;
/// Radius up to which members of one set join a ball.
const MOST_RADIUS: u32 = 2 * MOST_DIFFERING_BITS;

// A band with one differing bit is found in a neighbouring bucket; two in each band are beyond the limit.
const _: () = assert!((MOST_DIFFERING_BITS as usize) < 2 * BANDS);

/// Rows of every split, in the order of their ids.
pub(super) type Index = BTreeMap<String, Vec<IndexRow>>;

/// Groups all images of a dataset, and publishes `duplicates.parquet`. The images of the `existing` dataset are not
/// compared again. Without `near`, only equal bytes make a group.
///
/// # Errors
/// If the store fails.
pub(super) fn publish_duplicates(
    dest: &Location,
    index: &Index,
    existing: Option<&Manifest>,
    near: bool,
) -> Result<DuplicateCounts, DatasetError> {
    let images: Vec<SplitRow<'_>> = split_rows(index).collect();
    let looks: Vec<Look> = images.iter().map(|(_, row)| Look::of(row.image, row.view, near)).collect();
    // In each split, the instances of the existing dataset come first.
    let before = |split: &str| {
        existing.and_then(|manifest| manifest.splits.get(split)).map_or(0, |split| split.instances)
    };
    let is_new = |(split, row): &SplitRow<'_>| row.id.row() as u64 >= before(split);
    let known = match existing {
        Some(manifest) if near => known_links(dest, manifest, &images, is_new)?,
        _ => None,
    };
    let compares_all = known.is_none();
    let groups =
        groups(&looks, known.unwrap_or_default(), |image| compares_all || is_new(&images[image as usize]));
    let rows = rows(&images, &groups);
    write_duplicates(dest, &rows)?;
    Ok(count(&rows))
}

/// Returns the `accepted` training images that have a near-duplicate in another split, each by its position in the
/// part, with the name of that image.
pub(super) fn find_leaks(index: &Index, accepted: &[(usize, ImageInfo)], near: bool) -> Vec<(usize, String)> {
    let others: Vec<SplitRow<'_>> = split_rows(index).filter(|(split, _)| *split != TRAINING_SPLIT).collect();
    let mut looks: Vec<Look> = others.iter().map(|(_, row)| Look::of(row.image, row.view, near)).collect();
    looks.extend(accepted.iter().map(|(_, info)| Look::of(info.digest, info.view, near)));
    let roots = groups(&looks, Vec::new(), |_| true);
    // The root of a group is its first member, so a group with an image of another split has such a root.
    accepted
        .iter()
        .zip(&roots[others.len()..])
        .filter_map(|((position, _), &root)| {
            let (split, row) = others.get(root as usize)?;
            Some((*position, format!("{split} {}", row.path)))
        })
        .collect()
}

/// An image of a dataset, as its split and its row.
type SplitRow<'a> = (&'a str, &'a IndexRow);

fn split_rows(index: &Index) -> impl Iterator<Item = SplitRow<'_>> {
    index.iter().flat_map(|(split, rows)| rows.iter().map(move |row| (split.as_str(), row)))
}

/// Returns pairs of images of one group, which join the groups of the images that are not new; `None` if the known
/// groups are not reliable.
fn known_links(
    dest: &Location,
    existing: &Manifest,
    images: &[SplitRow<'_>],
    is_new: impl Fn(&SplitRow<'_>) -> bool,
) -> Result<Option<Vec<(u32, u32)>>, DatasetError> {
    // Another program may have another limit; a record without near-duplicates lacks pairs.
    let is_like_ours =
        |record: &IngestRecord| record.program == PROGRAM && !record.options.contains_key("near_duplicates");
    if !existing.splits.values().flat_map(|split| &split.ingest).all(is_like_ours) {
        return Ok(None);
    }
    let rows = match read_duplicates(dest) {
        Ok(rows) => rows,
        Err(DatasetError::Missing { .. } | DatasetError::Damaged { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    // A killed ingest may have replaced the file; then its rows or counts differ from the manifest's.
    if count(&rows) != existing.duplicates {
        return Ok(None);
    }
    let mut starts: BTreeMap<&str, usize> = BTreeMap::new();
    for (position, (split, _)) in images.iter().enumerate() {
        starts.entry(split).or_insert(position);
    }
    let position = |row: &DuplicateRow| {
        let position = starts.get(row.split.as_str())? + row.id.row();
        let image = images.get(position)?;
        let is_it = image.0 == row.split && image.1.id == row.id && image.1.path == row.path;
        (is_it && !is_new(image)).then_some(position as u32)
    };
    let Some(positions) = rows.iter().map(position).collect::<Option<Vec<u32>>>() else {
        return Ok(None);
    };
    let pairs = rows.windows(2).zip(positions.windows(2));
    let pairs = pairs.filter(|(rows, _)| rows[0].group == rows[1].group);
    Ok(Some(pairs.map(|(_, positions)| (positions[0], positions[1])).collect()))
}

/// Digest and view by which an image is compared.
#[derive(Clone, Copy, Debug)]
struct Look {
    digest: Digest,
    view: Option<ViewHash>,
}

impl Look {
    /// Makes the look of an image; the view counts only with `near`.
    fn of(digest: Digest, view: Option<ViewHash>, near: bool) -> Self {
        Self { digest, view: view.filter(|_| near) }
    }
}

/// Returns the group of each image: the position of its first member. An image without duplicates is its own group.
///
/// The groups of images for which `is_new` is false are known: `known` has pairs of members of one group. Only new
/// images are compared with the others.
fn groups(looks: &[Look], known: Vec<(u32, u32)>, is_new: impl Fn(u32) -> bool) -> Vec<u32> {
    let sets = &Sets::new(looks.len());
    known.into_iter().for_each(|(one, other)| sets.join(one, other));
    let mut order: Vec<u32> = (0..looks.len() as u32).collect();
    let digest = |&image: &u32| looks[image as usize].digest;
    order.par_sort_unstable_by_key(|image| (digest(image), *image));
    for pair in order.windows(2).filter(|pair| digest(&pair[0]) == digest(&pair[1])) {
        sets.join(pair[0], pair[1]);
    }
    drop(order);
    // Each view occurs once, so that many equal images are not compared with each other.
    let mut views: Vec<Viewed> = looks
        .iter()
        .zip(0..)
        .filter_map(|(look, image)| Some(Viewed { view: look.view?, image, is_new: is_new(image) }))
        .collect();
    views.par_sort_unstable_by_key(|viewed| (viewed.view, viewed.image));
    views.dedup_by(|later, first| {
        let equal = later.view == first.view;
        if equal {
            sets.join(first.image, later.image);
            // A view that an older image has was compared before.
            first.is_new &= later.is_new;
        }
        equal
    });
    views.sort_unstable_by_key(|viewed| viewed.image);
    for band in 0..BANDS {
        Band::new(&views, band, sets).link();
    }
    sets.roots()
}

/// A distinct view, and the first image that has it.
struct Viewed {
    view: ViewHash,
    image: u32,
    /// Whether the view was not compared with the older ones yet.
    is_new: bool,
}

/// Views in the buckets of one band.
struct Band<'a> {
    views: &'a [Viewed],
    sets: &'a Sets,
    /// Indices of views, bucket after bucket.
    order: Vec<u32>,
    /// Start of each bucket in the order.
    starts: Vec<u32>,
    /// Whether each bucket has a new view.
    has_new: Vec<bool>,
}

/// Views of a bucket that are in one set and within a radius of the first.
struct Ball {
    first: u32,
    others: Vec<u32>,
    radius: u32,
}

impl Ball {
    fn members(&self) -> impl Iterator<Item = u32> {
        std::iter::once(self.first).chain(self.others.iter().copied())
    }
}

impl<'a> Band<'a> {
    fn new(views: &'a [Viewed], band: usize, sets: &'a Sets) -> Self {
        let bucket = |viewed: &Viewed| {
            usize::from((viewed.view.0[band / 4] >> (BAND_BITS as usize * (band % 4))) as u16)
        };
        let (mut starts, mut has_new) = (vec![0_u32; BUCKETS + 1], vec![false; BUCKETS]);
        for viewed in views {
            starts[bucket(viewed) + 1] += 1;
            has_new[bucket(viewed)] |= viewed.is_new;
        }
        for value in 1..starts.len() {
            starts[value] += starts[value - 1];
        }
        let mut next = starts.clone();
        let mut order = vec![0_u32; views.len()];
        for (index, viewed) in (0..).zip(views) {
            let slot = &mut next[bucket(viewed)];
            order[*slot as usize] = index;
            *slot += 1;
        }
        Self { views, sets, order, starts, has_new }
    }

    /// Joins the sets of all views that are near in this band.
    fn link(&self) {
        let neighbours = |bucket: usize| (0..BAND_BITS).map(move |bit| bucket ^ (1 << bit));
        let is_met = |bucket: usize| {
            self.has_new[bucket] || neighbours(bucket).any(|neighbour| self.has_new[neighbour])
        };
        let is_occupied = |bucket: &usize| self.starts[*bucket] < self.starts[*bucket + 1];
        let met: Vec<usize> = (0..BUCKETS).filter(is_occupied).filter(|&bucket| is_met(bucket)).collect();
        let balls: Vec<Vec<Ball>> = met.par_iter().map(|&bucket| self.balls(bucket)).collect();
        let mut number_of = vec![None; BUCKETS];
        met.iter().enumerate().for_each(|(number, &bucket)| number_of[bucket] = Some(number));
        met.par_iter().zip(&balls).for_each(|(&bucket, own)| {
            if self.has_new[bucket] {
                for (number, ball) in own.iter().enumerate() {
                    own[..number].iter().for_each(|other| self.link_balls(ball, other));
                }
            }
            for neighbour in neighbours(bucket).filter(|&neighbour| neighbour > bucket) {
                let Some(number) = number_of[neighbour] else { continue };
                if self.has_new[bucket] || self.has_new[neighbour] {
                    let others = &balls[number];
                    own.iter().for_each(|ball| others.iter().for_each(|other| self.link_balls(ball, other)));
                }
            }
        });
    }

    /// Distributes the views of a bucket over balls, and joins the set of each with that of its ball.
    fn balls(&self, bucket: usize) -> Vec<Ball> {
        let mut balls: Vec<Ball> = Vec::new();
        for &index in &self.order[self.starts[bucket] as usize..self.starts[bucket + 1] as usize] {
            let fitting = balls.iter_mut().find_map(|ball| {
                let distance = self.distance(index, ball.first);
                let is_near = distance <= MOST_DIFFERING_BITS;
                let fits = is_near || distance <= MOST_RADIUS && self.is_joined(index, ball.first);
                fits.then_some((ball, distance))
            });
            match fitting {
                Some((ball, distance)) => {
                    self.join(index, ball.first);
                    ball.others.push(index);
                    ball.radius = ball.radius.max(distance);
                }
                None => balls.push(Ball { first: index, others: Vec::new(), radius: 0 }),
            }
        }
        balls
    }

    /// Joins the sets of two balls if a view of one is near a view of the other.
    fn link_balls(&self, one: &Ball, other: &Ball) {
        let (first, second) = (one.first, other.first);
        if self.distance(first, second) > one.radius + other.radius + MOST_DIFFERING_BITS
            || self.is_joined(first, second)
        {
            return;
        }
        let reach = other.radius + MOST_DIFFERING_BITS;
        let mut in_reach = one.members().filter(|&member| self.distance(member, second) <= reach);
        let near = |member: u32| {
            other.members().any(|candidate| self.distance(member, candidate) <= MOST_DIFFERING_BITS)
        };
        if in_reach.any(near) {
            self.join(first, second);
        }
    }

    fn distance(&self, one: u32, other: u32) -> u32 {
        self.views[one as usize].view.distance(&self.views[other as usize].view)
    }

    fn is_joined(&self, one: u32, other: u32) -> bool {
        let image = |index: u32| self.views[index as usize].image;
        self.sets.root(image(one)) == self.sets.root(image(other))
    }

    fn join(&self, one: u32, other: u32) {
        self.sets.join(self.views[one as usize].image, self.views[other as usize].image);
    }
}

/// Disjoint sets, which threads join concurrently; the root of a set is its lowest member.
struct Sets(Vec<AtomicU32>);

impl Sets {
    fn new(len: usize) -> Self {
        Self((0..len as u32).map(AtomicU32::new).collect())
    }

    fn root(&self, mut member: u32) -> u32 {
        loop {
            let above = self.0[member as usize].load(Ordering::Relaxed);
            if above == member {
                return member;
            }
            // Shortens the path for later calls. Paths only lead to lower members, so a lost race is harmless.
            let next = self.0[above as usize].load(Ordering::Relaxed);
            self.0[member as usize].fetch_min(next, Ordering::Relaxed);
            member = above;
        }
    }

    fn join(&self, one: u32, other: u32) {
        let (mut one, mut other) = (self.root(one), self.root(other));
        while one != other {
            let (low, high) = (one.min(other), one.max(other));
            let hung =
                self.0[high as usize].compare_exchange(high, low, Ordering::Relaxed, Ordering::Relaxed);
            if hung.is_ok() {
                return;
            }
            // Another thread has joined the set of `high` to another.
            (one, other) = (self.root(high), self.root(low));
        }
    }

    fn roots(&self) -> Vec<u32> {
        (0..self.0.len() as u32).map(|member| self.root(member)).collect()
    }
}

/// Returns the rows of `duplicates.parquet` for these groups (see [`groups`]).
fn rows(images: &[SplitRow<'_>], groups: &[u32]) -> Vec<DuplicateRow> {
    let mut members: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (position, &root) in groups.iter().enumerate() {
        if root as usize != position {
            members.entry(root).or_insert_with(|| vec![root as usize]).push(position);
        }
    }
    let mut rows = Vec::new();
    for (group, positions) in (0..).zip(members.values()) {
        let (_, first) = images[positions[0]];
        for &position in positions {
            let (split, row) = images[position];
            rows.push(DuplicateRow {
                group,
                split: split.to_owned(),
                id: row.id,
                path: row.path.clone(),
                identical: row.image == first.image,
                distance: row.view.zip(first.view).map(|(a, b)| a.distance(&b)),
            });
        }
    }
    rows
}

/// Counts rows, of which those of a group are consecutive. A leak is an image of `train` with a near-duplicate in
/// another split.
fn count(rows: &[DuplicateRow]) -> DuplicateCounts {
    let mut counts = DuplicateCounts { images: rows.len() as u64, ..DuplicateCounts::default() };
    for group in rows.chunk_by(|a, b| a.group == b.group) {
        if group.iter().all(|row| row.identical) {
            counts.identical_groups += 1;
        } else {
            counts.visual_groups += 1;
        }
        let training = group.iter().filter(|row| row.split == TRAINING_SPLIT).count();
        if training < group.len() {
            counts.leaks += training as u64;
        }
    }
    counts
}

/// Number of cells on a side of the grid.
const GRID: usize = 64;
/// Number of frequencies kept in each direction.
const FREQUENCIES: usize = 16;
/// Maximum number of differing bits of near-duplicates. Re-encoded and resized images differ in at most 18,
/// different photographs in 92 or more (measured on ImageNet, docs/performance.md).
pub(crate) const MOST_DIFFERING_BITS: u32 = 20;
/// Standard deviation of the cells, in grey levels, below which an image has no view, since its bits would be
/// noise.
const LEAST_CONTRAST: f64 = 4.0;
/// Value of one in the fixed-point numbers of the transform's table.
const ONE: f64 = 16384.0;

/// Computes the view hash of an image; `None` if the image has no contrast.
pub(crate) fn view_hash(luma: &Luma) -> Option<ViewHash> {
    let cells = cells(luma);
    if contrast(&cells) < LEAST_CONTRAST {
        return None;
    }
    let spectrum = spectrum(&cells);
    let mut sorted = spectrum;
    let (_, median, _) = sorted.select_nth_unstable(spectrum.len() / 2);
    let mut words = [0_u64; 4];
    for (bit, value) in spectrum.iter().enumerate() {
        words[bit / 64] |= u64::from(value > median) << (bit % 64);
    }
    Some(ViewHash(words))
}

/// Returns the mean luma of each cell, in 1/256 grey levels.
fn cells(luma: &Luma) -> Vec<i64> {
    let (width, height) = (luma.width as usize, luma.height as usize);
    // If a side is smaller than the grid, several cells share a pixel.
    let bounds = |cell: usize, side: usize| {
        let start = cell * side / GRID;
        start..((cell + 1) * side / GRID).max(start + 1)
    };
    let mut cells = Vec::with_capacity(GRID * GRID);
    let mut columns = vec![0_u32; width];
    for band in 0..GRID {
        let rows = bounds(band, height);
        columns.fill(0);
        for row in rows.clone() {
            let line = &luma.values[row * width..(row + 1) * width];
            for (sum, &value) in columns.iter_mut().zip(line) {
                *sum += u32::from(value);
            }
        }
        for cell in 0..GRID {
            let range = bounds(cell, width);
            let pixels = (range.len() * rows.len()) as u64;
            let sum: u64 = columns[range].iter().map(|&sum| u64::from(sum)).sum();
            cells.push((sum * 256 / pixels) as i64);
        }
    }
    cells
}

fn contrast(cells: &[i64]) -> f64 {
    let count = cells.len() as f64;
    let (sum, squares) =
        cells.iter().fold((0, 0), |(sum, squares), &cell| (sum + cell, squares + cell * cell));
    let mean = sum as f64 / count;
    (squares as f64 / count - mean * mean).max(0.0).sqrt() / 256.0
}

/// Returns the lowest frequencies without the constant, row after row.
fn spectrum(cells: &[i64]) -> [i64; FREQUENCIES * FREQUENCIES] {
    let table = cosines();
    // Columns first: [frequency, cell].
    let mut columns = [0_i64; FREQUENCIES * GRID];
    for (frequency, out) in columns.chunks_exact_mut(GRID).enumerate() {
        for (row, line) in cells.chunks_exact(GRID).enumerate() {
            let weight = table[frequency * GRID + row];
            for (sum, &cell) in out.iter_mut().zip(line) {
                *sum += weight * cell;
            }
        }
    }
    let mut spectrum = [0; FREQUENCIES * FREQUENCIES];
    for (out, line) in spectrum.chunks_exact_mut(FREQUENCIES).zip(columns.chunks_exact(GRID)) {
        for (frequency, value) in out.iter_mut().enumerate() {
            let weights = &table[frequency * GRID..(frequency + 1) * GRID];
            *value = weights.iter().zip(line).map(|(weight, sum)| weight * (sum >> 8)).sum();
        }
    }
    spectrum
}

/// Returns `cos(π/64 · (cell + ½) · frequency)` for the frequencies 1 to 16, in fixed point.
fn cosines() -> &'static [i64; FREQUENCIES * GRID] {
    static TABLE: OnceLock<[i64; FREQUENCIES * GRID]> = OnceLock::new();
    TABLE.get_or_init(|| {
        std::array::from_fn(|at| {
            let (frequency, cell) = (at / GRID + 1, at % GRID);
            let angle = std::f64::consts::PI / GRID as f64 * (cell as f64 + 0.5) * frequency as f64;
            (angle.cos() * ONE).round() as i64
        })
    })
}

#[cfg(test)]
mod tests;
