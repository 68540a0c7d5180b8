#!/usr/bin/python3
"""Plants a violation of each rule of tidy.py in a small clean tree and sees it found."""

import pathlib
import shutil
import sys
import tempfile
import unittest

sys.dont_write_bytecode = True
import tidy  # pylint: disable=wrong-import-position

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]

HEADER = """// Counts blocks. The engine thread owns it.
#ifndef BATON_COMMON_KV_CACHE_COUNTER_H_
#define BATON_COMMON_KV_CACHE_COUNTER_H_

#include "common/base/ids.h"

namespace baton {}  // namespace baton

#endif  // BATON_COMMON_KV_CACHE_COUNTER_H_
"""
SOURCE = '#include "common/kv_cache/counter.h"\n\nnamespace baton {}  // namespace baton\n'
TEST = '#include "common/kv_cache/counter.h"\n\nnamespace baton {}  // namespace baton\n'
CMAKE = "# Counts blocks.\nbaton_library(kv_cache\n  SOURCES counter.cc)\nbaton_test(counter_test LABELS unit)\n"


class TidyRulesTest(unittest.TestCase):

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)
        self.write("common/kv_cache/counter.h", HEADER)
        self.write("common/kv_cache/counter.cc", SOURCE)
        self.write("common/kv_cache/counter_test.cc", TEST)
        self.write("common/kv_cache/CMakeLists.txt", CMAKE)
        self.write("CMakeLists.txt", "# Baton.\nproject(baton)\n")
        shutil.copy(REPOSITORY / "LICENSE", self.root / "LICENSE")
        shutil.copy(REPOSITORY / ".clang-format", self.root / ".clang-format")

    def write(self, name, text):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def found(self):
        # Without the formatter, which takes longer than all other rules together.
        rules = [rule for rule in tidy.RULES if rule is not tidy.formatting]
        return tidy.findings(tidy.Tree(self.root), rules)

    def expect_found(self, rule, part):
        """`rule` has exactly one finding that contains `part`, and no other rule has any."""
        found = self.found()
        self.assertEqual([name for name, _ in found], [rule.__name__], found)
        self.assertIn(part, found[0][1])

    def test_clean_tree_has_no_findings(self):
        self.assertEqual(self.found(), [])

    def test_every_rule_has_a_test(self):
        tested = pathlib.Path(__file__).read_text()
        for rule in tidy.RULES:
            self.assertRegex(tested, rf"tidy\.{rule.__name__}[,\]]")

    def test_foreign_entry_at_the_top(self):
        self.write("scripts/go.txt", "go\n")
        self.expect_found(tidy.top_level_is_fixed, "scripts")

    def test_vague_file_name(self):
        guard = "BATON_COMMON_KV_CACHE_UTIL_H_"
        self.write("common/kv_cache/util.h", f"// A.\n#ifndef {guard}\n#define {guard}\n\n#endif  // {guard}\n")
        self.expect_found(tidy.names_say_what_is_inside, "util.h")

    def test_vague_folder_name(self):
        self.write("router/helpers/a.txt", "a\n")
        self.expect_found(tidy.names_say_what_is_inside, "'helpers'")

    def test_thirteenth_header_in_base(self):
        for i in range(13):
            guard = f"BATON_COMMON_BASE_A{i}_H_"
            self.write(f"common/base/a{i}.h", f"// A.\n#ifndef {guard}\n#define {guard}\n\n#endif  // {guard}\n")
        self.expect_found(tidy.base_stays_small, "13 headers")

    def test_long_file(self):
        self.write("deploy/long.py", "pass\n" * 701)
        self.expect_found(tidy.files_stay_small, "701 lines")

    def test_long_golden_is_data(self):
        self.write("tests/goldens/long.py", "pass\n" * 701)
        self.assertEqual(self.found(), [])

    def test_large_file(self):
        self.write("deploy/large.bin", "a" * ((8 << 20) + 1))
        self.expect_found(tidy.files_stay_small, "8388609 bytes")

    def test_folder_without_a_sentence(self):
        self.write("router/CMakeLists.txt", "baton_library(router)\n")
        self.expect_found(tidy.folders_say_what_they_are, "router/CMakeLists.txt")

    def test_changed_license(self):
        self.write("LICENSE", "Do as you like.\n")
        self.expect_found(tidy.license_is_apache_2, "Apache")

    def test_missing_license(self):
        (self.root / "LICENSE").unlink()
        self.expect_found(tidy.license_is_apache_2, "missing")

    def test_white_space_at_the_end_of_a_line(self):
        self.write("router/a.txt", "a \n")
        self.expect_found(tidy.text_is_clean, "router/a.txt:1")

    def test_tab(self):
        self.write("router/a.txt", "a\tb\n")
        self.expect_found(tidy.text_is_clean, "a tab")

    def test_no_newline_at_the_end(self):
        self.write("router/a.txt", "a")
        self.expect_found(tidy.text_is_clean, "no newline")

    def test_not_utf_8(self):
        (self.root / "deploy").mkdir()
        (self.root / "deploy/a.txt").write_bytes(b"\xff\n")
        self.expect_found(tidy.text_is_clean, "not UTF-8")

    def test_banned_words(self):
        planted = [
            "void F() { std::cout << std::endl; }", "using namespace std;", "int a = rand();",
            "int a = std::rand();", "std::random_device device;", "void F() { absl::SleepFor(a); }",
            "void F() { std::this_thread::sleep_for(a); }", "void F() { sleep(1); }",
            "void F() { thread.detach(); }", "void F() { GTEST_SKIP(); }", "TEST(A, DISABLED_B) {}",
            "void F() { assert(true); }", "#ifdef BATON_CUDA\n#endif", "#if 0\n#endif",
            "void F() { std::cerr << 1; }", 'void F() { printf("debug"); }',
            "int a = 1;  // TO" + "DO: remove.",
            "int a = 1;  // As in the next iss" + "ue.", "const char* p = \"/wo" + "rk/main\";",
        ]
        for line in planted:
            with self.subTest(line):
                self.write("common/kv_cache/counter.cc", SOURCE + line + "\n")
                self.assertIn(tidy.banned_words, [getattr(tidy, name) for name, _ in self.found()])

    def test_words_that_only_look_banned(self):
        for line in ["int a = operand(1);", "void F() { stream.rand(); }", "int sleeping(int);",
                     "void F() { GTEST_SKIP() << 1; }", "static_assert(true);",
                     "void F() { std::snprintf(a, 1, b); }"]:
            with self.subTest(line):
                self.write("common/kv_cache/counter.cc", SOURCE + line + "\n")
                self.assertNotIn(tidy.banned_words, [getattr(tidy, name) for name, _ in self.found()])

    def test_banned_word_in_a_script(self):
        self.write("deploy/stop.sh", "kill" + "all baton_router\n")
        self.expect_found(tidy.banned_words, "process id")

    def test_citation_of_a_missing_section(self):
        self.write("DESIGN_NOTES.md", "# Notes\n\n## Zombie workers\n\nText.\n")
        self.write("common/kv_cache/counter.cc", SOURCE + '// See "Lost\n// blocks" in DESIGN_NOTES.md.\n')
        self.expect_found(tidy.quoted_sections_exist, "Lost blocks")

    def test_citation_of_a_section_that_is_there(self):
        self.write("DESIGN_NOTES.md", "# Notes\n\n## Zombie workers\n\nText.\n")
        self.write("common/kv_cache/counter.cc", SOURCE + '// See "Zombie workers" in\n// DESIGN_NOTES.md.\n')
        self.assertEqual(self.found(), [])

    def test_dead_link(self):
        self.write("README.md", "See [the rules](RULES.md).\n")
        self.expect_found(tidy.links_lead_somewhere, "RULES.md")

    def test_readme_with_another_client(self):
        self.write("tests/e2e/client.py", "print(1)\n")
        self.write("README.md", "```python\nprint(2)\n```\n")
        self.expect_found(tidy.readme_shows_the_tested_client, "client.py")

    def test_wrong_header_guard(self):
        self.write("common/kv_cache/counter.h", HEADER.replace("KV_CACHE", "KV"))
        self.expect_found(tidy.guards_spell_the_path, "BATON_COMMON_KV_CACHE_COUNTER_H_")

    def test_header_without_a_comment(self):
        self.write("common/kv_cache/counter.h", HEADER.split("\n", 1)[1])
        self.expect_found(tidy.headers_say_what_they_are, "counter.h:1")

    def test_own_header_is_not_first(self):
        self.write("common/kv_cache/counter.cc", '#include "common/base/ids.h"\n' + SOURCE)
        self.expect_found(tidy.own_header_comes_first, "counter.cc")

    def test_default_in_a_switch_over_an_enum(self):
        self.write("common/kv_cache/counter.cc", SOURCE + "int F(K k) {\n  switch (k) {\n    case K::kA:\n"
                   "      return 1;\n    default:\n      return 2;\n  }\n}\n")
        self.expect_found(tidy.enum_switches_are_whole, "counter.cc:5")

    def test_default_in_a_switch_over_integers(self):
        self.write("common/kv_cache/counter.cc", SOURCE + "int F(int k) {\n  switch (k) {\n    case 1:\n"
                   "      return 1;\n    default:\n      return 2;\n  }\n}\n")
        self.assertEqual(self.found(), [])

    def test_include_from_a_higher_level(self):
        self.write("common/kv_cache/counter.cc", SOURCE + '#include "common/model/model.h"\n')
        self.expect_found(tidy.layers_hold, "common/model is not below common/kv_cache")

    def test_router_includes_a_tensor(self):
        self.write("router/a.cc", '#include "common/tensor/dtype.h"\n')
        self.expect_found(tidy.layers_hold, "router may not see common/tensor")

    def test_prefill_worker_includes_decode_code(self):
        self.write("prefill_worker/a.cc", '#include "decode_worker/decode_engine.h"\n')
        self.expect_found(tidy.layers_hold, "decode_worker is not below prefill_worker")

    def test_decode_worker_includes_the_prefill_service(self):
        self.write("decode_worker/a.cc", '#include "prefill_worker/prefill_service.h"\n')
        self.expect_found(tidy.layers_hold, "prefill_worker is not below decode_worker")

    def test_decode_worker_includes_the_prefill_engine(self):
        self.write("decode_worker/a.cc", '#include "prefill_worker/prefill_engine.h"\n')
        self.assertEqual(self.found(), [])

    def test_folder_without_a_level(self):
        self.write("common/stars/a.cc", "int a;\n")
        self.expect_found(tidy.layers_hold, "layering.txt")

    def test_thread_in_a_pure_core(self):
        self.write("router/router_core.cc", "#include <thread>\n")
        self.expect_found(tidy.layers_hold, "pure core")

    def test_clock_in_a_pure_core(self):
        self.write("router/router_core.cc", "Instant a = Now();\n")
        self.expect_found(tidy.layers_hold, "no clock")

    def test_program_includes_test_code(self):
        self.write("router/a.cc", '#include "common/rpc/testing/fake_worker.h"\n')
        self.expect_found(tidy.programs_contain_no_test_code, "fake_worker.h")

    def test_test_includes_test_code(self):
        self.write("router/CMakeLists.txt", "# Places requests.\nbaton_test(a_test)\n")
        self.write("router/a_test.cc", '#include "common/rpc/testing/fake_worker.h"\n')
        self.assertEqual(self.found(), [])

    def test_test_that_nobody_registered(self):
        self.write("common/kv_cache/CMakeLists.txt", CMAKE.replace("baton_test", "# baton_test"))
        self.expect_found(tidy.every_test_is_registered, "counter_test.cc")

    def test_script_that_nobody_registered(self):
        self.write("tests/e2e/demo_test.sh", "true\n")
        self.expect_found(tidy.every_test_is_registered, "demo_test.sh")

    @unittest.skipUnless(shutil.which("clang-format"), "there is no clang-format")
    def test_unformatted_file(self):
        self.assertEqual(tidy.findings(tidy.Tree(self.root), [tidy.formatting]), [])

        self.write("common/kv_cache/counter.cc", SOURCE + "int  a ;\n")

        found = tidy.findings(tidy.Tree(self.root), [tidy.formatting])
        self.assertEqual(len(found), 1, found)
        self.assertIn("counter.cc:4", found[0][1])


if __name__ == "__main__":
    unittest.main()
