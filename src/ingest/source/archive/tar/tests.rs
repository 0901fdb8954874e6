use std::fs;
use std::io::Cursor;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use super::*;
use crate::rng::{Purpose, Stream};

/// Makes a header with its padded data.
fn entry(name: &str, kind: u8, link: &str, data: &[u8]) -> Vec<u8> {
    let mut tar = header(name, kind, link, data.len() as u64).to_vec();
    tar.extend(data);
    tar.resize(tar.len().next_multiple_of(512), 0);
    tar
}

fn header(name: &str, kind: u8, link: &str, size: u64) -> [u8; 512] {
    let mut block = [0; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..108].copy_from_slice(b"0000644\0");
    block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    block[156] = kind;
    block[157..157 + link.len()].copy_from_slice(link.as_bytes());
    block[257..265].copy_from_slice(b"ustar\x0000");
    sign(&mut block);
    block
}

fn sign(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn file(name: &str, data: &[u8]) -> Vec<u8> {
    entry(name, b'0', "", data)
}

/// Makes a sparse file of 3000 bytes in GNU's old format, whose bytes from 512 to 1024 are stored first.
fn old_sparse(name: &str, stored: &[u8]) -> Vec<u8> {
    let mut tar = entry(name, b'S', "", stored);
    tar[257..265].copy_from_slice(b"ustar  \0");
    tar[386..398].copy_from_slice(b"00000001000\0");
    tar[398..410].copy_from_slice(b"00000001000\0");
    tar[483..495].copy_from_slice(b"00000005670\0");
    sign(&mut tar[..512]);
    tar
}

/// Makes the end of a tar.
fn end() -> Vec<u8> {
    vec![0; 1024]
}

fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let mut text = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let length = (1..).find(|digits| (rest + digits).to_string().len() == *digits);
        text.extend(format!("{} {key}={value}\n", rest + length.expect("a length")).as_bytes());
    }
    entry("PaxHeaders/x", b'x', "", &text)
}

fn read(tar: &[u8]) -> Result<Index, IngestError> {
    read_headers("a.tar", Cursor::new(tar), tar.len() as u64, &|path| path.ends_with(".cls"))
}

fn contents(tar: &[u8], member: &Member) -> Vec<u8> {
    let read = member.extent.read(member.bytes, |offset, buffer| {
        buffer.copy_from_slice(&tar[offset as usize..][..buffer.len()]);
        Ok::<_, IngestError>(())
    });
    read.expect("in memory").to_vec()
}

/// Returns path and bytes of all members, in the tar's order.
fn members(tar: &[u8]) -> Vec<(String, Vec<u8>)> {
    let index = read(tar).expect("a tar");
    index.members.iter().map(|member| (member.path.clone(), contents(tar, member))).collect()
}

fn expected(members: &[(&str, &str)]) -> Vec<(String, Vec<u8>)> {
    members.iter().map(|(path, text)| ((*path).to_owned(), text.as_bytes().to_vec())).collect()
}

/// Returns the byte that the error names, and its reason.
fn error(tar: &[u8]) -> (u64, String) {
    match read(tar).expect_err("a wrong tar") {
        IngestError::Tar { tar, offset, reason } if tar == "a.tar" => (offset, reason),
        other => panic!("{other}"),
    }
}

#[track_caller]
fn assert_error(tar: &[u8], offset: u64, part: &str) {
    let (found, reason) = error(tar);
    assert_eq!(found, offset, "{reason}");
    assert!(reason.contains(part), "{reason}");
}

#[test]
fn a_hard_link_is_the_member_that_has_the_name_at_that_point() {
    let tar = [
        file("a.jpg", b"first"),
        entry("./b.jpg", b'1', "./a.jpg", b""),
        file("a.jpg", b"second"),
        entry("c.jpg", b'1', "a.jpg", b""),
        entry("d.jpg", b'1', "b.jpg", b""),
        end(),
    ];
    let found = members(&tar.concat());
    let all = [("b.jpg", "first"), ("a.jpg", "second"), ("c.jpg", "second"), ("d.jpg", "first")];
    assert_eq!(found, expected(&all));
}

