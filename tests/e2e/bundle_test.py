#!/usr/bin/python3
"""Tests deploy/bundle.sh with the programs that were built."""

import os
import pathlib
import re
import shutil
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

    def bundle(self, out, *arguments):
        return subprocess.run([BUNDLE, "--build", self.build, "--out", out, *arguments],
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

    def test_a_worker_finds_ucx_and_its_transports_there(self):
        made = self.bundle(self.folder / "out", "baton_decode_worker")
        self.assertEqual(made.returncode, 0, made.stderr)
        worker = [self.folder / "out/bin/baton_decode_worker", "--model", ROOT / "deploy/demo_model/model",
                  "--listen", "127.0.0.1:0", "--kv_memory", "16MiB"]

        # What sanitizers need is in the environment.
        environment = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
        with subprocess.Popen(worker, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
            address = running.stdout.readline()
            maps = pathlib.Path(f"/proc/{running.pid}/maps").read_text()
            running.terminate()
            self.assertRegex(address, r"127\.0\.0\.1:\d+", running.stderr.read())

        loaded = {line.split()[-1] for line in maps.splitlines() if re.search(r"/libuc\w+\.so", line)}
        self.assertTrue(any("/lib/ucx/" in path for path in loaded), loaded)
        for path in loaded:
            self.assertTrue(path.startswith(f"{self.folder}/out/lib/"), path)

    def test_ucx_may_come_from_elsewhere(self):
        made = self.bundle(self.folder / "out", "baton_decode_worker", "--no_ucx")
        self.assertEqual(made.returncode, 0, made.stderr)
        self.assertEqual(list((self.folder / "out/lib").glob("libuc*")), [])

        elsewhere = self.folder / "elsewhere"
        elsewhere.mkdir()
        for library in pathlib.Path("/usr/lib/x86_64-linux-gnu").glob("libuc[mpst].so.0"):
            shutil.copy(library, elsewhere)

        loads = subprocess.run(["/usr/bin/ldd", self.folder / "out/bin/baton_decode_worker"],
                               env={"PATH": "/usr/bin:/bin", "LD_LIBRARY_PATH": str(elsewhere)},
                               capture_output=True, text=True, check=True).stdout

        self.assertIn(f"=> {elsewhere}/libucp.so.0", loads)
        self.assertIn(f"=> {elsewhere}/libucs.so.0", loads)

    def test_what_is_not_a_bundle_is_left_alone(self):
        other = self.folder / "other"
        (other / "lib").mkdir(parents=True)
        (other / "lib/letter").write_text("dear")

        refused = self.bundle(other, "baton")

        self.assertEqual(refused.returncode, 1)
        self.assertIn("holds something else", refused.stderr)
        self.assertEqual((other / "lib/letter").read_text(), "dear")

    def test_a_bundle_is_made_anew(self):
        for name in ("baton_decode_worker", "baton"):
            made = self.bundle(self.folder / "out", name)
            self.assertEqual(made.returncode, 0, made.stderr)

        self.assertEqual([path.name for path in (self.folder / "out/bin").iterdir()], ["baton"])

    def test_a_program_that_was_not_built_is_named(self):
        refused = self.bundle(self.folder / "out", "baton", "no_such_program")

        self.assertEqual(refused.returncode, 1)
        self.assertIn("bin/no_such_program: build it first", refused.stderr)


if __name__ == "__main__":
    if "BATON_BIN_DIR" not in os.environ:
        print("BATON_BIN_DIR does not say where the programs are")
        sys.exit(77)
    unittest.main()
