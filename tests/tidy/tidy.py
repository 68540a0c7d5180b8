"""The style guide as a program: checks that can be made by reading the files.

Each rule is a function from a Tree to findings, listed in RULES at the end. tidy_test.py runs them
on this repository; tidy_rules_test.py plants a violation of each and sees it found.
See CONTRIBUTING.md for the reasons.
"""

import fnmatch
import hashlib
import os
import pathlib
import re
import shutil
import subprocess

TOP_LEVEL = {
    "proto", "common", "prefill_worker", "decode_worker", "router", "deploy", "tests",
    "CMakeLists.txt", "CMakePresets.json", "LICENSE",
}
BUILD_FOLDERS = {"build", ".git", ".cache", "__pycache__"}
CPP = (".h", ".inc", ".cc", ".cu", ".cuh")
TEXT = CPP + (".proto", ".py", ".sh", ".txt", ".cmake", ".md")
FILE_LINES_MAX = 700
FILE_BYTES_MAX = 8 << 20
BASE_HEADERS_MAX = 12
CLANG_FORMAT_MAJOR = "14"
APACHE_2_SHA256 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
VAGUE_NAMES = {"util", "utils", "misc", "helper", "helpers", "common", "stuff", "types"}
TIDY_FOLDER = "tests/tidy/"


class Tree:
    """The files of a checkout: what git tracks or would track, else everything but build output."""

    def __init__(self, root):
        self.root = pathlib.Path(root)
        self.files = self._from_git() or self._from_walk()
        self._text = {}

    def _from_git(self):
        if not (self.root / ".git").exists():
            return None
        listing = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=self.root, capture_output=True, check=False)
        if listing.returncode != 0:  # No git here, or it does not trust the folder's owner.
            return None
        names = listing.stdout.decode().split("\0")
        return sorted({name for name in names if name and (self.root / name).is_file()})

    def _from_walk(self):
        found = []
        for folder, subfolders, names in os.walk(self.root):
            subfolders[:] = [name for name in subfolders if name not in BUILD_FOLDERS]
            for name in names:
                found.append((pathlib.Path(folder) / name).relative_to(self.root).as_posix())
        return sorted(found)

    def with_suffix(self, suffixes):
        return [name for name in self.files if name.endswith(suffixes)]

    def text(self, name):
        """The file's text, or None where it is not UTF-8."""
        if name not in self._text:
            try:
                self._text[name] = (self.root / name).read_bytes().decode()
            except UnicodeDecodeError:
                self._text[name] = None
        return self._text[name]

    def lines(self, name):
        """(number, line) of a text file; nothing for a binary one."""
        return list(enumerate((self.text(name) or "").splitlines(), start=1))


def is_generated(name):
    """Data that programs wrote: goldens, the demo model, corpora."""
    parts = name.split("/")
    return "goldens" in parts or "corpus" in parts or name.endswith((".json", ".jsonl"))


# ---- Layout --------------------------------------------------------------------------------------

def top_level_is_fixed(tree):
    for entry in sorted({name.split("/")[0] for name in tree.files}):
        if entry not in TOP_LEVEL and not entry.startswith(".") and not entry.endswith(".md"):
            yield f"{entry}: the top level is fixed (ARCHITECTURE.md, \"Folders\")"


def names_say_what_is_inside(tree):
    for name in tree.files:
        path = pathlib.PurePosixPath(name)
        vague = [part for part in path.parts[1:-1] if part in VAGUE_NAMES]
        if path.suffix in CPP and path.stem.removesuffix("_test") in VAGUE_NAMES:
            vague.append(path.name)
        if vague:
            yield f"{name}: '{vague[0]}' does not say what is inside"


def base_stays_small(tree):
    headers = [name for name in tree.with_suffix(".h") if name.startswith("common/base/")]
    if len(headers) > BASE_HEADERS_MAX:
        yield f"common/base: {len(headers)} headers; at most {BASE_HEADERS_MAX} fit into it"


def files_stay_small(tree):
    for name in tree.files:
        size = (tree.root / name).stat().st_size
        if size > FILE_BYTES_MAX:
            yield f"{name}: {size} bytes; at most {FILE_BYTES_MAX}"
        if name.endswith(CPP + (".py", ".sh", ".proto")) and not is_generated(name):
            count = len(tree.lines(name))
            if count > FILE_LINES_MAX:
                yield f"{name}: {count} lines; at most {FILE_LINES_MAX}. Split it by reasons to change"


