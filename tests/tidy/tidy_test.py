#!/usr/bin/python3
"""Checks this repository, or the one named as argument, against the rules of tidy.py."""

import pathlib
import sys

import tidy


def main():
    root = sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parents[2]
    tree = tidy.Tree(root)
    found = tidy.findings(tree)
    for rule, finding in found:
        print(f"{finding}  [{rule}]")
    print(f"tidy: {len(tree.files)} files, {len(tidy.RULES)} rules, {len(found)} findings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    sys.exit(main())
