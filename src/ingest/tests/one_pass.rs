//! One pass over the images equals two passes after a rejection.

use super::*;
use crate::image::entry_points;

/// The shards of the split, by name.
fn shards(at: &Fixture) -> Vec<(String, Vec<u8>)> {
    files(&at.dest).into_iter().filter(|(name, _)| name.starts_with("train/")).collect()
}

fn lenient(at: &Fixture) -> IngestOptions {
    let max_reject_fraction = Fraction::new(0.9).expect("valid");
    IngestOptions { max_reject_fraction, ..options(&at.source, &at.dest) }
}

/// Ingests twice over: with one pass as far as it goes, and with two from the start.
fn both_ways(change: impl Fn(&Path)) -> [Vec<(String, Vec<u8>)>; 2] {
    [false, true].map(|drop_leaks| {
        let at = fixture();
        folder(&at.source);
        change(&at.source);
        ingest(&IngestOptions { drop_leaks, ..lenient(&at) }, &Quiet).expect("ingested");
        let manifest = Manifest::read(&location(&at.dest)).expect("a manifest");
        verify(&location(&at.dest), &manifest, &Quiet).expect("whole");
        let shards = shards(&at);
        let named: Vec<&String> = manifest.splits["train"].shards.iter().map(|shard| &shard.path).collect();
        assert_eq!(shards.iter().map(|(name, _)| name).collect::<Vec<_>>(), named, "no strays");
        shards
    })
}

#[test]
fn one_pass_gives_the_shards_that_two_give() {
    let [one, two] = both_ways(|_| {});
    assert!(one.len() > 2 && one == two);
}

#[test]
fn every_baseline_jpeg_gets_its_entry_points_unless_no_pixel_is_decoded() {
    for check in [CheckDepth::Full, CheckDepth::Header] {
        let at = fixture();
        folder(&at.source);
        ingest(&IngestOptions { check, ..options(&at.source, &at.dest) }, &Quiet).expect("ingested");
        let manifest = Manifest::read(&location(&at.dest)).expect("a manifest");
        for row in rows(&location(&at.dest), &manifest) {
            let expected = entry_points(&row.bytes).filter(|_| check == CheckDepth::Full);
            assert_eq!(row.entry_points.as_deref(), expected.as_deref(), "{}", row.path);
        }
    }
}

#[test]
fn wherever_an_image_is_rejected_the_shards_are_those_of_two_passes() {
    for bad in 0..6 {
        let [one, two] = both_ways(|source| {
            fs::write(source.join(format!("cat/{bad}.jpg")), &jpeg(3)[..100]).expect("cut");
        });
        assert!(one == two, "{bad}");
    }
}

#[test]
fn a_failed_ingest_leaves_no_shards() {
    let at = fixture();
    folder(&at.source);
    fs::write(at.source.join("cat/5.jpg"), &jpeg(3)[..100]).expect("cut");
    ingest(&options(&at.source, &at.dest), &Quiet).expect_err("1 of 12 is too many");
    assert_eq!(shards(&at), []);
    // What was found out is not found out again: the images may be gone.
    replace_unnoticed(&at.source.join("cat/5.jpg"), &[0; 100]);
    ingest(&lenient(&at), &Quiet).expect("ingested");
    let rejects = fs::read_to_string(at.dest.join("rejects/train.jsonl")).expect("rejects");
    assert!(rejects.contains("JPEG: "), "{rejects}");
}

#[test]
fn appended_images_are_numbered_on_either_way() {
    let [one, two] = [false, true].map(|is_bad| {
        let at = fixture();
        folder(&at.source);
        ingest(&options(&at.source, &at.dest), &Quiet).expect("ingested");
        let more = at.source.with_file_name("more");
        fs::create_dir_all(more.join("cat")).expect("a folder");
        (10..15).for_each(|number| {
            fs::write(more.join(format!("cat/{number}.jpg")), jpeg(number)).expect("a file")
        });
        if is_bad {
            fs::write(more.join("cat/99.jpg"), b"bad").expect("a file");
        }
        let max_reject_fraction = Fraction::new(0.9).expect("valid");
        let append = IngestOptions { append: true, max_reject_fraction, ..options(&more, &at.dest) };
        ingest(&append, &Quiet).expect("appended");
        let dataset = append.dest.clone();
        let manifest = Manifest::read(&dataset).expect("a manifest");
        verify(&dataset, &manifest, &Quiet).expect("whole");
        rows(&dataset, &manifest).into_iter().map(|row| (row.id, row.path)).collect::<Vec<_>>()
    });
    assert_eq!(one, two);
}
