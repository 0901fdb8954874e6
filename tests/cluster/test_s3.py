"""The whole path with everything in a bucket of a real S3 server: the same results as on this machine."""

import json
import re
import secrets
import shutil
import unittest
from pathlib import Path

from proxy import Proxy
from s3 import BUCKET, Ceph, Moto
from support import (
    CONFIG, EPOCHS, INGEST, TRAIN, WORK, dataset, dataset_digest, digest, environment, finish, note, packed, images,
    reference, run, scratch, start, train, wait_until, whole_path,
)


class OnCeph(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.secret = "planted-" + secrets.token_hex(12)
        cls.store = Ceph("ceph", secret=cls.secret)
        cls.store.put("path/images.tar", packed())
        cls.said = whole_path(cls.store.env(), f"s3://{BUCKET}/path")

    @classmethod
    def tearDownClass(cls):
        cls.store.stop()

    def test_the_dataset_is_that_of_this_machine(self):
        at = f"s3://{BUCKET}/path/dataset"
        self.assertEqual(dataset_digest(at, env=self.store.env()), dataset_digest(dataset()))
        run("inspect", "--verify", at, env=self.store.env())

    def test_the_bank_is_that_of_this_machine_bit_for_bit(self):
        self.assertEqual(digest(self.store.newest_bank("path/run")), reference())

    def test_every_checkpoint_has_its_report(self):
        keys = self.store.keys("path/run/")
        steps = [key.split("/")[3] for key in keys if key.endswith("/checkpoint.json")]
        reports = [key for key in keys if "/eval/knn-val-" in key and key.endswith(".json")]
        self.assertEqual(sorted("step-" + key.split("-step-")[1].removesuffix(".json") for key in reports), sorted(steps))
        self.assertEqual(len(steps), 3)

    def test_nothing_but_results_is_left_in_the_bucket(self):
        keys = self.store.keys("path/")
        strays = [key for key in keys if "/.work/" in key or "/lock." in key or "probe" in key or ".json.lock" in key]
        self.assertEqual(strays, [])

    def test_a_job_says_what_it_asked_of_the_store(self):
        for result in self.said:
            self.assertIn("object store: ", result.err)
            note(f"{result.command[1]} in {result.seconds:.0f} s: {result.traffic}")

    def test_a_secret_is_in_no_file_no_output_and_no_list_of_processes(self):
        for key in self.store.keys():
            self.assertNotIn(self.secret.encode(), self.store.get(key), key)
        for result in self.said:
            self.assertNotIn(self.secret, result.err + result.out)
        # An error, with everything logged.
        wrong = self.store.env() | {"AWS_SECRET_ACCESS_KEY": self.secret[::-1]}
        refused = run("inspect", f"s3://{BUCKET}/path/dataset", "--log", "trace", code=CONFIG, env=wrong)
        self.assertNotIn(self.secret[::-1], refused.err)
        self.assertIn(f"s3://{BUCKET}/path/dataset", refused.err)
        # In a file it is safe; on the command line it is refused.
        file = scratch("secret") / "key"
        file.write_text(self.secret + "\n")
        options = ["aws_endpoint=" + wrong["AWS_ENDPOINT"], "aws_allow_http=true", f"aws_secret_access_key=@{file}"]
        bare = {key: value for key, value in wrong.items() if key in ("AWS_ACCESS_KEY_ID", "AWS_REGION")}
        words = [word for option in options for word in ("--storage-option", option)]
        run("inspect", f"s3://{BUCKET}/path/dataset", *words, env=environment(**bare))
        option = f"aws_secret_access_key={self.secret}"
        refused = run("inspect", "s3://bucket/x", "--storage-option", option, code=2, env=self.store.env())
        self.assertNotIn(self.secret, refused.err)
        absent = run("inspect", "s3://there-is-none/x", code=CONFIG, env=self.store.env())
        self.assertIn("NoSuchBucket", absent.err)
        running = start("train", "--dataset", f"s3://{BUCKET}/path/dataset", "--run", f"s3://{BUCKET}/secret/run",
                        *TRAIN, "--epochs", EPOCHS, env=self.store.env())
        # What `ps` shows to every user; nothing for the moment in which a process takes its program's place.
        listed = wait_until("it is listed", Path(f"/proc/{running.pid}/cmdline").read_text, 10)
        self.assertIn("train", listed)
        self.assertNotIn(self.secret, listed)
        finish(running)

    def test_an_epoch_that_streams_reads_each_row_group_once(self):
        data = f"s3://{BUCKET}/path/dataset"
        manifest = json.loads(self.store.get("path/dataset/manifest.json"))
        groups = sum(len(shard["row_groups"]) for shard in manifest["splits"]["train"]["shards"])
        gets, looks = [], []
        for epochs in (1, 5):
            words = ["--shuffle", "windowed", "--window", 16, "--checkpoint-every-epochs", 100]
            said = train(data, f"s3://{BUCKET}/gets-{epochs}", *words, epochs=epochs, env=self.store.env())
            gets.append(int(re.search(r"\((\d+) GET", said.err).group(1)))
            # Every ten seconds the lock is looked at, with two GETs or three.
            looks.append(3 * int(said.seconds / 10 + 1))
        note(f"{groups} row groups: {gets[0]} GETs with one epoch, {gets[1]} with five")
        self.assertIn(gets[1] - gets[0], range(4 * groups - looks[0], 4 * groups + 4 + looks[1]))

    def test_a_probe_a_fine_tuning_and_exports_give_what_they_give_on_this_machine(self):
        reference()
        here, there = scratch("after"), f"s3://{BUCKET}/path"
        (here / "dataset").symlink_to(dataset())
        shutil.copytree(WORK / f"reference-{EPOCHS}", here / "run")
        last = f"run/checkpoints/step-{EPOCHS * 8:08}"
        for words in (
            "linear --run @run --dataset @dataset --device cpu --weight-decay 1e-3",
            f"finetune --checkpoint @{last} --dataset @dataset --run @after/tuned --epochs 2 --batch-size 16 "
            "--label-fraction 0.5 --device cpu",
            f"export torchvision --checkpoint @{last} --output @after/weights.safetensors",
            f"export parquet --table @{last}/bank.arrow --output @after/bank.parquet",
            f"export projector --table @{last}/bank.arrow --dataset @dataset --output @after/projector",
            "export images --dataset @dataset --split val --dest @after/images",
        ):
            with self.subTest(words):
                found, expected = (
                    run(*words.replace("@", f"{place}/").split(), env=env).json
                    for place, env in ((there, self.store.env()), (here, None))
                )
                for key in ("top1", "top5", "step", "labels", "tensors", "rows", "splits"):
                    self.assertEqual(found.get(key), expected.get(key), key)
        files = lambda names: [name for name in names if not re.search(r"json|events|metrics|toml$", name)]
        names = [str(path.relative_to(here / "after")) for path in (here / "after").rglob("*") if path.is_file()]
        kept = [key.removeprefix("path/after/") for key in self.store.keys("path/after/")]
        self.assertEqual(sorted(files(kept)), sorted(files(names)))
        for name in files(names):
            self.assertEqual(digest(self.store.get(f"path/after/{name}")), digest(here / "after" / name), name)

    def test_a_second_call_finds_everything_done(self):
        at = f"s3://{BUCKET}/path"
        words = ["--source", f"{at}/images.tar", "--dest", f"{at}/dataset", *INGEST]
        again = run("ingest", *words, env=self.store.env())
        self.assertIn("holds this dataset already", again.err)
        words = ["--checkpoint-every-epochs", EPOCHS // 2, "--log", "debug"]
        again = train(f"{at}/dataset", f"{at}/run", *words, env=self.store.env())
        self.assertTrue(again.json["finished"])
        run("inspect", f"{at}/run/checkpoints/step-{EPOCHS * 8:08}", env=self.store.env())


class OnMoto(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.store = Moto()

    @classmethod
    def tearDownClass(cls):
        cls.store.stop()

    def test_the_path_gives_the_same_results_on_another_server(self):
        self.store.put("path/images.tar", packed())
        at = f"s3://{BUCKET}/path"
        whole_path(self.store.env(), at)
        self.assertEqual(dataset_digest(f"{at}/dataset", env=self.store.env()), dataset_digest(dataset()))
        self.assertEqual(digest(self.store.newest_bank("path/run")), reference())

    def test_a_store_that_overwrites_silently_is_refused_unless_there_is_one_writer(self):
        proxy = Proxy(self.store.port, unconditional=True)
        self.addCleanup(proxy.stop)
        env, dest = self.store.env(proxy.port), f"s3://{BUCKET}/silent/dataset"
        words = ["ingest", "--source", images(), "--dest", dest, *INGEST]
        refused = run(*words, code=CONFIG, env=env)
        self.assertIn("--single-writer", refused.err)
        self.assertEqual(self.store.keys("silent/"), [])
        run(*words, "--single-writer", env=env)
        self.assertEqual(dataset_digest(dest, env=env), dataset_digest(dataset()))


if __name__ == "__main__":
    unittest.main()
