"""The scripts of jobs/setup: what they do where a tool or a database is missing; what they fetch has a hash."""

import os
import re
import shutil
import subprocess
import unittest

from run import PIP
from support import ROOT, scratch

FILES = (ROOT / "jobs/container/Dockerfile", ROOT / "tests/cluster/run.py", *(ROOT / "jobs/setup").glob("*.sh"), *(ROOT / "jobs/wheel").glob("*.sh"))
SYSTEM = "/usr/bin:/bin"
FOLDERS = (ROOT / "jobs/setup/requirements", ROOT / "tests/cluster/requirements")
(OLDEST,) = re.findall(r'^rust-version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)
(TYPOS,) = re.findall(r"^typos==(.*)", (FOLDERS[0] / "lint.in").read_text(), re.MULTILINE)


class LintTools(unittest.TestCase):
    def lint(self, word, **programs):
        """Runs a copy of the script where cargo, rustup, typos and others are these scripts; how it ended, and what
        they were asked."""
        folder = scratch("lint-tools")
        shutil.copytree(ROOT / "jobs/setup", folder / "jobs/setup")
        shutil.copy(ROOT / "Cargo.toml", folder)
        (folder / ".tools/typos/bin").mkdir(parents=True)
        for name, text in programs.items():
            program = folder / (".tools/typos/bin" if name in ("typos", "pip") else "") / name
            program.write_text(f'#!/bin/bash\necho "{name} $*" >>"{folder}/asked"\n{text}\n')
            program.chmod(0o755)
        env = {"PATH": f"{folder}:{SYSTEM}", "HOME": os.environ["HOME"]}
        done = subprocess.run([folder / "jobs/setup/lint-tools.sh", word], env=env, capture_output=True, text=True, timeout=60)
        asked = folder / "asked"
        return done, asked.read_text().splitlines() if asked.exists() else []

    def test_without_cargo_deny_the_check_fails_and_says_how_to_install_it(self):
        done, asked = self.lint("licences", cargo="exit 101")
        self.assertEqual(done.returncode, 1)
        self.assertIn("error: cargo-deny is missing. Install it with: cargo install --locked cargo-deny@", done.stderr)
        self.assertEqual(asked, ["cargo deny --version"])

    def test_a_licence_that_is_not_allowed_ends_the_check(self):
        done, asked = self.lint("licences", cargo='[ "$2" != check ] || exit 4')
        self.assertEqual(done.returncode, 4)
        self.assertEqual(asked[-1], "cargo deny check bans licenses sources")

    def test_a_database_that_cannot_be_reached_is_said_in_one_line(self):
        done, asked = self.lint("licences", cargo='[ "$2" != fetch ] || { echo gone >&2; exit 1; }')
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stdout, r"^known vulnerabilities are not checked: .*\n$")
        self.assertIn("cargo deny check bans licenses sources", asked)
        self.assertNotIn("cargo deny check advisories", asked)

    def test_a_known_vulnerability_ends_the_check_where_the_database_is_reached(self):
        done, asked = self.lint("licences", cargo='[ "$3" != advisories ] || exit 5')
        self.assertEqual(done.returncode, 5)
        self.assertEqual(asked[-1], "cargo deny check advisories")

    def test_the_program_is_checked_with_the_oldest_rust_that_cargo_toml_names(self):
        listed = f"[ \"$1\" != toolchain ] || echo {OLDEST}-x86_64-unknown-linux-gnu"
        done, asked = self.lint("oldest-rust", rustup=listed)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(asked[-1], f"rustup run {OLDEST}-x86_64-unknown-linux-gnu cargo check --no-default-features")

    def test_without_the_oldest_rust_the_check_fails_and_says_how_to_install_it(self):
        done, asked = self.lint("oldest-rust", rustup="[ \"$1\" != toolchain ] || echo stable-x86_64-unknown-linux-gnu")
        self.assertEqual(done.returncode, 1)
        install = f"rustup toolchain install {OLDEST} --profile minimal"
        self.assertIn(f"error: Rust {OLDEST} is missing. Install it with: {install}\n", done.stderr)

    def test_where_rust_came_without_rustup_the_check_says_that_it_used_another_rust(self):
        if shutil.which("rustup", path=SYSTEM):
            self.skipTest("rustup is one of the system's programs here")
        done, asked = self.lint("oldest-rust", cargo="", rustc="echo rustc 1.99.0")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn(f"compiled with rustc 1.99.0, not with Rust {OLDEST}", done.stdout)
        self.assertEqual(asked[-1], "cargo check --no-default-features")

    def test_what_is_missing_is_installed_and_what_is_there_is_not(self):
        listed = f"[ \"$2\" != list ] || echo {OLDEST}.0-x86_64-unknown-linux-gnu"
        done, asked = self.lint("install", rustup=listed, cargo="", typos=f"echo typos-cli {TYPOS}")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(asked, ["rustup toolchain list", "cargo deny --version", "typos --version"])
        done, asked = self.lint("install", rustup="", cargo='[ "$1" != deny ]', python3="", pip="")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn(f"rustup toolchain install {OLDEST} --profile minimal --no-self-update", asked)
        self.assertRegex("\n".join(asked), r"(?m)^cargo install .*--locked cargo-deny@[\d.]+$")
        self.assertEqual(asked[-2], "python3 -m venv --clear .tools/typos")
        self.assertRegex(asked[-1], r"^pip .*--require-hashes -r jobs/setup/requirements/lint.txt$")

    def test_without_this_version_of_typos_the_spelling_is_not_checked_and_that_is_an_error(self):
        for programs in ({}, {"typos": "echo typos-cli 1.0.0"}):
            done, asked = self.lint("spelling", **programs)
            self.assertEqual(done.returncode, 1)
            self.assertIn(f"error: typos {TYPOS} is missing.", done.stderr)

    def test_a_misspelt_word_ends_the_check(self):
        done, asked = self.lint("spelling", typos=f'[ $# = 0 ] && exit 2; echo typos-cli {TYPOS}')
        self.assertEqual(done.returncode, 2)
        self.assertEqual(asked, ["typos --version", "typos "])


