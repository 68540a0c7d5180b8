"""Plants bugs into a copy of the tree, one at a time, for scripts that prove that tests bite.

What they have in common: the copy, its build, and that a file is as before when a bug was tried.
"""

import contextlib
import filecmp
import pathlib
import shutil
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[1]


def copy_tree(tree):
    """Copies what git knows and what is new; touches nothing that is equal already."""
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                            check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        source, target = ROOT / name, tree / name
        if not source.is_file() or (target.exists() and filecmp.cmp(source, target, shallow=False)):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)  # Not with its time: it may be older than the last build here.


def build(tree, target, *flags):
    """The finished build of a target; `flags` count when the tree is configured first."""
    if not (tree / "build/build.ninja").exists():
        subprocess.run(["cmake", "-S", str(tree), "-B", str(tree / "build"), "-G", "Ninja",
                        "-DCMAKE_BUILD_TYPE=RelWithDebInfo", "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O2 -g1",
                        "-DBATON_WERROR=OFF", *flags], check=True, stdout=subprocess.DEVNULL)
    return subprocess.run(["cmake", "--build", str(tree / "build"), "--target", target], check=False,
                          capture_output=True, text=True)


@contextlib.contextmanager
def planted(tree, path, old, new):
    """True while `new` stands in the place of `old`; False if that is not there exactly once."""
    file = tree / path
    text = file.read_text()
    if text.count(old) != 1:
        yield False
        return
    file.write_text(text.replace(old, new))
    try:
        yield True
    finally:
        file.write_text(text)
