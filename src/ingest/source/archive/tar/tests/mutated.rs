//! Tars that were damaged at random: reading them ends, and no member is outside of the file.

use std::io::Cursor;

use super::super::*;
use super::{end, entry, file, pax, sign};

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

/// A tar with an entry of each kind.
fn whole() -> Vec<u8> {
    let mut old = entry("old", b'S', "", &[5; 600]);
    old[257..265].copy_from_slice(b"ustar  \0");
    old[386..398].copy_from_slice(b"00000001000\0");
    old[398..410].copy_from_slice(b"00000001130\0");
    old[483..495].copy_from_slice(b"00000005670\0");
    sign(&mut old[..512]);
    let mut map = b"2\n512\n100\n1024\n30\n".to_vec();
    map.resize(512, 0);
    map.extend([7; 130]);
    [
        file("a.jpg", &[1; 700]),
        file("a.cls", b"12"),
        entry("b.jpg", b'1', "a.jpg", b""),
        entry("b.cls", b'1', "a.cls", b""),
        old,
        pax(&[("path", "long/name.jpg"), ("size", "3")]),
        file("n", b"123"),
        pax(&[("GNU.sparse.size", "900"), ("GNU.sparse.map", "0,100,512,30")]),
        file("one", &[3; 130]),
        pax(&[("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "2000")]),
        file("two", &map),
        entry("@LongLink", b'L', "", b"other/name.jpg\0"),
        file("o", b"1"),
        end(),
        file("second.jpg", &[9; 20]),
        entry("s", b'2', "a.jpg", b""),
        end(),
    ]
    .concat()
}

/// Damages it once; with a right checksum more often than not, so that the damage is met further on.
fn damage(tar: &mut Vec<u8>, random: &mut Random) {
    let blocks = tar.len() / 512;
    if blocks < 2 {
        return;
    }
    let block = 512 * random.below(blocks);
    match random.below(6) {
        0 => {
            let at = block + random.below(512);
            tar[at] = random.next() as u8;
        }
        1 => {
            let size = match random.below(3) {
                0 => random.next() >> 31,
                1 => random.below(5000) as u64,
                _ => (1 << 33) - 1,
            };
            tar[block + 124..block + 136].copy_from_slice(format!("{:011o}\0", size % (1 << 33)).as_bytes());
        }
        2 => {
            let other = 512 * random.below(blocks);
            let copy = tar[other..other + 512].to_vec();
            tar[block..block + 512].copy_from_slice(&copy);
        }
        3 => tar[block..block + 512].fill(0),
        4 => tar.truncate(block + random.below(513)),
        _ => tar[block + 156] = b"0123456789gxXLKSMDV\0"[random.below(20)],
    }
    if block + 512 <= tar.len() && random.below(4) > 0 {
        sign(&mut tar[block..block + 512]);
    }
}

/// Reads damaged tars and returns how many could be listed.
fn read_damaged(tars: u64) -> usize {
    let whole = whole();
    let mut listed = 0;
    for seed in 0..tars {
        let mut random = Random(seed);
        let mut tar = whole.clone();
        for _ in 0..=random.below(4) {
            damage(&mut tar, &mut random);
        }
        let len = tar.len() as u64;
        let found = read_headers("damaged", Cursor::new(&tar), len, &|path| path.ends_with(".cls"));
        match found {
            Ok(index) => {
                listed += 1;
                for member in &index.members {
                    assert_inside(seed, member, len);
                }
            }
            Err(IngestError::Tar { offset, .. }) => assert!(offset <= len, "seed {seed}: byte {offset}"),
            Err(other) => panic!("seed {seed}: {other}"),
        }
    }
    listed
}

fn assert_inside(seed: u64, member: &Member, len: u64) {
    let mut stored = 0;
    for piece in member.extent.pieces(member.bytes) {
        assert!(piece.physical + piece.bytes <= len, "seed {seed}: {member:?}");
        assert!(piece.logical + piece.bytes <= member.bytes, "seed {seed}: {member:?}");
        stored += piece.bytes;
    }
    assert!(member.bytes <= stored + MOST_HOLE_BYTES, "seed {seed}: {member:?}");
    assert!(member.text.as_ref().is_none_or(|text| text.len() as u64 == member.bytes), "seed {seed}");
}

#[test]
fn a_damaged_tar_is_an_error_or_lists_members_inside_of_it() {
    let listed = read_damaged(2_000);
    assert!((200..1_800).contains(&listed), "{listed} of 2000 could be listed");
}

#[test]
#[ignore = "minutes; for changes of the reader"]
fn many_damaged_tars_are_errors_or_list_members_inside_of_them() {
    assert!(read_damaged(200_000) > 0);
}
