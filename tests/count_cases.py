#!/usr/bin/python3
"""Sums up a run of the tests: count_cases.py RESULTS_FOLDER SECONDS.

RESULTS_FOLDER holds ctest's own reports (ctest_*.xml) and the reports of the GoogleTest programs
(cases/NAME.xml). A test that ctest failed counts as at least one failed case, whatever its program
had reported by then: it may have crashed, hung, or leaked at exit. Exit status 1 if anything failed
or nothing ran.
"""

import pathlib
import sys
import xml.etree.ElementTree as ElementTree


def count_program(path):
    """(passed, failed, skipped) of one GoogleTest report; None if there is no whole one."""
    try:
        suites = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError):
        return None
    passed = failed = skipped = 0
    for case in suites.iter("testcase"):
        if case.get("status") != "run":
            continue
        if case.find("failure") is not None:
            failed += 1
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    return passed, failed, skipped


def was_skipped(test):
    """The test itself said so (exit status 77). One that could not be started is "notrun" as well."""
    reason = test.find("skipped")
    return reason is not None and "SKIP_" in reason.get("message", "")


def main():
    results = pathlib.Path(sys.argv[1])
    seconds = int(sys.argv[2])
    passed = failed = skipped = programs = 0
    slowest = []
    for report in sorted(results.glob("ctest_*.xml")):
        for test in ElementTree.parse(report).getroot().iter("testcase"):
            name, status = test.get("name"), test.get("status")
            programs += 1
            slowest.append((float(test.get("time", 0)), name))
            cases = count_program(results / "cases" / f"{name}.xml")
            if status == "run" and cases:
                passed += cases[0]
                failed += cases[1]
                skipped += cases[2]
            elif status == "run":
                passed += 1
            elif was_skipped(test):
                skipped += 1
                print(f"skipped: {name}")
            else:
                passed += cases[0] if cases else 0
                failed += max(1, cases[1]) if cases else 1
                skipped += cases[2] if cases else 0
                print(f"failed: {name}")
    slowest.sort(reverse=True)
    print("slowest:", ", ".join(f"{name} {time:.1f} s" for time, name in slowest[:5]))
    skipped_text = f", {skipped} cases skipped" if skipped else ""
    print(f"{programs} test programs in {seconds // 60} min {seconds % 60} s with the build{skipped_text}")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