def folders_say_what_they_are(tree):
    for name in tree.files:
        if not name.endswith("CMakeLists.txt"):
            continue
        if not (tree.text(name) or "").startswith("# "):
            yield f"{name}:1: begins with a sentence that says what the target is"


def license_is_apache_2(tree):
    if "LICENSE" not in tree.files:
        yield "LICENSE: missing"
    elif hashlib.sha256((tree.root / "LICENSE").read_bytes()).hexdigest() != APACHE_2_SHA256:
        yield "LICENSE: not the unchanged text of the Apache License 2.0"


# ---- Text ----------------------------------------------------------------------------------------

def text_is_clean(tree):
    for name in tree.with_suffix(TEXT):
        if is_generated(name):
            continue
        text = tree.text(name)
        if text is None:
            yield f"{name}: not UTF-8"
            continue
        if text and not text.endswith("\n"):
            yield f"{name}: no newline at the end"
        for number, line in tree.lines(name):
            if line != line.rstrip():
                yield f"{name}:{number}: white space at the end of the line"
            elif "\t" in line:
                yield f"{name}:{number}: a tab"


def read_banned(path):
    """[(globs, globs taken out, pattern, replacement)] of banned.txt."""
    rules = []
    for line in path.read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        files, pattern, instead = (field.strip() for field in line.split(" | "))
        globs = files.split()
        wanted = [glob for glob in globs if not glob.startswith("!")]
        unwanted = [glob[1:] for glob in globs if glob.startswith("!")]
        rules.append((wanted, unwanted, re.compile(pattern), instead))
    return rules


def matches_any(name, globs):
    return any(fnmatch.fnmatchcase(name, glob) for glob in globs)


def banned_words(tree):
    rules = read_banned(pathlib.Path(__file__).with_name("banned.txt"))
    for name in tree.files:
        if name.startswith(TIDY_FOLDER) or is_generated(name):
            continue
        patterns = [(pattern, instead) for wanted, unwanted, pattern, instead in rules
                    if matches_any(name, wanted) and not matches_any(name, unwanted)]
        for number, line in tree.lines(name) if patterns else ():
            for pattern, instead in patterns:
                found = pattern.search(line)
                if found:
                    yield f"{name}:{number}: '{found.group().strip()}'; instead: {instead}"


def quoted_sections_exist(tree):
    """Code cites `"Equal bits" in DESIGN_NOTES.md`: such a section must be there."""
    headings = {}
    for name in tree.files:
        if name.endswith(".md"):
            headings[name] = {re.sub(r"^#+\s*(\d+\.\s*)?", "", line).strip()
                              for _, line in tree.lines(name) if line.startswith("#")}
    cited = re.compile(r'"([^"\n]+)"(?:\s+|\s*(?://|#)\s*)(?:of|in)(?:\s+|\s*(?://|#)\s*)([A-Z_]+\.md)')
    for name in tree.with_suffix(TEXT):
        if name.startswith(TIDY_FOLDER):
            continue
        # A citation may be broken over two lines of a comment.
        text = re.sub(r"\n\s*(//|#)\s*", " ", tree.text(name) or "")
        for section, document in cited.findall(text):
            section = section.rstrip(".,")
            if section not in headings.get(document, set()):
                yield f"{name}: cites \"{section}\" in {document}, which has no such section"


def links_lead_somewhere(tree):
    link = re.compile(r"\]\(([^)#\s]+)(#[^)]*)?\)")
    for name in tree.with_suffix(".md"):
        for number, line in tree.lines(name):
            for target, _ in link.findall(line):
                if "://" in target or target.startswith("mailto:"):
                    continue
                if not (tree.root / name).parent.joinpath(target).exists():
                    yield f"{name}:{number}: links to {target}, which is not there"


def readme_shows_the_tested_client(tree):
    client = tree.text("tests/e2e/client.py") if "tests/e2e/client.py" in tree.files else None
    if "README.md" not in tree.files or client is None:
        return
    if f"```python\n{client}```" not in tree.text("README.md"):
        yield "README.md: its Python example differs from tests/e2e/client.py, which is the tested one"


# ---- C++ -----------------------------------------------------------------------------------------

