"""A network that fails, a server that dies and comes back, a server that is gone."""

import threading
import time
import unittest

from proxy import Proxy
from s3 import BUCKET, Ceph
from support import (
    EPOCHS, INGEST, TRAIN, UNAVAILABLE, dataset, dataset_digest, digest, finish, note, packed, images, reference,
    run, start, train, wait_until, whole_path,
)


class Faults(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.store = Ceph("ceph-faults")
        cls.store.put("images.tar", packed())

    @classmethod
    def tearDownClass(cls):
        cls.store.stop()

    def proxy(self, **faults):
        proxy = Proxy(self.store.port, **faults)
        self.addCleanup(proxy.stop)
        return proxy

    def test_a_third_of_answers_refused_bodies_cut_and_latency_change_no_result(self):
        self.store.put("faulty/images.tar", packed())
        proxy = self.proxy(seed=11, refuse=0.3, cut=0.05, latency=0.1)
        at = f"s3://{BUCKET}/faulty"
        # As a store is read: each row group once an epoch. In the exact order each image would be a request.
        shuffle = ("--shuffle", "windowed", "--window", "64")
        said = whole_path(self.store.env(proxy.port), at, shuffle)
        self.assertEqual(dataset_digest(f"{at}/dataset", env=self.store.env()), dataset_digest(dataset()))
        self.assertEqual(digest(self.store.newest_bank("faulty/run")), reference(*shuffle))
        for result in said:
            self.assertGreater(result.faults, 0, "each job met faults, and says so")
            note(f"{result.command[1]} in {result.seconds:.0f} s: {result.traffic}")
        # Of 100 requests 30 are refused and 3.5 cut; more would be retries that breed retries.
        self.assertLess(sum(result.faults for result in said), 0.5 * sum(result.requests for result in said))
        self.assertGreater(proxy.injected["cut"], 0)

    def test_answers_that_are_lost_after_the_store_acted_change_no_result(self):
        proxy = self.proxy(seed=5, lose=0.15)
        at, env = f"s3://{BUCKET}/lost", self.store.env(proxy.port)
        ingest = run("ingest", "--source", images(), "--dest", f"{at}/dataset", *INGEST, env=env)
        trained = train(f"{at}/dataset", f"{at}/run", env=env)
        self.assertGreater(proxy.injected["lose"], 0)
        self.assertGreater(ingest.faults + trained.faults, 0)
        self.assertEqual(dataset_digest(f"{at}/dataset", env=self.store.env()), dataset_digest(dataset()))
        self.assertEqual(digest(self.store.newest_bank("lost/run")), reference())

    def test_a_server_that_is_killed_and_back_after_twenty_seconds_interrupts_no_run(self):
        at, env = f"s3://{BUCKET}/outage", self.store.env()
        run("ingest", "--source", images(), "--dest", f"{at}/dataset", *INGEST, env=env)
        words = ["--dataset", f"{at}/dataset", "--run", f"{at}/run", *TRAIN, "--epochs", EPOCHS]
        job = start("train", *words, "--checkpoint-every-steps", 4, env=env)
        saved = lambda: self.store.keys("outage/run/checkpoints/")
        wait_until("the run has checkpoints", lambda: len(saved()) > 5, every=0.05)
        self.store.kill_gateway()
        time.sleep(20)
        self.assertIsNone(job.poll(), "the run waits")
        self.store.start_gateway()
        result = finish(job)
        self.assertGreater(result.faults, 0)
        note(f"train: {result.traffic}")
        self.assertEqual(digest(self.store.newest_bank("outage/run")), reference())

    def test_a_server_that_is_gone_gives_one_error_in_time_and_leaves_nothing_half_published(self):
        at, env = f"s3://{BUCKET}/gone", self.store.env()
        # Slow enough to be met midway.
        proxy = self.proxy(seed=3, latency=0.15)
        words = ["ingest", "--source", images(), "--dest", f"{at}/dataset", *INGEST, "--retry-seconds", 5]
        job = start(*words, env=self.store.env(proxy.port))
        wait_until("the ingest works", lambda: any(".work/plan" in key for key in self.store.keys("gone/")))
        self.store.kill_gateway()
        began = time.monotonic()
        result = finish(job, code=UNAVAILABLE, timeout=120)
        seconds = time.monotonic() - began
        errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
        self.assertEqual(len(errors), 1, result.err)
        said = r"s3://bucket/gone/dataset/\S+: (read|write|list|look up|delete) failed: .*(re)?tries"
        self.assertRegex(errors[0], said)
        note(f"after {seconds:.0f} s with --retry-seconds 5: {errors[0][:300]}")
        # The operation under way, and a few seconds for the lock and what else is tidied up.
        self.assertLess(seconds, 40)
        self.store.start_gateway()
        self.assertFalse(any(key.endswith("manifest.json") for key in self.store.keys("gone/")))
        # The same command goes on, once the dead one's lock is overtaken.
        run(*words[:-2], env=env, timeout=200)
        self.assertEqual(dataset_digest(f"{at}/dataset", env=env), dataset_digest(dataset()))

    def test_a_run_without_retries_tells_what_they_are_for(self):
        proxy = self.proxy(seed=2, refuse=1.0)
        words = ["inspect", f"s3://{BUCKET}/nowhere", "--retry-tries", 0]
        result = run(*words, code=UNAVAILABLE, env=self.store.env(proxy.port))
        self.assertIn("503", result.err)


if __name__ == "__main__":
    unittest.main()
