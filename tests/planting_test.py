#!/usr/bin/python3
"""Tests that every bug which scripts plant can still be planted: the code that it replaces is there, once."""

import importlib.util
import pathlib
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[1]
SCRIPTS = ("tests/simulation/planted_bugs.py", "tests/cuda_emulator/planted_bugs.py")


def bugs_of(script):
    spec = importlib.util.spec_from_file_location("planted_bugs", ROOT / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.BUGS


class PlantingTest(unittest.TestCase):

    def test_what_a_bug_replaces_is_there_once(self):
        for script in SCRIPTS:
            bugs = bugs_of(script)
            self.assertGreater(len(bugs), 10, script)
            for name, (path, old, new, *_) in bugs.items():
                with self.subTest(name):
                    self.assertEqual((ROOT / path).read_text().count(old), 1, path)
                    self.assertNotEqual(old, new)


if __name__ == "__main__":
    unittest.main()