def guards_spell_the_path(tree):
    for name in tree.with_suffix((".h", ".cuh")):
        guard = "BATON_" + re.sub(r"[^A-Za-z0-9]", "_", name).upper() + "_"
        text = tree.text(name) or ""
        if f"#ifndef {guard}\n#define {guard}\n" not in text:
            yield f"{name}: its guard must be {guard}"
        elif not text.rstrip().endswith(f"#endif  // {guard}"):
            yield f"{name}: must end with '#endif  // {guard}'"


def headers_say_what_they_are(tree):
    for name in tree.with_suffix((".h", ".cuh")):
        if not (tree.text(name) or "").startswith("//"):
            yield f"{name}:1: begins with a comment: what it is, who owns it, which thread"


def own_header_comes_first(tree):
    for name in tree.with_suffix((".cc", ".cu")):
        stem = name.rsplit(".", 1)[0].removesuffix("_test")
        header = stem + ".h"
        if header not in tree.files:
            continue
        includes = re.findall(r'^#include\s+([<"][^>"]+[>"])', tree.text(name) or "", re.MULTILINE)
        if includes and includes[0] != f'"{header}"':
            yield f"{name}: includes its own header, \"{header}\", first"


def enum_switches_are_whole(tree):
    """A `default:` hides the enumerator that was added later; the compiler would have named it."""
    switch = re.compile(r"\bswitch\s*\(")
    for name in tree.with_suffix(CPP):
        text = strip_comments(tree.text(name) or "")
        for start in switch.finditer(text):
            body, line = block_after(text, start.end() - 1)
            if re.search(r"\bdefault\s*:", body) and re.search(r"\bcase\s+[\w:]*::k[A-Z]\w*\s*:", body):
                yield f"{name}:{line}: `default:` in a switch over an enum; name the rest"


def strip_comments(text):
    """Blanks comments and string contents, keeping line breaks. Raw strings are left as they are."""
    pattern = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', re.DOTALL)

    def blank(found):
        piece = found.group()
        return '""' if piece.startswith('"') else "\n" * piece.count("\n")
    return pattern.sub(blank, text)


def block_after(text, position):
    """The {…} after the (…) that opens at `position`, without blocks of inner switches; its line."""
    line = text.count("\n", 0, position) + 1
    depth = 0
    begin = None
    for i in range(position, len(text)):
        if text[i] == "{":
            if depth == 0:
                begin = i
            depth += 1
        elif text[i] == "}":
            depth -= 1
            if depth == 0 and begin is not None:
                body = text[begin + 1:i]
                inner = body.find("switch")
                return (body if inner < 0 else body[:inner]), line
    return "", line


class Layering:
    """layering.txt, read."""

    def __init__(self, path):
        self.level, self.forbidden, self.allowed = {}, {}, {}
        self.pure, self.impure = [], []
        for line in path.read_text().splitlines():
            line = line.split("#")[0].strip()
            if not line:
                continue
            words = line.replace(":", " ").split()
            kind, rest = words[0], words[1:]
            if kind == "level":
                self.level.update({folder: int(rest[0]) for folder in rest[1:]})
            elif kind == "forbid":
                self.forbidden.setdefault(rest[0], set()).update(rest[1:])
            elif kind == "allow":
                self.allowed.setdefault(rest[0], []).extend(rest[1:])
            elif kind == "pure":
                self.pure.extend(rest)
            elif kind == "impure":
                self.impure.extend(rest)
            else:
                raise ValueError(f"{path}: unknown word '{kind}'")

    def folder_of(self, name):
        """The folder of layering.txt that a file belongs to; None if none."""
        parts = name.split("/")
        for length in (2, 1):
            folder = "/".join(parts[:length])
            if folder in self.level and len(parts) > length:
                return folder
        return None

    def objection(self, name, included):
        """Why `name` may not include `included`; None if it may."""
        source, target = self.folder_of(name), self.folder_of(included)
        if source is None or target is None or source == target:
            return None
        if target in self.forbidden.get(source, ()):
            return f"{source} may not see {target}"
        if self.level[target] < self.level[source] or matches_any(included, self.allowed.get(source, [])):
            return None
        return f"{target} is not below {source}"


