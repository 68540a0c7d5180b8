#!/usr/bin/python3
"""Tests deploy/bundle.sh with the programs that were built."""

import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "deploy/bundle.sh"
GLIBC = ("linux-vdso", "/lib64/ld-linux", "libc.so", "libm.so")


class BundleTest(unittest.TestCase):

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name).resolve()
        self.build = pathlib.Path(os.environ["BATON_BIN_DIR"]).parent

    def bundle(self, out, *names):
        return subprocess.run([BUNDLE, "--build", self.build, "--out", out, *names],
                              capture_output=True, text=True, check=False)

    def test_programs_run_from_any_place_with_the_folders_libraries(self):
        made = self.bundle(self.folder / "first", "baton", "baton_decode_worker")
        self.assertEqual(made.returncode, 0, made.stderr)
        moved = (self.folder / "first").rename(self.folder / "moved")

        for name in ("baton", "baton_decode_worker"):
            program = moved / "bin" / name
            said = subprocess.run([program, "--version"], env={}, capture_output=True, text=True, check=False)
            self.assertEqual((said.returncode, said.stdout.split()[0]), (0, name), said.stderr)
            loads = subprocess.run(["/usr/bin/ldd", program], env={"PATH": "/usr/bin:/bin"},
                                   capture_output=True, text=True, check=True)
            for line in loads.stdout.splitlines():
                if not line.strip().startswith(GLIBC):
                    self.assertIn(f"=> {moved}/", line)

    def test_what_is_not_a_bundle_is_left_alone(self):
        other = self.folder / "other"
        other.mkdir()
        (other / "letter").write_text("dear")

        refused = self.bundle(other, "baton")

        self.assertEqual(refused.returncode, 1)
        self.assertIn("holds something else", refused.stderr)
        self.assertEqual((other / "letter").read_text(), "dear")

    def test_a_program_that_was_not_built_is_named(self):
        refused = self.bundle(self.folder / "out", "baton", "no_such_program")

        self.assertEqual(refused.returncode, 1)
        self.assertIn("bin/no_such_program: build it first", refused.stderr)


if __name__ == "__main__":
    if "BATON_BIN_DIR" not in os.environ:
        print("BATON_BIN_DIR does not say where the programs are")
        sys.exit(77)
    unittest.main()