#[test]
fn a_hard_link_without_its_target_is_listed_with_the_reason() {
    let tar = [
        entry("early", b'1', "a", b""),
        file("a", b"1"),
        entry("s", b'2', "a", b""),
        entry("to-symlink", b'1', "s", b""),
        entry("to-link", b'1', "early", b""),
        entry("out", b'1', "../a", b""),
        end(),
    ];
    let index = read(&tar.concat()).expect("a tar");
    let faults = [
        ("early", Fault::DanglingHardLink),
        ("s", Fault::SymbolicLink),
        ("to-symlink", Fault::DanglingHardLink),
        ("to-link", Fault::DanglingHardLink),
        ("out", Fault::DanglingHardLink),
    ];
    assert_eq!(index.faults, faults.map(|(path, fault)| (path.to_owned(), fault)));
    assert_eq!(index.members.len(), 1);
}

#[test]
fn the_last_entry_of_a_name_is_what_unpacking_leaves() {
    let tar = [
        file("a", b"1"),
        file("b", b"2"),
        entry("a", b'2', "b", b""),
        entry("c", b'2', "b", b""),
        file("./c", b"3"),
        end(),
    ];
    let tar = tar.concat();
    assert_eq!(members(&tar), expected(&[("b", "2"), ("c", "3")]));
    let Index { faults, replaced, .. } = read(&tar).expect("a tar");
    assert_eq!((faults, replaced), (vec![("a".into(), Fault::SymbolicLink)], vec!["a".to_owned()]));
}

#[test]
fn entries_that_are_not_files_are_listed_with_their_reason() {
    let mut not_text = header("x.jpg", b'0', "", 0);
    not_text[0] = 0xFF;
    sign(&mut not_text);
    let entries = [
        (entry("d/", b'5', "", b""), None),
        (entry("old/", 0, "", b""), None),
        (entry("null", b'3', "", b""), Some(Fault::NotAFile)),
        (entry("pipe", b'6', "", b""), Some(Fault::NotAFile)),
        (entry("rest", b'M', "", b"data"), Some(Fault::NotAFile)),
        (entry("odd", b'Q', "", b"data"), Some(Fault::NotAFile)),
        (file("/root", b"1"), Some(Fault::LeadsOutside)),
        (file("d/../../x", b"1"), Some(Fault::LeadsOutside)),
        (not_text.to_vec(), Some(Fault::NotUtf8)),
    ];
    let mut tar = Vec::new();
    entries.iter().for_each(|(entry, _)| tar.extend(entry));
    let index = read(&[tar, file("good", b"1"), end()].concat()).expect("a tar");
    let found: Vec<Fault> = index.faults.into_iter().map(|(_, fault)| fault).collect();
    assert_eq!(found, entries.iter().filter_map(|(_, fault)| *fault).collect::<Vec<_>>());
    assert_eq!(index.members.len(), 1);
}

#[test]
fn texts_are_kept_where_the_caller_wants_them_and_links_share_them() {
    let tar = [
        file("a.cls", b"7"),
        file("a.txt", b"8"),
        entry("b.cls", b'1', "a.cls", b""),
        entry("c.cls", b'1', "a.txt", b""),
        entry("d.txt", b'1', "a.cls", b""),
        file("long.cls", &vec![b'1'; (1 << 20) + 1]),
        end(),
    ];
    let index = read(&tar.concat()).expect("a tar");
    let texts: Vec<(&str, Option<&[u8]>)> =
        index.members.iter().map(|member| (member.path.as_str(), member.text.as_deref())).collect();
    let all = [
        ("a.cls", Some(&b"7"[..])),
        ("a.txt", None),
        ("b.cls", Some(b"7")),
        ("c.cls", Some(b"8")),
        ("d.txt", None),
        ("long.cls", None),
    ];
    assert_eq!(texts, all);
}

#[test]
fn names_and_sizes_come_from_extended_headers() {
    let long = format!("{}/x.jpg", "n".repeat(200));
    let mut by_pax = header("short", b'0', "", 0).to_vec();
    by_pax.extend(entry("", b'0', "", b"12345")[512..].to_vec());
    let mut prefixed = header("x.jpg", b'0', "", 0);
    prefixed[345..351].copy_from_slice(b"folder");
    sign(&mut prefixed);
    let tar = [
        entry("pax_global_header", b'g', "", b"19 comment=acommit\n"),
        entry("././@LongLink", b'L', "", format!("{long}\0").as_bytes()),
        file("nnn", b"1"),
        pax(&[("path", "ünicode\n.jpg"), ("size", "5"), ("mtime", "1.5")]),
        by_pax,
        entry("././@LongLink", b'K', "", format!("{long}\0").as_bytes()),
        entry("link", b'1', "nnn", b""),
        prefixed.to_vec(),
        end(),
    ];
    let tar = tar.concat();
    let all = [(long.as_str(), "1"), ("ünicode\n.jpg", "12345"), ("link", "1"), ("folder/x.jpg", "")];
    assert_eq!(members(&tar), expected(&all));
}

