#!/usr/bin/python3
"""Tests count_cases.py on reports as ctest and GoogleTest write them."""

import pathlib
import subprocess
import sys
import tempfile
import unittest

SCRIPT = pathlib.Path(__file__).with_name("count_cases.py")


class CountCasesTest(unittest.TestCase):

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.results = pathlib.Path(folder.name)
        (self.results / "cases").mkdir()

    def ctest(self, *tests):
        messages = {"skip": "SKIP_RETURN_CODE=77", "notrun": "Unable to find executable"}
        cases = "".join(f'<testcase name="{name}" time="1.5" status="{status.replace("skip", "notrun")}">'
                        f'<skipped message="{messages[status]}"/></testcase>' if status in messages else
                        f'<testcase name="{name}" time="1.5" status="{status}"/>' for name, status in tests)
        (self.results / "ctest_1.xml").write_text(f"<testsuite>{cases}</testsuite>")

    def program(self, name, *cases):
        text = "".join(f'<testcase name="c" status="run">{inside}</testcase>' for inside in cases)
        (self.results / "cases" / f"{name}.xml").write_text(f"<testsuites><testsuite>{text}</testsuite></testsuites>")

    def count(self):
        run = subprocess.run([sys.executable, str(SCRIPT), str(self.results), "61"], capture_output=True,
                             text=True, check=False)
        return run.stdout.splitlines(), run.returncode

    def test_cases_and_scripts_are_summed(self):
        self.ctest(("a_test", "run"), ("script_test", "run"))
        self.program("a_test", "", "", "<skipped/>")

        lines, status = self.count()

        self.assertEqual(lines[-1], "3 passed, 0 failed")
        self.assertIn("2 test programs in 1 min 1 s with the build, 1 cases skipped", lines[-2])
        self.assertEqual(status, 0)

    def test_failed_case_fails_the_run(self):
        self.ctest(("a_test", "fail"))
        self.program("a_test", "", "<failure/>")

        lines, status = self.count()

        self.assertEqual((lines[-1], status), ("1 passed, 1 failed", 1))

    def test_crash_counts_although_no_case_failed(self):
        self.ctest(("leaks_test", "fail"), ("crashes_test", "fail"))
        self.program("leaks_test", "", "")

        lines, status = self.count()

        self.assertEqual((lines[-1], status), ("2 passed, 2 failed", 1))

    def test_torn_report_is_no_report(self):
        self.ctest(("a_test", "fail"))
        (self.results / "cases" / "a_test.xml").write_text("<testsuites><testsuite>")

        lines, status = self.count()

        self.assertEqual((lines[-1], status), ("0 passed, 1 failed", 1))

    def test_test_that_could_not_start_fails(self):
        self.ctest(("a_test", "run"), ("gone_test", "notrun"))

        lines, status = self.count()

        self.assertIn("failed: gone_test", lines)
        self.assertEqual((lines[-1], status), ("1 passed, 1 failed", 1))

    def test_test_that_skipped_itself_is_named(self):
        self.ctest(("a_test", "run"), ("demo_test", "skip"))

        lines, status = self.count()

        self.assertIn("skipped: demo_test", lines)
        self.assertEqual((lines[-1], status), ("1 passed, 0 failed", 0))

    def test_nothing_ran_is_a_failure(self):
        lines, status = self.count()

        self.assertEqual((lines[-1], status), ("0 passed, 0 failed", 1))


if __name__ == "__main__":
    unittest.main()
