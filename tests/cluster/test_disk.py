"""A disk that fills up: a clear error, what was there stands, and a rerun goes on after space is freed."""

import subprocess
import unittest

from s3 import BUCKET, Ceph
from support import (
    INGEST, IO, dataset, digest, newest, note, images, reference, run, running, scratch, tool, train,
)


class Mounted:
    """A file system that is there until it is stopped."""

    def __init__(self, folder):
        self.folder = folder

    def stop(self):
        running.remove(self)
        tool("umount", self.folder)


class Disk(unittest.TestCase):
    def small_disk(self, name, size):
        """A file system in memory of this size."""
        folder = scratch(name)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        done = subprocess.run(mount, capture_output=True, text=True)
        if done.returncode != 0:
            self.skipTest(f"not run: no tmpfs can be mounted here: {done.stderr.strip()}")
        disk = Mounted(folder)
        running.append(disk)
        self.addCleanup(disk.stop)
        return folder

    def grow(self, folder, size):
        tool("mount", "-o", f"remount,size={size}", folder)

    def test_a_checkpoint_onto_a_full_disk_leaves_the_one_before_and_the_run_goes_on_later(self):
        whole = scratch("disk-whole")
        train(dataset(), whole, "--keep", 0)
        bytes_of_one = sum(path.stat().st_size for path in newest(whole).iterdir())
        # Room for the first one, the next and half of one more.
        disk = self.small_disk("disk-run", 3 * bytes_of_one)
        refused = train(dataset(), disk / "run", "--keep", 0, code=IO)
        self.assertIn("No space left", refused.err)
        self.assertEqual(sum(line.startswith("error: ") for line in refused.err.splitlines()), 1)
        stands = newest(disk / "run")
        run("inspect", "--verify", stands)
        note(f"the disk was full after {stands.name}, which stands")
        self.grow(disk, "512m")
        train(dataset(), disk / "run", "--keep", 0)
        self.assertEqual(digest(newest(disk / "run") / "bank.arrow"), reference())

    def test_a_full_cache_is_left_alone_and_the_run_streams(self):
        store = Ceph("ceph-disk")
        self.addCleanup(store.stop)
        env, at = store.env(), f"s3://{BUCKET}/cache"
        run("ingest", "--source", images(), "--dest", f"{at}/dataset", *INGEST, env=env)
        disk = self.small_disk("disk-cache", "64k")
        cache = ["--cache", disk / "cache", "--cache-size", "1GiB"]
        trained = train(f"{at}/dataset", f"{at}/run", *cache, env=env)
        self.assertIn("pausing the cache", trained.err)
        self.assertEqual(digest(store.newest_bank("cache/run")), reference())


if __name__ == "__main__":
    unittest.main()