#[test]
fn a_name_for_all_members_is_an_error() {
    let mut global = pax(&[("path", "x")]);
    global[156] = b'g';
    sign(&mut global[..512]);
    assert_error(&[global, file("a", b"1"), end()].concat(), 0, "malformed extended header");
}

#[test]
fn tars_after_each_other_are_read_as_one() {
    let (a, b) = (file("a", b"1"), file("b", b"2"));
    let both = expected(&[("a", "1"), ("b", "2")]);
    let padding = vec![0; 9 * 1024];
    assert_eq!(members(&[a.clone(), end(), b.clone(), end()].concat()), both, "cat");
    assert_eq!(members(&[a.clone(), end(), padding.clone(), b.clone(), end()].concat()), both, "cat, padded");
    assert_eq!(members(&[a.clone(), b, end(), padding, vec![0; 100]].concat()), both, "tar -A");
    assert_eq!(members(&[a.clone(), vec![0; 512]].concat()), expected(&[("a", "1")]), "one block at the end");
}

#[test]
fn a_damaged_or_cut_tar_names_the_byte() {
    let a = file("a.jpg", &[7; 600]);
    let length = a.len() as u64;
    let tar = [a.clone(), file("b.jpg", b"2"), end()].concat();
    let cut = |len: u64| &tar[..len as usize];
    assert_error(cut(100), 0, "cut in a header");
    assert_error(cut(512 + 300), 512, "cut in the member `a.jpg`");
    assert_error(cut(512 + 600), 512, "cut in the member `a.jpg`: it has 1112 bytes, 1536 are needed");
    assert_error(cut(length), length, "that end a tar are missing");
    assert_error(cut(length + 200), length, "cut in a header");
    let lone = [a.clone(), vec![0; 512], file("b.jpg", b"2"), end()].concat();
    assert_error(&lone, length, "a block of zeros where a header was expected");
    assert_error(&[a.clone(), end(), b"\n".to_vec()].concat(), length + 1024, "data after the end");
    assert_error(&[a.clone(), end(), vec![1; 2048]].concat(), length + 1024, "data after the end");
    let mut changed = tar.clone();
    changed[length as usize + 2] ^= 1;
    assert_error(&changed, length, "wrong checksum");
    assert_error(&[pax(&[("path", "x")]), end()].concat(), 0, "without its member");
    assert_error(&[a, pax(&[("path", "x")])].concat(), length, "without its member");
}

#[test]
fn a_tar_of_nothing_is_an_error() {
    for tar in [vec![], end(), vec![0; 10_240], vec![0; 700]] {
        assert_error(&tar, 0, "holds no members");
    }
    let folder = [entry("d/", b'5', "", b""), end()].concat();
    assert!(read(&folder).expect("a tar").members.is_empty(), "a folder alone is something");
}

#[test]
fn a_size_beyond_the_file_is_an_error() {
    for size in ["9223372036854775807", "18446744073709551615", "18446744073709551616", "-1", ""] {
        let tar = [pax(&[("size", size)]), file("a", b"1"), end()].concat();
        let found = read(&tar);
        assert_eq!(found.is_ok(), size.is_empty(), "{size}");
    }
    let long = [&header("x", b'x', "", 17 << 20)[..], &file("a", b"1"), &end()].concat();
    assert_error(&long, 0, "an extended header of 17825792 bytes");
}

