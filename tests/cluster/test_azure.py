"""The path with everything in a container of Azurite: the same results as on this machine."""

import unittest

from azure import ACCOUNT, CONTAINER, Azurite
from support import (
    CONFIG, DATA, INGEST, dataset, dataset_digest, digest, note, packed, reference, run, skip_without_train, whole_path,
)

AT = f"az://{CONTAINER}/path"


class OnAzurite(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.store = Azurite()
        cls.store.put("path/images.tar", packed())
        words = ["--source", f"{AT}/images.tar", "--dest", f"{AT}/dataset", *INGEST]
        cls.ingested = run("ingest", *words, env=cls.store.env())

    @classmethod
    def tearDownClass(cls):
        cls.store.stop()

    def test_the_dataset_is_that_of_this_machine(self):
        self.assertEqual(dataset_digest(f"{AT}/dataset", env=self.store.env()), dataset_digest(dataset()))
        run("inspect", "--verify", f"{AT}/dataset", env=self.store.env())
        note(f"ingest in {self.ingested.seconds:.0f} s: {self.ingested.traffic}")

    def test_a_second_ingest_finds_everything_done_and_nothing_else_is_left(self):
        words = ["--source", f"{AT}/images.tar", "--dest", f"{AT}/dataset", *INGEST]
        self.assertIn("holds this dataset already", run("ingest", *words, env=self.store.env()).err)
        names = self.store.keys("path/")
        self.assertEqual([name for name in names if "/.work/" in name or "lock." in name or "probe" in name], [])

    def test_wrong_settings_are_told_from_a_store_that_is_away(self):
        at = f"{AT}/dataset"
        absent = run("inspect", "az://there-is-none/x", code=CONFIG, env=self.store.env())
        self.assertIn("ContainerNotFound", absent.err)
        other = self.store.env(AZURE_STORAGE_ACCOUNT_KEY="c29tZSBvdGhlciBrZXk=")
        refused = run("inspect", at, code=CONFIG, env=other)
        self.assertIn(" denied: ", refused.err)
        plain = {name: value for name, value in self.store.env().items() if name != "AZURE_ALLOW_HTTP"}
        self.assertIn("AZURE_ALLOW_HTTP=true", run("inspect", at, code=CONFIG, env=plain).err)
        self.assertIn("neither", run("inspect", f"{AT}/nothing", code=DATA, env=self.store.env()).err)
        meant = run("inspect", f"abfss://{CONTAINER}@{ACCOUNT}.dfs.core.windows.net/path/dataset", code=2,
                    env=self.store.env())
        self.assertIn(f"az://{CONTAINER}/path/dataset", meant.err)

    def test_training_and_knn_give_what_they_give_on_this_machine(self):
        skip_without_train(self)
        self.store.put("whole/images.tar", packed())
        whole_path(self.store.env(), f"az://{CONTAINER}/whole")
        self.assertEqual(digest(self.store.newest_bank("whole/run")), reference())


if __name__ == "__main__":
    unittest.main()
