"""Several processes at one place of a real S3 server: one works, the others are told, nothing is mixed."""

import signal
import unittest

from s3 import BUCKET, Ceph
from support import (
    EPOCHS, INGEST, TRAIN, UNAVAILABLE, dataset, dataset_digest, digest, finish, images, reference, start, train,
    wait_until,
)


class Concurrency(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.store = Ceph("ceph-concurrency")
        cls.env = cls.store.env()

    @classmethod
    def tearDownClass(cls):
        cls.store.stop()

    def trainer(self, name, *more, epochs=EPOCHS):
        words = ["--dataset", dataset(), "--run", f"s3://{BUCKET}/{name}", *TRAIN, "--epochs", epochs]
        return start("train", *words, *more, env=self.env)

    def test_of_three_ingests_at_one_destination_one_works_or_all_find_it_done(self):
        dest = f"s3://{BUCKET}/ingests/dataset"
        words = ["ingest", "--source", images(), "--dest", dest, *INGEST]
        results = [finish(job, code={0, UNAVAILABLE}) for job in [start(*words, env=self.env) for _ in range(3)]]
        self.assertTrue(any(result.code == 0 for result in results))
        for result in results:
            if result.code == UNAVAILABLE:
                self.assertIn("another process works here", result.err)
        self.assertEqual(dataset_digest(dest, env=self.env), dataset_digest(dataset()))

    def test_of_two_trainers_on_one_run_the_second_is_told_who_works(self):
        first = self.trainer("two", epochs=5000)
        wait_until("the first has the run", lambda: any("checkpoint.json" in key for key in self.store.keys("two/")))
        second = finish(self.trainer("two", epochs=5000), code=UNAVAILABLE)
        self.assertRegex(second.err, r"another process works here \(process \d+ on .*sign of life")
        self.assertIsNone(first.poll(), "the first is not disturbed")
        first.send_signal(signal.SIGTERM)
        finish(first, code=75)

    def test_the_run_of_a_killed_trainer_is_taken_over_and_ends_as_if_undisturbed(self):
        first = self.trainer("killed", "--checkpoint-every-steps", "4")
        wait_until("it saves", lambda: len(self.store.keys("killed/checkpoints/")) > 8, every=0.02)
        first.kill()
        finish(first, code=-signal.SIGKILL)
        second = finish(self.trainer("killed", "--checkpoint-every-steps", "4"))
        self.assertIn("its holder is gone; taken over", second.err)
        self.assertEqual(digest(self.store.newest_bank("killed")), reference())
        self.assertEqual([key for key in self.store.keys("killed/") if "/lock." in key], [])

    def test_two_watchers_evaluate_each_checkpoint_once(self):
        train(dataset(), f"s3://{BUCKET}/watched", "--checkpoint-every-epochs", 2, "--keep", 0, env=self.env)
        words = ["knn", "--run", f"s3://{BUCKET}/watched", "--dataset", dataset(), "--watch", "--k", 20]
        jobs = [start(*words, "--poll-interval", 1, env=self.env) for _ in range(2)]
        evaluated = [finish(job).json["evaluated"] for job in jobs]
        steps = [int(key.split("step-")[1][:8]) for key in self.store.keys("watched/") if "checkpoint.json" in key]
        self.assertEqual(sorted(evaluated[0] + evaluated[1]), sorted(steps))
        self.assertEqual(len(steps), 7)


if __name__ == "__main__":
    unittest.main()