#[test]
fn sparse_members_of_all_formats_have_their_holes() {
    let stored = [vec![1; 512], vec![2; 100]].concat();
    let mut whole = vec![0; 3000];
    whole[512..1024].fill(1);
    whole[2048..2148].fill(2);
    let mut old = old_sparse("old.bmp", &stored)[..512].to_vec();
    old[482] = 1;
    sign(&mut old);
    let mut more = [0; 512];
    more[..12].copy_from_slice(b"00000004000\0");
    more[12..24].copy_from_slice(b"00000000144\0");
    let old = [old, more.to_vec(), file("", &stored)[512..].to_vec()].concat();
    let zero = [
        pax(&[
            ("GNU.sparse.size", "3000"),
            ("GNU.sparse.numblocks", "2"),
            ("GNU.sparse.offset", "512"),
            ("GNU.sparse.numbytes", "512"),
            ("GNU.sparse.offset", "2048"),
            ("GNU.sparse.numbytes", "100"),
        ]),
        file("zero.bmp", &stored),
    ];
    let one = [
        pax(&[
            ("GNU.sparse.size", "3000"),
            ("GNU.sparse.numblocks", "2"),
            ("GNU.sparse.name", "d/one.bmp"),
            ("GNU.sparse.map", "512,512,2048,100"),
        ]),
        file("GNUSparseFile.1/one.bmp", &stored),
    ];
    let mut map = b"3\n512\n512\n2048\n100\n3000\n0\n".to_vec();
    map.resize(512, 0);
    let two = [
        pax(&[
            ("GNU.sparse.major", "1"),
            ("GNU.sparse.minor", "0"),
            ("GNU.sparse.name", "two.bmp"),
            ("GNU.sparse.realsize", "3000"),
        ]),
        file("GNUSparseFile.1/two.bmp", &[map, stored].concat()),
    ];
    let tar = [old, zero.concat(), one.concat(), two.concat(), file("after", b"1"), end()].concat();
    let found = members(&tar);
    let names: Vec<&str> = found.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(names, ["old.bmp", "zero.bmp", "d/one.bmp", "two.bmp", "after"]);
    for (path, bytes) in &found[..4] {
        assert_eq!(*bytes, whole, "{path}");
    }
}

#[test]
fn a_sparse_map_that_does_not_fit_its_data_is_an_error() {
    for map in ["0,4", "0,3,1,2", "4,5", "0,2,9,3", "3,2,0,3", "0,5,9", "18446744073709551615,5"] {
        let records = pax(&[("GNU.sparse.size", "8"), ("GNU.sparse.map", map)]);
        let (_, reason) = error(&[records, file("a", b"12345"), end()].concat());
        assert!(reason.contains("malformed"), "{map}: {reason}");
    }
    let records = pax(&[("GNU.sparse.size", "9000000000000"), ("GNU.sparse.map", "0,5")]);
    let of_later_format =
        pax(&[("GNU.sparse.major", "2"), ("GNU.sparse.minor", "0"), ("GNU.sparse.size", "8")]);
    for records in [records, of_later_format] {
        let index = read(&[records, file("a", b"12345"), end()].concat()).expect("a tar");
        assert_eq!(index.faults, [("a".to_owned(), Fault::Sparse)]);
    }
}

/// Returns whether this program is installed and names itself by `word`.
fn is_installed(program: &str, word: &str) -> bool {
    let output = Command::new(program).arg("--version").output();
    output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(word))
}

/// Runs a program in a folder.
#[track_caller]
fn run(folder: &Path, command: &[&str]) {
    let output = Command::new(command[0]).args(&command[1..]).current_dir(folder).output().expect("it runs");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Makes files with many holes, hard links and long names, in two folders.
fn tree(root: &Path) {
    for folder in ["a", "b"] {
        fs::create_dir_all(root.join(folder)).expect("a folder");
        fs::write(root.join(folder).join("plain.jpg"), vec![b'p'; 777]).expect("a file");
    }
    for (name, runs, len) in
        [("few", 2, 200_000), ("many", 60, 2_000_000), ("tail", 1, 123_456), ("none", 0, 70_000)]
    {
        let file = fs::File::create_new(root.join("a").join(format!("{name}.bmp"))).expect("a file");
        file.set_len(len).expect("its length");
        for run in 0..runs {
            file.write_all_at(&[b'0' + run as u8; 5000], len / runs * run).expect("a run");
        }
    }
    fs::hard_link(root.join("a/plain.jpg"), root.join("b/link.jpg")).expect("a link");
    fs::hard_link(root.join("a/many.bmp"), root.join("b/many.bmp")).expect("a link");
    fs::write(root.join("b").join(format!("{}.jpg", "ü".repeat(100))), b"long").expect("a file");
}

fn assert_reads_as(root: &Path, tar: &Path) {
    let bytes = fs::read(tar).expect("a tar");
    let mut found = members(&bytes);
    found.sort();
    let mut files = Vec::new();
    for folder in ["a", "b"] {
        for entry in fs::read_dir(root.join(folder)).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.strip_prefix(root).expect("below").to_str().expect("text").to_owned();
            files.push((name, fs::read(&path).expect("a file")));
        }
    }
    files.sort();
    let names = |list: &[(String, Vec<u8>)]| list.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&found), names(&files), "{}", tar.display());
    assert!(found == files, "{}: the bytes of all files", tar.display());
}

