use std::fs;
use std::io::Write;
use std::path::Path;

use bytes::Bytes;

use super::spool::{Compression, compression, unpack, unpack_within};
use super::*;
use crate::failure::Failure;
use crate::ingest::IngestError;
use crate::storage::Location;

fn location(path: &Path) -> Location {
    Location::from_path(path).expect("a location")
}

fn source(path: &Path) -> SourceFile {
    SourceFile::open(&location(path)).expect("a file")
}

/// Makes bytes without a pattern.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("packed");
    encoder.finish().expect("packed")
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).expect("packed")
}

fn spool(folder: &Path) -> Arc<Spool> {
    Spool::in_folder(folder).expect("a spool")
}

/// Unpacks a file of these bytes.
fn unpacked(bytes: &[u8]) -> Result<Bytes, IngestError> {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("x.tar.gz");
    fs::write(&path, bytes).expect("a file");
    let compression = compression(bytes).expect("a supported kind").expect("a kind");
    let file = unpack(&source(&path), compression, &spool(dir.path()))?;
    assert!(file.name().ends_with("x.tar.gz (unpacked)"));
    Ok(file.read(&Extent::Range { offset: 0 }, file.len()).expect("read"))
}

#[track_caller]
fn assert_fails(bytes: &[u8], part: &str) {
    let error = unpacked(bytes).expect_err("a wrong file");
    assert_eq!(error.failure(), Failure::Data, "{error}");
    assert!(error.to_string().contains("x.tar.gz") && error.to_string().contains(part), "{error}");
}

#[test]
fn gzip_and_zstd_are_unpacked_stream_after_stream() {
    let bytes = noise(3 << 20);
    let (a, b) = bytes.split_at(1 << 20);
    assert_eq!(unpacked(&[gzip(a), gzip(b), vec![0; 100]].concat()).expect("gzip"), bytes);
    assert_eq!(unpacked(&[zstd(a), zstd(b)].concat()).expect("zstd"), bytes);
    let skippable = [&[0x50, 0x2A, 0x4D, 0x18, 4, 0, 0, 0, 9, 9, 9, 9][..], &zstd(a)].concat();
    assert_eq!(unpacked(&skippable).expect("a skippable frame first, as pzstd writes"), a);
}

#[test]
fn a_cut_or_damaged_stream_and_data_after_it_are_errors() {
    let bytes = noise(1 << 20);
    for whole in [gzip(&bytes), zstd(&bytes)] {
        assert_fails(&whole[..whole.len() / 2], "is cut");
        assert_fails(&whole[..whole.len() - 3], "is cut");
    }
    let mut whole = gzip(&bytes);
    assert_fails(&[&whole[..], b"\n"].concat(), "data after the end");
    assert_fails(&[&whole[..], &[0; 20], b"x"].concat(), "data after the end");
    *whole.last_mut().expect("bytes") ^= 1;
    assert_fails(&whole, "is damaged");
    assert_fails(&[&zstd(&bytes)[..], b"garbage"].concat(), "is damaged");
}

#[test]
fn kinds_of_compression_that_are_not_supported_are_named_with_a_way_out() {
    for (head, name) in [
        (&b"BZh91AY&SY\x00\x00"[..], "bzip2"),
        (b"\xFD7zXZ\0\0\x04", "xz"),
        (b"\x04\x22\x4D\x18\x64", "lz4"),
        (b"LZIP\x01\x0C", "lzip"),
    ] {
        let reason = compression(head).expect_err(name);
        assert!(reason.starts_with(&format!("{name} is not supported; unpack it")), "{reason}");
    }
    assert_eq!(compression(b"BZh is how a text may begin"), Ok(None));
}

