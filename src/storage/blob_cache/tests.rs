use std::process::{Command, Stdio};

use super::*;

fn blob(number: u8) -> (Digest, Vec<u8>) {
    let contents = vec![number; 100];
    (Digest::of(&contents), contents)
}

fn opened(limit: u64) -> (tempfile::TempDir, BlobCache) {
    let dir = tempfile::tempdir().expect("a folder");
    let cache = BlobCache::open(&dir.path().join("cache"), limit).expect("opened");
    (dir, cache)
}

/// Uses of the blobs `0..uses.len()`.
fn known(uses: &[u64]) -> impl Fn(Digest) -> Option<u64> {
    move |digest| (0..).zip(uses).find(|(number, _)| blob(*number).0 == digest).map(|(_, &at)| at)
}

fn put(cache: &BlobCache, number: u8, uses: &[u64]) -> Kept {
    let (digest, contents) = blob(number);
    cache.put(digest, &contents, &known(uses))
}

fn held(cache: &BlobCache) -> Vec<u8> {
    (0..10).filter(|&number| cache.get(blob(number).0).is_some()).collect()
}

#[test]
fn what_is_kept_comes_back_whole_and_in_parts() {
    let (_dir, cache) = opened(1000);
    let (digest, contents) = blob(1);
    assert_eq!(cache.get(digest), None);
    assert_eq!(put(&cache, 1, &[]), Kept::Yes);
    assert_eq!(cache.get(digest).as_deref(), Some(contents.as_slice()));
    assert_eq!(cache.read(digest, 3..5).as_deref(), Some([1, 1].as_slice()));
    assert_eq!(cache.read(digest, 90..101), None);
    cache.remove(digest);
    assert_eq!(cache.get(digest), None);
}

#[test]
fn what_is_needed_latest_goes_first_and_never_for_what_is_needed_later() {
    let (_dir, cache) = opened(250);
    let uses = [10, 30, 20, 40];
    assert_eq!((put(&cache, 0, &uses), put(&cache, 1, &uses)), (Kept::Yes, Kept::Yes));
    assert_eq!(put(&cache, 3, &uses), Kept::NoRoom);
    assert_eq!(held(&cache), [0, 1]);
    assert_eq!(put(&cache, 2, &uses), Kept::Yes);
    assert_eq!(held(&cache), [0, 2]);
}

#[test]
fn what_another_job_used_lately_stays() {
    let (_dir, cache) = opened(150);
    assert_eq!(put(&cache, 7, &[]), Kept::Yes);
    assert_eq!(put(&cache, 0, &[1]), Kept::NoRoom);
    let long_ago = SystemTime::now() - 2 * IDLE;
    File::open(cache.path(blob(7).0)).and_then(|file| file.set_modified(long_ago)).expect("aged");
    assert_eq!(put(&cache, 0, &[1]), Kept::Yes);
    assert_eq!(held(&cache), [0]);
}

#[test]
fn a_lock_that_is_held_delays_nobody_for_long_and_loses_nothing() {
    let (_dir, cache) = opened(1000);
    let lock = cache.lock().expect("free");
    let asked = Instant::now();
    assert_eq!(put(&cache, 1, &[]), Kept::NotNow);
    assert_eq!(put(&cache, 2, &[]), Kept::NotNow);
    assert!(asked.elapsed() < 3 * LOCK_PATIENCE);
    drop(lock);
    let again = BlobCache::open(&cache.folder, 1000).expect("opened");
    assert_eq!(put(&again, 1, &[]), Kept::Yes);
}

#[test]
fn a_folder_that_cannot_be_written_is_no_error() {
    let (dir, cache) = opened(1000);
    std::fs::remove_dir_all(dir.path()).expect("removed");
    assert_eq!(put(&cache, 1, &[]), Kept::NotNow);
    assert_eq!(cache.get(blob(1).0), None);
}

#[test]
fn a_write_that_fails_leaves_nothing() {
    let (_dir, cache) = opened(1 << 20);
    std::fs::create_dir_all(cache.path(blob(1).0).join("full")).expect("a folder of that name");
    assert_eq!(put(&cache, 1, &[]), Kept::NotNow);
    assert_eq!(std::fs::read_dir(cache.folder.join(UNFINISHED)).expect("listed").count(), 0);
}

