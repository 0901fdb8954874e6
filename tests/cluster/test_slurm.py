"""The job scripts of jobs/slurm on a real SLURM."""

import json
import os
import re
import unittest

from slurm import Slurm
from support import ROOT, dataset, dataset_digest, digest, newest, images, run, scratch, wait_until

JOBS = ROOT / "jobs/slurm"
SMALL = ["--cpus-per-task=1", "--mem=500M"]
# What a job's own command gets besides.
FLAG = "--retry-seconds=600"
# So long that it can be interrupted several times.
EPOCHS = 60
CONFIG = """
arch = "resnet20-cifar"
image_size = 16
dim = 16
batch_size = 16
negatives = 32
device = "cpu"
epochs = {epochs}
checkpoint_every_epochs = {every}
checkpoint_every_steps = {steps}
read_threads = 2
no_monitor = true
"""


class OnSlurm(unittest.TestCase):
    bank = None

    @classmethod
    def setUpClass(cls):
        cls.slurm = Slurm()
        dataset()

    @classmethod
    def tearDownClass(cls):
        cls.slurm.stop()

    def config(self, at, epochs, every, steps=0):
        path = at / "run.toml"
        path.write_text(CONFIG.format(epochs=epochs, every=every, steps=steps))
        return path

    def log(self, at, name, job):
        path = at / f"instdisc-{name}-{job}.log"
        return path.read_text() if path.exists() else ""

    def start_training(self, at, *options):
        """Submits a long run; its job id."""
        env = {
            "DATASET": str(dataset()),
            "RUN": str(at / "run"),
            "CONFIG": str(self.config(at, EPOCHS, EPOCHS, steps=20)),
            "INSTDISC_JOBS": str(JOBS),
        }
        return self.slurm.submit(*SMALL, *options, "--chdir", at, JOBS / "train.sbatch", FLAG, **env)

    def test_the_pipeline_gives_a_dataset_a_run_and_a_report_for_each_checkpoint(self):
        at = scratch("slurm-pipeline")
        config = self.config(at, 2, 1)
        options = [*SMALL, "--chdir", str(at)]
        command = [JOBS / "pipeline.sh", images(), at / "dataset", at / "run", config, *options]
        flags = {"K": "20", "INGEST_FLAGS": "--row-group=8 --uploads=1", "KNN_FLAGS": "--temperature=0.2"}
        lines = self.slurm.tell(*command, **flags, TRAIN_OPTIONS="--nice=1 --comment=of-train").split()
        jobs = dict(zip(lines[0::2], lines[1::2]))
        self.assertEqual(list(jobs), ["ingest", "train", "knn"])
        self.assertEqual([self.slurm.field(job, "Comment") for job in jobs.values()], ["", "of-train", ""])
        for name, job in jobs.items():
            ended = self.slurm.wait(job, "COMPLETED", "FAILED", "CANCELLED", seconds=180)
            self.assertEqual(ended, "COMPLETED", name)
        self.assertEqual(dataset_digest(at / "dataset"), dataset_digest(dataset()))
        steps = sorted(path.parent.name for path in at.glob("run/checkpoints/*/checkpoint.json"))
        reports = sorted(at.glob("run/eval/knn-val-*.json"))
        self.assertEqual(["step-" + path.stem.split("-step-")[1] for path in reports], steps)
        self.assertEqual(len(steps), 3)
        shard = json.loads((at / "dataset/manifest.json").read_text())["splits"]["train"]["shards"][0]
        self.assertEqual(len(shard["row_groups"]), -(-shard["rows"] // 8))
        report = json.loads(reports[0].read_text())
        self.assertEqual({entry["temperature"] for entry in report["grid"]}, {0.2})

    def test_a_failed_ingest_stops_the_chain(self):
        at = scratch("slurm-chain")
        command = [JOBS / "pipeline.sh", at / "nothing", at / "dataset", at / "run", self.config(at, 1, 1)]
        lines = self.slurm.tell(*command, *SMALL, "--chdir", at).split()
        ingest, train, knn = lines[1::2]
        self.assertEqual(self.slurm.wait(ingest, "FAILED", "COMPLETED"), "FAILED")
        self.assertEqual(self.slurm.field(ingest, "ExitCode"), "65:0")
        self.assertEqual(self.slurm.field(ingest, "Restarts"), "0", "a lasting failure is not requeued")
        for job in (train, knn):
            self.assertEqual(self.slurm.wait(job, "CANCELLED", "COMPLETED"), "CANCELLED")
        self.assertFalse((at / "run").exists())

    def test_a_run_that_is_preempted_three_times_gives_the_bank_of_an_undisturbed_one(self):
        at = scratch("slurm-preempted")
        job = self.start_training(at)
        for restarts in range(3):
            self.wait_until_it_trains(at, job, restarts)
            # Both nodes for a job of a higher partition: ours gets SIGTERM, saves, and goes back to the queue.
            high = self.slurm.submit("-p", "high", "--exclusive", "-N2", "--output=/dev/null", "--wrap", "true")
            self.slurm.wait(high, "COMPLETED")
            self.slurm.skip_hold(job)
        self.assertEqual(self.slurm.wait(job, "COMPLETED", "FAILED", "CANCELLED"), "COMPLETED")
        self.assertEqual(self.slurm.field(job, "Restarts"), "3")
        self.assertEqual(self.log(at, "train", job).count("exit code 75, state RUNNING"), 3)
        self.assertEqual(self.log(at, "train", job).count(FLAG), 4, "each restart has the same command")
        self.assertEqual(digest(newest(at / "run") / "bank.arrow"), self.undisturbed(at))

    def wait_until_it_trains(self, at, job, restarts):
        """Waits until the job is past its start, and trains."""
        self.slurm.wait(job, "RUNNING")
        marks = lambda: self.log(at, "train", job).count("parameters")
        wait_until(f"job {job} has begun", lambda: marks() > restarts, 300)
        begun = self.step(at)
        wait_until(f"job {job} has saved a step after {begun}", lambda: self.step(at) > begun, 300)

    def step(self, at):
        """That of the newest checkpoint; -1 where there is none."""
        names = [path.parent.name for path in at.glob("run/checkpoints/step-*/checkpoint.json")]
        return max((int(name.removeprefix("step-")) for name in names), default=-1)

    def undisturbed(self, at):
        """The bank of the same configuration, run once without SLURM."""
        if self.bank is None:
            folder = scratch("undisturbed")
            words = ["--dataset", dataset(), "--run", folder, "--config", at / "run.toml"]
            run("train", *words, "--loader-threads", 1)
            type(self).bank = digest(newest(folder) / "bank.arrow")
        return self.bank

    def test_a_signal_to_the_tasks_saves_a_checkpoint_and_puts_the_job_back(self):
        at = scratch("slurm-signal")
        job = self.start_training(at)
        self.wait_until_it_trains(at, job, 0)
        self.slurm.tell("scancel", "--signal=TERM", job)
        self.slurm.skip_hold(job)
        self.assertEqual(self.slurm.wait(job, "COMPLETED", "FAILED", "CANCELLED"), "COMPLETED")
        self.assertEqual(self.slurm.field(job, "Restarts"), "1")
        self.assertEqual(digest(newest(at / "run") / "bank.arrow"), self.undisturbed(at))

    def resumable(self, at, command):
        """A job script that runs the command as those of jobs/ run theirs."""
        script = at / "job.sbatch"
        script.write_text(f'#!/usr/bin/env bash\nsource "$INSTDISC_JOBS/resumable.sh"\nresumable {command}\n')
        return script

    def test_each_element_of_an_array_is_put_back_by_itself(self):
        at = scratch("slurm-array")
        words = ["--array=0-1", "--requeue", "--cpus-per-task=1", "--mem=100M", "--chdir", at]
        array = self.slurm.submit(*words, self.resumable(at, 'sh -c "exit 75"'), INSTDISC_JOBS=str(JOBS))
        try:
            for job in (f"{array}_0", f"{array}_1"):
                wait_until(f"{job} is put back", lambda: self.slurm.field(job, "Restarts") == "1", 60)
        finally:
            self.slurm.tell("scancel", array)

    def test_a_task_has_the_cores_that_its_job_asked_for(self):
        at = scratch("slurm-cores")
        # Exact: what a step did not ask for it does not get, as it is where tasks are bound to cores.
        script = self.resumable(at, "srun --exact sh -c 'scontrol --oneliner show step $SLURM_JOB_ID.$SLURM_STEP_ID'")
        words = ["--ntasks=1", "--cpus-per-task=3", "--mem=100M", "--output", at / "log", "--chdir", at]
        job = self.slurm.submit(*words, script, INSTDISC_JOBS=str(JOBS))
        self.assertEqual(self.slurm.wait(job, "COMPLETED", "FAILED"), "COMPLETED")
        self.assertRegex((at / "log").read_text(), r"\bCPUs=3\b")

    def test_what_is_worth_another_try_is_put_back_and_what_is_not_fails(self):
        at = scratch("slurm-codes")
        script = self.resumable(at, 'sh -c "exit $CODE"')
        codes = {75: True, 143: True, 69: True, 1: False, 2: False, 65: False, 74: False, 78: False, 137: False}
        words = ["--requeue", "--cpus-per-task=1", "--mem=100M", "--chdir", at, script]
        jobs = {code: self.slurm.submit(*words, CODE=str(code), INSTDISC_JOBS=str(JOBS)) for code in codes}
        for code, goes_on in codes.items():
            with self.subTest(code=code):
                if goes_on:
                    wait_until("it is put back", lambda: self.slurm.field(jobs[code], "Restarts") == "1", 60)
                    self.slurm.tell("scancel", jobs[code])
                else:
                    self.assertEqual(self.slurm.wait(jobs[code], "FAILED", "COMPLETED"), "FAILED")
                    self.assertEqual(self.slurm.field(jobs[code], "ExitCode"), f"{code}:0")
                    self.assertEqual(self.slurm.field(jobs[code], "Restarts"), "0")

    def test_a_run_whose_node_goes_down_goes_on_elsewhere(self):
        at = scratch("slurm-node-down")
        job = self.start_training(at)
        self.wait_until_it_trains(at, job, 0)
        node = self.slurm.field(job, "NodeList")
        self.slurm.tell("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
        try:
            self.slurm.skip_hold(job)
            self.wait_until_it_trains(at, job, 1)
            self.assertNotEqual(self.slurm.field(job, "NodeList"), node)
            self.assertEqual(self.slurm.wait(job, "COMPLETED", "FAILED", "CANCELLED"), "COMPLETED")
        finally:
            self.slurm.tell("scontrol", "update", f"nodename={node}", "state=resume")
        self.assertEqual(digest(newest(at / "run") / "bank.arrow"), self.undisturbed(at))

    def test_a_cancelled_training_stays_cancelled_and_goes_on_when_it_is_submitted_again(self):
        at = scratch("slurm-cancelled")
        job = self.start_training(at)
        self.wait_until_it_trains(at, job, 0)
        self.slurm.tell("scancel", job)
        self.slurm.wait(job, "CANCELLED")
        self.assertEqual(self.slurm.field(job, "Restarts"), "0")
        said = re.search(r"stopped after step (\d+) by a signal", self.log(at, "train", job))
        self.assertEqual(self.step(at), int(said.group(1)), "SIGTERM saved a checkpoint")
        run("inspect", "--verify", newest(at / "run"))
        again = self.start_training(at)
        self.assertEqual(self.slurm.wait(again, "COMPLETED", "FAILED"), "COMPLETED")
        self.assertEqual(digest(newest(at / "run") / "bank.arrow"), self.undisturbed(at))

    def test_a_cancelled_ingest_goes_on_to_the_same_dataset_when_it_is_submitted_again(self):
        at = scratch("slurm-ingest")
        # Twenty thousand files: some seconds of work.
        many = scratch("many-images") / "images"
        run("synth", "--dest", many, "--train-per-class", 100, "--val-per-class", 10, "--image-size", 64)
        for image in list(many.glob("train/*/*")):
            for number in range(20):
                os.link(image, image.with_stem(f"{image.stem}-{number}"))
        run("ingest", "--source", many, "--dest", at / "whole")
        env = {"SOURCE": str(many), "DATASET": str(at / "dataset"), "INSTDISC_JOBS": str(JOBS)}
        submit = lambda: self.slurm.submit(*SMALL, "--chdir", at, JOBS / "ingest.sbatch", **env)
        job = submit()
        wait_until("the ingest works", (at / "dataset/.work/plan").exists, 60, every=0.01)
        self.slurm.tell("scancel", job)
        self.slurm.wait(job, "CANCELLED")
        self.assertFalse((at / "dataset/manifest.json").exists(), "it was cancelled midway")
        self.assertEqual(self.slurm.wait(submit(), "COMPLETED", "FAILED"), "COMPLETED")
        self.assertEqual(dataset_digest(at / "dataset"), dataset_digest(at / "whole"))

    def test_of_two_tasks_at_one_destination_one_works_and_nothing_is_mixed(self):
        at = scratch("slurm-two-tasks")
        command = f"instdisc ingest --source {images()} --dest {at}/dataset"
        words = ["-n2", "-N2", "--mem=500M", "--output", at / "log", "--chdir", at]
        job = self.slurm.submit(*words, "--wrap", f"srun -n2 sh -c '{command}; echo task ended with $?'")
        self.slurm.wait(job, "COMPLETED", "FAILED")
        codes = sorted(line.split()[-1] for line in (at / "log").read_text().splitlines() if "ended with" in line)
        self.assertIn(codes, [["0", "0"], ["0", "69"]])
        self.assertEqual(dataset_digest(at / "dataset"), dataset_digest(dataset()))

    def test_the_tasks_of_a_job_know_their_rank_their_number_and_where_the_first_one_is(self):
        script = 'echo "$SLURM_PROCID of $SLURM_NTASKS on $SLURMD_NODENAME, $SLURM_LOCALID, $MASTER_ADDR"'
        said = self.slurm.srun(2, "sh", "-c", script)
        expected = ["0: 0 of 2 on n1, 0, 127.0.0.1", "1: 1 of 2 on n2, 0, 127.0.0.1"]
        self.assertEqual(sorted(said.splitlines()), expected)

    def test_the_tasks_of_a_job_train_as_one_process_does(self):
        at = scratch("slurm-ranks")
        words = "train --arch resnet20-cifar --image-size 16 --dim 64 --batch-size 16 --negatives 32 --device cpu"
        # Batch norm over all images and small steps: then roundings alone differ.
        words += " --sync-batch-norm --temperature 1 --lr 0.000005 --epochs 3 --no-monitor --log-every-steps 1"
        words = [*words.split(), "--loader-threads", "1", "--dataset", dataset(), "--run"]
        run(*words, at / "one")
        self.slurm.srun(2, "instdisc", *words, at / "two")
        parts = sorted(path.name for path in newest(at / "two").glob("bank*.arrow"))
        self.assertEqual(parts, ["bank-00000-of-00002.arrow", "bank-00001-of-00002.arrow"])
        run("inspect", "--verify", newest(at / "two"))

        def losses(folder):
            lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
            return [line["loss"] for line in lines if line["scope"] == "interval"]

        one, two = losses(at / "one"), losses(at / "two")
        self.assertEqual(len(one), len(two))
        self.assertGreater(len(one), 20)
        self.assertLess(max(abs(a / b - 1) for a, b in zip(one, two)), 1e-5)

    def test_a_run_on_two_nodes_that_is_told_to_stop_saves_one_checkpoint_and_goes_on(self):
        at = scratch("slurm-two-nodes")
        job = self.start_training(at, "--nodes=2", "--ntasks-per-node=1")
        self.wait_until_it_trains(at, job, 0)
        self.slurm.tell("scancel", "--signal=TERM", job)
        self.slurm.skip_hold(job)
        self.assertEqual(self.slurm.wait(job, "COMPLETED", "FAILED", "CANCELLED"), "COMPLETED")
        self.assertEqual(self.slurm.field(job, "Restarts"), "1")
        self.assertEqual(self.log(at, "train", job).count("exit code 75, state RUNNING"), 1)
        self.assertIn("by 2 processes", self.log(at, "train", job))
        run("inspect", "--verify", newest(at / "run"))


if __name__ == "__main__":
    unittest.main()