#[test]
fn what_unpacks_to_far_more_than_its_size_is_an_error_that_names_the_limit() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("x.tar.zst");
    fs::write(&path, zstd(&[0; 5000])).expect("a file");
    let unpacked = |limit| unpack_within(limit, &source(&path), Compression::Zstd, &spool(dir.path()));
    assert_eq!(unpacked(5000).expect("within the limit").len(), 5000);
    let error = unpacked(4999).expect_err("beyond it");
    assert_eq!(error.failure(), Failure::Data);
    let error = error.to_string();
    assert!(error.contains("x.tar.zst: "), "{error}");
    assert!(error.contains("unpacks to more than 4999 bytes, 16 times its size and 1 GiB"), "{error}");
}

#[test]
fn copies_share_one_file_and_keep_their_bytes() {
    let dir = tempfile::tempdir().expect("a folder");
    let spool = spool(dir.path());
    let bytes = noise(5 << 20);
    let copies: Vec<SourceFile> = std::thread::scope(|scope| {
        let write = |start: usize| {
            let (spool, bytes) = (&spool, &bytes);
            scope.spawn(move || {
                let mut writer = spool.writer();
                let offsets: Vec<u64> =
                    bytes[start..].chunks(99_991).map(|chunk| writer.push(chunk).expect("written")).collect();
                assert!(offsets.iter().zip(0..).all(|(&offset, number)| offset == 99_991 * number));
                writer.finish("copy")
            })
        };
        let threads: Vec<_> = (0..4).map(|start| write(start << 20)).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    for (start, copy) in copies.iter().enumerate() {
        let expected = &bytes[start << 20..];
        assert_eq!(copy.len(), expected.len() as u64);
        assert!(copy.read(&Extent::Range { offset: 0 }, copy.len()).expect("read") == expected);
        // A range across the end of the first piece.
        let range = copy.read(&Extent::Range { offset: (1 << 20) - 7 }, 20).expect("read");
        assert_eq!(range, expected[(1 << 20) - 7..][..20]);
    }
    assert_eq!(fs::read_dir(dir.path()).expect("a folder").count(), 0, "the file has no name");
}

#[test]
fn a_folder_for_temporary_files_without_space_is_an_io_error_that_names_tmpdir() {
    let dir = tempfile::tempdir().expect("a folder");
    let error = spool(dir.path()).check_space(1 << 60).expect_err("no such disk");
    let cause = std::error::Error::source(&error).expect("a cause").to_string();
    assert_eq!(error.failure(), Failure::Io);
    assert!(error.to_string().contains("(TMPDIR)"), "{error}");
    assert!(cause.contains("1099511627776 MiB needed") && cause.contains("set TMPDIR"), "{cause}");
    let error = Spool::in_folder(&dir.path().join("nowhere")).expect_err("no such folder");
    assert_eq!(error.failure(), Failure::Io);
    assert!(error.to_string().contains("nowhere (TMPDIR)"), "{error}");
}

#[test]
fn more_files_than_are_kept_open_are_read_from_many_threads() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut containers = Containers::default();
    for number in 0..500_u32 {
        let path = dir.path().join(number.to_string());
        fs::write(&path, [b"head", &number.to_le_bytes()[..]].concat()).expect("a file");
        assert_eq!(containers.add_file(source(&path)), number);
    }
    let open = || {
        let links = fs::read_dir("/proc/self/fd").expect("open files").filter_map(Result::ok);
        links
            .filter_map(|link| fs::read_link(link.path()).ok())
            .filter(|path| path.starts_with(dir.path()))
            .count()
    };
    assert_eq!(open(), 0, "a container that was only added is not open");
    let extent = Extent::Range { offset: 4 };
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (containers, extent) = (&containers, &extent);
            scope.spawn(move || {
                for number in (0..500).chain((0..500).rev()).skip(thread) {
                    let request = Request { container: number, extent, path: "", bytes: 4 };
                    assert_eq!(containers.read(request).expect("read"), &number.to_le_bytes()[..]);
                }
            });
        }
    });
    assert!(open() <= 128, "{} are open", open());
}