class Requirements(unittest.TestCase):
    def test_pip_installs_nothing_whose_hash_is_not_known(self):
        count = 0
        for path in FILES:
            # A command with its continuations.
            for line in re.sub(r"\\\n\s*", " ", path.read_text()).splitlines():
                if re.search(r"\bpip\b.*\b(install|download)\b|bin/pip", line) and not line.lstrip().startswith("#"):
                    count += 1
                    self.assertRegex(line, r"--require-hashes|--no-index|\*PIP\b", path.name)
        self.assertEqual(count, 11, "Dockerfile twice, retry.sh, libtorch.sh, lint-tools.sh, packages.sh, python.sh, the wheel twice, run.py twice")
        self.assertIn("--require-hashes", PIP)

    def test_each_package_of_a_file_of_requirements_has_a_version_and_a_hash(self):
        files = [file for folder in FOLDERS for file in folder.glob("*.txt")]
        self.assertEqual(len(files), 7)
        for path in files:
            text = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE))
            for line in text.splitlines():
                self.assertRegex(line, r"^[a-z0-9.-]+==[^ ]+ .*--hash=sha256:[0-9a-f]{64}\b", path.name)

    def test_what_is_asked_for_is_in_the_file_that_is_installed(self):
        for folder in FOLDERS:
            for source in folder.glob("*.in"):
                installed = source.with_suffix(".txt").read_text()
                for line in source.read_text().splitlines():
                    if line and not line.startswith(("#", "-c")):
                        wanted = re.sub(r"\[.*\]", "", line)
                        self.assertRegex(installed, rf"(?m)^{re.escape(wanted)}\b", source.name)

    def test_libtorch_and_the_tests_take_the_same_torch(self):
        texts = [(FOLDERS[0] / name).read_text() for name in ("libtorch.txt", "python.txt")]
        libtorch, python = [re.findall(r"(?m)^torch==(\S+)", text) for text in texts]
        self.assertEqual(libtorch, python)

    def test_a_package_that_no_file_of_requirements_has_is_an_error(self):
        words = "source jobs/setup/retry.sh; pinned jobs/setup/requirements/libtorch.txt torch nothing"
        done = subprocess.run(["bash", "-euc", words], cwd=ROOT, capture_output=True, text=True)
        self.assertEqual(done.returncode, 1)
        self.assertIn("has no nothing", done.stderr)
        self.assertRegex(done.stdout, r"^torch==[\d.]+ \\\n( +--hash=sha256:[0-9a-f]{64}( \\)?\n)+$")


if __name__ == "__main__":
    unittest.main()