#[test]
fn tars_of_gnu_tar_and_bsdtar_read_as_the_files_that_they_hold() {
    let dir = tempfile::tempdir().expect("a folder");
    let root = dir.path().join("tree");
    fs::create_dir(&root).expect("a folder");
    tree(&root);
    let mut made = Vec::new();
    if is_installed("tar", "GNU tar") {
        for (name, options) in [
            ("gnu", &["--format=gnu"][..]),
            ("sparse-gnu", &["-S", "--format=gnu"]),
            ("oldgnu", &["-S", "--format=oldgnu"]),
            ("posix", &["--format=posix"]),
            ("sparse-00", &["-S", "--format=posix", "--sparse-version=0.0"]),
            ("sparse-01", &["-S", "--format=posix", "--sparse-version=0.1"]),
            ("sparse-10", &["-S", "--format=posix", "--sparse-version=1.0"]),
        ] {
            let file = format!("../{name}.tar");
            run(&root, &[&["tar"], options, &["-cf", &file, "a", "b"]].concat());
            made.push(dir.path().join(format!("{name}.tar")));
        }
        run(&root, &["tar", "-S", "-cf", "../joined.tar", "a"]);
        run(&root, &["tar", "-S", "-cf", "../second.tar", "b"]);
        run(&root, &["tar", "-Af", "../joined.tar", "../second.tar"]);
        made.push(dir.path().join("joined.tar"));
    }
    if is_installed("bsdtar", "bsdtar") {
        for format in ["pax", "gnutar"] {
            let file = format!("../bsd-{format}.tar");
            run(&root, &["bsdtar", "--format", format, "-cf", &file, "a", "b"]);
            made.push(dir.path().join(format!("bsd-{format}.tar")));
        }
    }
    made.iter().for_each(|tar| assert_reads_as(&root, tar));
}

fn below(random: &mut Stream, limit: usize) -> usize {
    (random.range(0.0, 1.0) * limit as f64) as usize
}

/// Makes a tar with an entry of each kind.
fn whole() -> Vec<u8> {
    let mut map = b"2\n512\n100\n1024\n30\n".to_vec();
    map.resize(512, 0);
    map.extend([7; 130]);
    [
        file("a.jpg", &[1; 700]),
        file("a.cls", b"12"),
        entry("b.jpg", b'1', "a.jpg", b""),
        entry("b.cls", b'1', "a.cls", b""),
        old_sparse("old", &[5; 512]),
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

/// Damages a tar once; mostly with a right checksum, so that a later check meets the damage.
fn damage(tar: &mut Vec<u8>, random: &mut Stream) {
    let blocks = tar.len() / 512;
    if blocks < 2 {
        return;
    }
    let block = 512 * below(random, blocks);
    match below(random, 6) {
        0 => tar[block + below(random, 512)] = below(random, 256) as u8,
        1 => {
            let size = [below(random, 5000), below(random, 1 << 33), (1 << 33) - 1][below(random, 3)];
            tar[block + 124..block + 136].copy_from_slice(format!("{size:011o}\0").as_bytes());
        }
        2 => {
            let other = 512 * below(random, blocks);
            tar.copy_within(other..other + 512, block);
        }
        3 => tar[block..block + 512].fill(0),
        4 => tar.truncate(block + below(random, 513)),
        _ => tar[block + 156] = b"0123456789gxXLKSMDV\0"[below(random, 20)],
    }
    if block + 512 <= tar.len() && below(random, 4) > 0 {
        sign(&mut tar[block..block + 512]);
    }
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

/// The fuzz target `tar` tests more damaged tars.
#[test]
fn a_damaged_tar_is_an_error_or_lists_members_inside_of_it() {
    let whole = whole();
    let mut listed = 0;
    for seed in 0..2_000 {
        let mut random = Stream::new(seed, Purpose::Test, 0, 0);
        let mut tar = whole.clone();
        for _ in 0..=below(&mut random, 4) {
            damage(&mut tar, &mut random);
        }
        let len = tar.len() as u64;
        match read(&tar) {
            Ok(index) => {
                listed += 1;
                index.members.iter().for_each(|member| assert_inside(seed, member, len));
            }
            Err(IngestError::Tar { offset, .. }) => assert!(offset <= len, "seed {seed}: byte {offset}"),
            Err(other) => panic!("seed {seed}: {other}"),
        }
    }
    assert!((200..1_800).contains(&listed), "{listed} of 2000 could be listed");
}