#[expect(clippy::disallowed_methods, reason = "a file of somebody else")]
fn plant(path: &Path) {
    std::fs::write(path, "precious").expect("a file");
}

#[test]
fn links_that_others_put_there_are_not_followed() {
    let (dir, cache) = opened(1000);
    let (digest, contents) = blob(1);
    let (victim, other) = (dir.path().join("victim"), dir.path().join("other"));
    plant(&victim);
    std::os::unix::fs::symlink(&victim, cache.folder.join(UNFINISHED).join(digest.to_string()))
        .expect("a link");
    assert_eq!(put(&cache, 1, &[]), Kept::Yes);
    assert_eq!(cache.get(digest).as_deref(), Some(contents.as_slice()));
    assert_eq!(std::fs::read(&victim).expect("there"), b"precious");
    // A link under a digest's name is nothing, and is replaced.
    cache.remove(digest);
    std::os::unix::fs::symlink(&victim, cache.path(digest)).expect("a link");
    assert_eq!(cache.get(digest), None);
    assert_eq!(put(&cache, 1, &[]), Kept::Yes);
    assert_eq!(cache.get(digest).as_deref(), Some(contents.as_slice()));
    // Nor is the folder itself followed, of which everything is removed.
    std::fs::remove_dir(cache.folder.join(UNFINISHED)).expect("removed");
    std::fs::create_dir(&other).expect("a folder");
    plant(&other.join("file"));
    std::os::unix::fs::symlink(&other, cache.folder.join(UNFINISHED)).expect("a link");
    assert_eq!(put(&cache, 2, &[]), Kept::NotNow);
    assert!(other.join("file").exists());
}

#[test]
fn a_pipe_under_a_digest_s_name_hangs_no_reader() {
    let (_dir, cache) = opened(1000);
    let (digest, contents) = blob(1);
    let made = Command::new("mkfifo").arg(cache.path(digest)).status().expect("mkfifo");
    assert!(made.success());
    assert_eq!((cache.get(digest), cache.read(digest, 0..1)), (None, None));
    assert_eq!(put(&cache, 1, &[]), Kept::Yes);
    assert_eq!(cache.get(digest).as_deref(), Some(contents.as_slice()));
}

/// Not a test of its own: the body of the child that `a_kill_while_writing_leaves_only_whole_files` kills.
#[test]
#[ignore = "started by another test"]
fn child_that_writes_until_it_is_killed() {
    let Some(folder) = std::env::var_os("INSTDISC_TEST_CACHE") else { return };
    let cache = BlobCache::open(Path::new(&folder), 3 << 20).expect("opened");
    for number in 0_u64.. {
        let contents = number.to_le_bytes().repeat(40_000);
        let digest = Digest::of(&contents);
        // The newest is needed soonest, so that every write removes an older one.
        cache.put(digest, &contents, &|other| Some(u64::from(other != digest)));
    }
}

fn listed(cache: &BlobCache) -> Vec<(Digest, u64)> {
    let entries = cache.entries().unwrap_or_default();
    let mut held: Vec<_> = entries.into_iter().map(|entry| (entry.digest, entry.bytes)).collect();
    held.sort_unstable();
    held
}

#[test]
fn a_kill_while_writing_leaves_only_whole_files_and_no_lock() {
    let (_dir, cache) = opened(3 << 20);
    for round in 0..8 {
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args([
                "--ignored",
                "--exact",
                "storage::blob_cache::tests::child_that_writes_until_it_is_killed",
            ])
            .env("INSTDISC_TEST_CACHE", &cache.folder)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("started");
        let started = Instant::now();
        let before = listed(&cache);
        while listed(&cache) == before && started.elapsed() < Duration::from_secs(30) {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(13 * round));
        assert!(child.try_wait().expect("asked").is_none(), "the child still writes");
        child.kill().expect("killed");
        child.wait().expect("ended");
        let entries = cache.entries().expect("listed");
        assert!(!entries.is_empty());
        assert!(entries.iter().map(|entry| entry.bytes).sum::<u64>() <= 3 << 20);
        for entry in entries {
            assert_eq!(Digest::of(&cache.get(entry.digest).expect("readable")), entry.digest);
        }
        // The dead one's lock is free.
        assert_eq!(put(&cache, round as u8, &[]), Kept::Yes);
        assert_eq!(std::fs::read_dir(cache.folder.join(UNFINISHED)).expect("listed").count(), 0);
    }
}
