//! File systems that lack what ext4 has: the C library's calls fail as they do there.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;

use super::support::{Call, contents, dataset, images, instdisc, scratch};

/// Fails `flock` and hard links with the codes that the environment gives.
const SHIM: &str = "
#include <errno.h>
#include <stdlib.h>
static int fails(const char *name) {
    const char *code = getenv(name);
    errno = code ? atoi(code) : ENOSYS;
    return -1;
}
int flock(int file, int operation) { return fails(\"SHIM_FLOCK\"); }
int link(const char *from, const char *to) { return fails(\"SHIM_LINK\"); }
int linkat(int a, const char *from, int b, const char *to, int flags) { return fails(\"SHIM_LINK\"); }
";

const NO_SUCH_CALL: i32 = 38;
const NOT_PERMITTED: i32 = 1;
const NOT_SUPPORTED: i32 = 95;
const NO_LOCKS: i32 = 37;

fn shim() -> &'static PathBuf {
    static SHIMMED: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, library) = SHIMMED.get_or_init(|| {
        let dir = scratch();
        let (source, library) = (dir.path().join("shim.c"), dir.path().join("shim.so"));
        std::fs::write(&source, SHIM).expect("a file");
        let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
        assert!(built.expect("a C compiler").success());
        (dir, library)
    });
    library
}

/// A call on a file system that answers so to `flock` and to hard links.
fn on(call: Call, flock: i32, link: i32) -> Call {
    let mut command = call.command();
    command.env("LD_PRELOAD", shim()).env("SHIM_FLOCK", flock.to_string()).env("SHIM_LINK", link.to_string());
    Call::from(command)
}

#[test]
fn an_ingest_without_locks_and_links_gives_the_same_dataset_and_leaves_nothing_else() {
    for (flock, link) in
        [(NO_SUCH_CALL, NOT_PERMITTED), (NOT_SUPPORTED, NOT_SUPPORTED), (NO_LOCKS, NO_SUCH_CALL)]
    {
        let dir = scratch();
        let data = dir.path().join("data");
        let ingest = || instdisc("ingest --row-group 16").arg("--source", images()).arg("--dest", &data);
        let output = on(ingest(), flock, link).output().1;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{flock} {link}: {stderr}");
        assert!(stderr.contains("the file system has no locks"), "{stderr}");
        assert!(contents(&data) == contents(dataset()), "{flock} {link}");
        let again = on(ingest(), flock, link).json();
        assert_eq!(again["already_done"], true);
    }
}

#[test]
fn of_two_ingests_without_locks_one_works_at_a_time() {
    let dir = scratch();
    let data = dir.path().join("data");
    let ingest = || {
        let call = instdisc("ingest --row-group 16").arg("--source", images()).arg("--dest", &data);
        on(call, NO_SUCH_CALL, NOT_PERMITTED).output().1
    };
    let outputs: Vec<_> = std::thread::scope(|scope| {
        let threads = [scope.spawn(ingest), scope.spawn(ingest)];
        threads.map(|thread| thread.join().expect("no panic")).into()
    });
    let codes: Vec<_> = outputs.iter().map(|output| output.status.code()).collect();
    // The second waits until the first is done, or is told that another works there.
    assert!(
        codes.contains(&Some(0)) && codes.iter().all(|code| [Some(0), Some(69)].contains(code)),
        "{outputs:?}"
    );
    assert!(contents(&data) == contents(dataset()));
}