def layers_hold(tree):
    layering = Layering(pathlib.Path(__file__).with_name("layering.txt"))
    for name in tree.with_suffix(CPP + (".proto",)):
        first = name.split("/")[0]
        if layering.folder_of(name) is None and first in ("common", "router", "prefill_worker", "decode_worker"):
            yield f"{name}: its folder is not in tests/tidy/layering.txt"
            continue
        is_pure = matches_any(name, layering.pure) and not re.search(r"_test\.|/testing/", name)
        for number, line in tree.lines(name):
            if is_pure and re.search(r"(?<![\w.>])Now\(\)", line.split("//")[0]):
                yield f"{name}:{number}: calls Now(), but it is a pure core: it has no clock of its own"
            found = re.match(r'\s*(?:#\s*include\s*|import\s+)["<]([^">]+)[">]', line)
            if not found:
                continue
            included = found.group(1)
            objection = layering.objection(name, included)
            if objection:
                yield f"{name}:{number}: includes {included}, but {objection} (ARCHITECTURE.md, \"Layering\")"
            elif is_pure and matches_any(included, layering.impure):
                yield f"{name}:{number}: includes {included}, but it is a pure core: events and a time in, actions out"


def programs_contain_no_test_code(tree):
    for name in tree.with_suffix(CPP):
        if name.startswith("tests/") or re.search(r"_(test|bench|fuzz)\.|/testing/", name):
            continue
        for number, line in tree.lines(name):
            found = re.match(r'\s*#\s*include\s+"((?:tests|.*/testing)/[^"]+)"', line)
            if found:
                yield f"{name}:{number}: includes {found.group(1)}, which is for tests only"


# ---- Tests ---------------------------------------------------------------------------------------

def every_test_is_registered(tree):
    """A test that ctest does not run does not exist."""
    for name in tree.files:
        path = pathlib.PurePosixPath(name)
        if not re.fullmatch(r".*_test\.(cc|cu|py|sh)", path.name):
            continue
        lists = []
        for folder in path.parents:
            listing = (folder / "CMakeLists.txt").as_posix()
            if listing in tree.files:
                lists.append(re.sub(r"#.*", "", tree.text(listing) or ""))
        if path.suffix in (".cc", ".cu"):
            pattern = rf"\bbaton_(?:\w+_)?test\(\s*{re.escape(path.stem)}\b|[\s(]([\w/]*/)?{re.escape(path.name)}\b"
        else:
            pattern = rf"[\s(/]{re.escape(path.name)}\b"
        if not any(re.search(pattern, listing) for listing in lists):
            yield f"{name}: no CMakeLists.txt of its folder registers it with ctest"


# ---- Formatting ----------------------------------------------------------------------------------

def formatting(tree):
    """clang-format 14 finds nothing to change. Left out, with a message, where it is not installed."""
    tool = shutil.which(f"clang-format-{CLANG_FORMAT_MAJOR}") or shutil.which("clang-format")
    version = ""
    if tool:
        said = subprocess.run([tool, "--version"], capture_output=True, text=True, check=False).stdout
        found = re.search(r"version (\d+)\.", said)
        version = found.group(1) if found else ""
    if version != CLANG_FORMAT_MAJOR:
        print(f"formatting: left out, there is no clang-format {CLANG_FORMAT_MAJOR} "
              "(deploy/install_deps.sh --dev installs it)")
        return
    names = tree.with_suffix(CPP)
    if not names:
        return
    run = subprocess.run([tool, "--dry-run", "--style=file", *names], cwd=tree.root,
                         capture_output=True, text=True, check=False)
    seen = set()
    for name, number in re.findall(r"^(\S+?):(\d+):\d+: (?:warning|error):", run.stderr, re.MULTILINE):
        if name not in seen:
            seen.add(name)
            yield f"{name}:{number}: not formatted; run clang-format -i {name}"
    if run.returncode != 0 and not seen:
        yield f"clang-format failed: {run.stderr.strip()}"


RULES = [
    top_level_is_fixed, names_say_what_is_inside, base_stays_small, files_stay_small,
    folders_say_what_they_are, license_is_apache_2, text_is_clean, banned_words,
    quoted_sections_exist, links_lead_somewhere, readme_shows_the_tested_client,
    guards_spell_the_path, headers_say_what_they_are, own_header_comes_first,
    enum_switches_are_whole, layers_hold, programs_contain_no_test_code, every_test_is_registered,
    formatting,
]


def findings(tree, rules=None):
    """[(rule's name, finding)] in the order of the rules."""
    return [(rule.__name__, finding) for rule in rules or RULES for finding in rule(tree)]