#[test]
fn a_file_that_changed_after_it_was_listed_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("a.tar");
    let mut containers = Containers::default();
    let fail = |containers: &Containers, number: u32| {
        let extent = Extent::Range { offset: 0 };
        let request = Request { container: number, extent: &extent, path: "a.tar", bytes: 6 };
        let error = containers.read(request).expect_err("it changed");
        let cause = std::error::Error::source(&error).expect("a cause").to_string();
        assert!(error.to_string().contains("a.tar"), "{error}");
        assert!(cause.contains("modified after it was listed"), "{cause}");
    };
    for change in ["longer than it was", "cut", "ABCDEF"] {
        fs::write(&path, "abcdef").expect("a file");
        let old = fs::File::open(&path).expect("a file");
        old.set_modified(std::time::SystemTime::UNIX_EPOCH).expect("a time");
        let number = containers.add_file(source(&path));
        fs::write(&path, change).expect("a file");
        fail(&containers, number);
        if change.len() != 6 {
            let folder = containers.add_folder(location(dir.path()));
            fail(&containers, folder);
        }
    }
}

#[test]
fn records_are_decoded_and_files_of_a_folder_are_read_whole() {
    let dir = tempfile::tempdir().expect("a folder");
    fs::write(dir.path().join("a.bin"), "abcdef").expect("a file");
    let mut containers = Containers::default();
    let folder = containers.add_folder(location(dir.path()));
    let records =
        containers.add_records(source(&dir.path().join("a.bin")), |bytes| bytes.to_ascii_uppercase().into());
    let (all, part) = (Extent::Range { offset: 0 }, Extent::Range { offset: 2 });
    let requests = [
        Request { container: records, extent: &part, path: "", bytes: 3 },
        Request { container: folder, extent: &all, path: "a.bin", bytes: 6 },
    ];
    assert_eq!(containers.read_all(&requests).expect("read"), ["CDE", "abcdef"]);
}

#[test]
fn a_folder_a_device_and_an_absent_file_are_not_opened() {
    let dir = tempfile::tempdir().expect("a folder");
    for (path, part) in [(dir.path(), "a folder, not a file"), (Path::new("/dev/null"), "a pipe or a device")]
    {
        let error = SourceFile::open(&location(path)).expect_err("not a file");
        assert_eq!(error.failure(), Failure::Data);
        assert!(error.to_string().contains(part), "{error}");
    }
    let error = SourceFile::open(&location(&dir.path().join("none"))).expect_err("absent");
    assert!(matches!(error, IngestError::Storage(error) if error.is_not_found()));
}

#[test]
fn a_tar_within_a_sparse_member_is_read_through_its_map() {
    let mut inner = ::tar::Builder::new(Vec::new());
    for name in ["1.jpg", "2.jpg"] {
        let mut header = ::tar::Header::new_ustar();
        header.set_size(4000);
        inner.append_data(&mut header, name, &name.repeat(800).as_bytes()[..4000]).expect("packed");
    }
    let inner = inner.into_inner().expect("packed");
    // The end of the inner tar is a hole; its first 512 bytes come last in the file.
    let stored = inner.len() as u64 - 1024;
    let file = [b"outer", &inner[512..stored as usize], &inner[..512]].concat();
    let dir = tempfile::tempdir().expect("a folder");
    fs::write(dir.path().join("outer.tar"), &file).expect("a file");
    let source = source(&dir.path().join("outer.tar"));
    let pieces = vec![
        super::file::Piece { logical: 0, physical: 5 + stored - 512, bytes: 512 },
        super::file::Piece { logical: 512, physical: 5, bytes: stored - 512 },
    ];
    let bytes = inner.len() as u64;
    let member = Member { path: "n.tar".into(), bytes, extent: Extent::of_pieces(pieces, bytes), text: None };
    let index = read_nested(&source, &member, &|_| false).expect("a tar");
    assert_eq!(index.members.len(), 2);
    for member in &index.members {
        let read = source.read(&member.extent, member.bytes).expect("read");
        assert_eq!(read, member.path.repeat(800).as_bytes()[..4000]);
    }
}
