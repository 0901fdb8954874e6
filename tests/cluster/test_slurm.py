"""The job scripts of jobs/slurm on a real SLURM."""

import unittest

from slurm import Slurm
from support import ROOT, WORK, dataset, dataset_digest, digest, newest, pictures, run, scratch, wait_until

JOBS = ROOT / "jobs/slurm"
SMALL = ["--cpus-per-task=1", "--mem=500M"]
# So long that it can be interrupted several times.
EPOCHS = 100
CONFIG = """
arch = "resnet20-cifar"
image_size = 16
dim = 16
batch_size = 16
negatives = 32
device = "cpu"
epochs = {epochs}
checkpoint_every_epochs = {every}
read_threads = 2
no_monitor = true
"""


class OnSlurm(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.slurm = Slurm()
        dataset()

    @classmethod
    def tearDownClass(cls):
        cls.slurm.stop()

    def config(self, at, epochs, every):
        path = at / "run.toml"
        path.write_text(CONFIG.format(epochs=epochs, every=every))
        return path

    def log(self, at, name, job):
        path = at / f"instdisc-{name}-{job}.log"
        return path.read_text() if path.exists() else ""

    def start_training(self, at, *options):
        """Submits a long run; its job id."""
        env = {
            "DATASET": str(dataset()),
            "RUN": str(at / "run"),
            "CONFIG": str(self.config(at, EPOCHS, EPOCHS)),
            "INSTDISC_JOBS": str(JOBS),
        }
        return self.slurm.submit(*SMALL, *options, "--chdir", at, JOBS / "train.sbatch", **env)

    def test_the_pipeline_gives_a_dataset_a_run_and_a_report_for_each_checkpoint(self):
        at = scratch("slurm-pipeline")
        config = self.config(at, 2, 1)
        options = [*SMALL, "--chdir", str(at)]
        command = [JOBS / "pipeline.sh", pictures(), at / "dataset", at / "run", config, *options]
        lines = self.slurm.tell(*command, K="20").split()
        jobs = dict(zip(lines[0::2], lines[1::2]))
        self.assertEqual(list(jobs), ["ingest", "train", "knn"])
        for name, job in jobs.items():
            ended = self.slurm.wait(job, "COMPLETED", "FAILED", "CANCELLED", seconds=180)
            self.assertEqual(ended, "COMPLETED", name)
        self.assertEqual(dataset_digest(at / "dataset"), dataset_digest(dataset()))
        steps = sorted(path.parent.name for path in at.glob("run/checkpoints/*/checkpoint.json"))
        reports = sorted(path.stem.removeprefix("knn-") for path in at.glob("run/eval/knn-*.json"))
        self.assertEqual(reports, steps)
        self.assertEqual(len(steps), 3)

    def test_a_failed_ingest_stops_the_chain(self):
        at = scratch("slurm-chain")
        command = [JOBS / "pipeline.sh", at / "nothing", at / "dataset", at / "run", self.config(at, 1, 1)]
        lines = self.slurm.tell(*command, *SMALL, "--chdir", at).split()
        ingest, train, knn = lines[1::2]
        self.assertEqual(self.slurm.wait(ingest, "FAILED", "COMPLETED"), "FAILED")
        self.assertEqual(self.slurm.field(ingest, "ExitCode"), "74:0")
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
        self.assertEqual(digest(newest(at / "run") / "bank.arrow"), self.undisturbed(at))

    def wait_until_it_trains(self, at, job, restarts):
        """Waits until the job is past its start, and trains."""
        self.slurm.wait(job, "RUNNING")
        marks = lambda: self.log(at, "train", job).count("parameters")
        wait_until(f"job {job} trains", lambda: marks() > restarts, 60)

    def undisturbed(self, at):
        """The bank of the same configuration, run without SLURM."""
        name = f"undisturbed-{EPOCHS}"
        if not list(WORK.glob(f"{name}/checkpoints/*{EPOCHS * 8}/checkpoint.json")):
            scratch(name)
            words = ["--dataset", dataset(), "--run", WORK / name, "--config", at / "run.toml"]
            run("train", *words, "--loader-threads", 1)
        return digest(newest(WORK / name) / "bank.arrow")

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
        step = int(newest(at / "run").name.removeprefix("step-"))
        self.assertGreater(step, 0, "SIGTERM saved a checkpoint")
        run("inspect", "--verify", newest(at / "run"))
        again = self.start_training(at)
        self.assertEqual(self.slurm.wait(again, "COMPLETED", "FAILED"), "COMPLETED")
        self.assertEqual(digest(newest(at / "run") / "bank.arrow"), self.undisturbed(at))

    def test_a_cancelled_ingest_goes_on_to_the_same_dataset_when_it_is_submitted_again(self):
        at = scratch("slurm-ingest")
        many = WORK / "many-pictures"
        if not many.exists():
            run("synth", "--dest", many, "--train-per-class", 400, "--val-per-class", 10, "--image-size", 64)
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
        command = f"instdisc ingest --source {pictures()} --dest {at}/dataset"
        words = ["-n2", "-N2", "--mem=500M", "--output", at / "log", "--chdir", at]
        job = self.slurm.submit(*words, "--wrap", f"srun -n2 sh -c '{command}; echo task ended with $?'")
        self.slurm.wait(job, "COMPLETED", "FAILED")
        codes = sorted(line.split()[-1] for line in (at / "log").read_text().splitlines() if "ended with" in line)
        self.assertIn(codes, [["0", "0"], ["0", "69"]])
        self.assertEqual(dataset_digest(at / "dataset"), dataset_digest(dataset()))


if __name__ == "__main__":
    unittest.main()
