#!/usr/bin/python3
"""Tests what others script against: the programs, their flags, their JSON, their metrics and exit codes.

Real programs and a real cluster: one router, one prefill worker, one decode worker, the demo model.
"""

import json
import os
import pathlib
import re
import subprocess
import tempfile
import time
import unittest
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT / "deploy/demo_model/model"
BIN = pathlib.Path(os.environ.get("BATON_BIN_DIR", ROOT / "build/release/bin"))
SECONDS_MAX = 120

# Flags by program that scripts rely on.
REQUEST_FLAGS = ("prompt prompt_ids prompt_file max_tokens temperature top_k top_p seed stop ignore_eos "
                 "json logprobs generated_ids logit_bias stop_token_ids").split()
WORKER_FLAGS = "model listen metrics threads weights kv_memory block_tokens chunk_tokens drain_seconds".split()
SCRIPTED_FLAGS = {
    "baton": ["router", *REQUEST_FLAGS],
    "baton_run": ["model", "threads", "weights", "kv_memory", "block_tokens", "chunk_tokens", *REQUEST_FLAGS],
    "baton_router": "model listen metrics prefill decode drain_seconds".split(),
    "baton_prefill_worker": WORKER_FLAGS,
    "baton_decode_worker": [*WORKER_FLAGS, "local_prefill"],
}


def run(program, *arguments, **environment):
    return subprocess.run([str(BIN / program), *map(str, arguments)], capture_output=True, text=True, cwd=ROOT,
                          timeout=SECONDS_MAX, check=False, stdin=subprocess.DEVNULL,
                          env={**os.environ, **environment})


def answer(program, *arguments, **environment):
    """The JSON object that the program prints."""
    done = run(program, *arguments, "--json", **environment)
    if done.returncode != 0:
        raise AssertionError(f"{program} {arguments}: {done.stderr}")
    return json.loads(done.stdout)


def run_answer(*arguments):
    return answer("baton_run", "--model", MODEL, "--kv_memory", "64MiB", *arguments)


class ProgramsTest(unittest.TestCase):
    """Programs that need no cluster."""

    def test_help_names_every_scripted_flag(self):
        for program, flags in SCRIPTED_FLAGS.items():
            done = run(program, "--help")
            self.assertEqual(done.returncode, 0, program)
            for flag in flags:
                self.assertRegex(done.stdout, rf"--{flag}\b", program)

    def test_version_is_one_line(self):
        versions = {run(program, "--version").stdout.split()[-1] for program in SCRIPTED_FLAGS}
        self.assertEqual(len(versions), 1, versions)
        self.assertRegex(versions.pop(), r"^\d+\.\d+\.\d+")

    def test_a_mistake_is_one_line_that_names_it(self):
        for program in SCRIPTED_FLAGS:
            done = run(program, "--no_such_flag=1")
            self.assertNotEqual(done.returncode, 0, program)
            self.assertIn("no_such_flag", done.stderr)
            self.assertEqual(len(done.stderr.strip().splitlines()), 1, done.stderr)

    def test_a_word_that_belongs_to_no_flag_is_refused(self):
        for program in SCRIPTED_FLAGS:
            if program != "baton":  # Its commands are such words.
                done = run(program, "--model", MODEL, "stray")
                self.assertEqual(done.returncode, 1, program)
                self.assertIn("'stray'", done.stderr, program)

    def test_a_log_level_that_is_none_is_refused(self):
        for program, flags in SCRIPTED_FLAGS.items():
            if not re.search(r"--log_level\b", run(program, "--help").stdout):
                continue
            done = run(program, "--log_level", "loud", *(["status"] if program == "baton" else []))
            self.assertEqual(done.returncode, 1, program)
            self.assertIn("loud", done.stderr, program)

    def test_a_missing_model_is_named(self):
        for program in ("baton_run", "baton_router", "baton_prefill_worker", "baton_decode_worker"):
            own = {"baton_run": ["--prompt", "x"], "baton_router": ["--decode", "127.0.0.1:1"]}.get(program, [])
            done = run(program, "--model", "/nowhere", *own)
            self.assertEqual(done.returncode, 1, program)
            self.assertIn("/nowhere", done.stderr.splitlines()[-1])

    def test_a_message_limit_below_the_context_is_refused(self):
        for program in ("baton_router", "baton_prefill_worker", "baton_decode_worker"):
            own = {"baton_router": ["--decode", "127.0.0.1:1"]}.get(program, [])
            done = run(program, "--model", MODEL, "--message_limit", "1KiB", *own)
            self.assertEqual(done.returncode, 1, program)
            self.assertIn("--message_limit", done.stderr.splitlines()[-1])

    def test_a_gpu_that_is_not_there_is_said(self):
        if pathlib.Path("/dev/nvidia0").exists():
            self.skipTest("there is a GPU")
        done = run("baton_run", "--model", MODEL, "--prompt", "x", "--device", "cuda")
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, "error: .*cuda")


class ClusterTest(unittest.TestCase):
    """A cluster against one process."""

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.logs = pathlib.Path(folder.name)
        script = str(ROOT / "deploy/local_cluster.sh")
        cls.addClassCleanup(subprocess.run, [script, "stop", "--logs", str(cls.logs)], check=False,
                            stdout=subprocess.DEVNULL)
        subprocess.run([script, "start", "--prefill", "1", "--decode", "1", "--port", "0", "--bin", str(BIN),
                        "--logs", str(cls.logs), "--router_flags", "--metrics 127.0.0.1:0", "--",
                        "--kv_memory", "64MiB", "--metrics", "127.0.0.1:0"], check=True, timeout=SECONDS_MAX,
                       stdout=subprocess.DEVNULL)
        cls.router = (cls.logs / "router.address").read_text().strip()

    def ask(self, command, *arguments, **environment):
        return answer("baton", command, "--router", self.router, *arguments, **environment)

    def refusal(self, *arguments):
        done = run("baton", "generate", "--router", self.router, *arguments)
        self.assertEqual(done.returncode, 1)
        return done.stderr

    def assert_same_answer(self, one, other):
        for key in ("ids", "text", "finish_reason", "seed", "stop_string", "stop_token_id", "logprobs"):
            self.assertEqual(one.get(key), other.get(key), key)

    def test_one_process_gives_what_the_cluster_gives(self):
        prompt_file = self.logs / "prompt.txt"
        prompt_file.write_text("Tom found a red ball.\n" * 30)
        for options in (["--prompt", "Once upon a time", "--max_tokens", "40", "--seed", "7"],
                        ["--prompt", "Once upon a time", "--temperature", "0", "--seed", "1", "--stop", "the", "--stop", "a b"],
                        ["--prompt", "The", "--top_k", "5", "--top_p", "0.9", "--seed", "1", "--logprobs", "3",
                         "--max_tokens", "20"],
                        ["--prompt_ids", "5,6,7", "--seed", "3", "--ignore_eos", "--max_tokens", "30"],
                        ["--prompt_file", prompt_file, "--seed", "9", "--max_tokens", "50"]):
            self.assert_same_answer(self.ask("generate", *options), run_answer(*options))

    def test_chat_too(self):
        options = ["--prompt", "What is 3 + 4?", "--temperature", "0", "--max_tokens", "40", "--seed", "1"]
        given = self.ask("chat", *options)
        self.assert_same_answer(given, run_answer("--chat", *options))
        self.assertIn("7", given["text"])

    def test_an_answer_continues_where_an_earlier_one_ended(self):
        options = ["--prompt", "Once upon a time", "--max_tokens", "30", "--seed", "5", "--ignore_eos"]
        whole = self.ask("generate", *options)
        seen = ",".join(map(str, whole["ids"][:10]))
        for rest in (self.ask("generate", *options, "--generated_ids", seen),
                     run_answer(*options, "--generated_ids", seen)):
            self.assertEqual(rest["ids"], whole["ids"][10:])
            self.assertTrue(whole["text"].endswith(rest["text"]))

    def test_flags_from_the_environment_and_from_a_file(self):
        flagfile = self.logs / "flags"
        flagfile.write_text("# three tokens\n--max_tokens=3\n")
        options = ["--prompt", "The", "--seed", "2"]
        for given in (self.ask("generate", *options, BATON_MAX_TOKENS="3"),
                      self.ask("generate", *options, "--flagfile", flagfile)):
            self.assertEqual(given["usage"]["generated_tokens"], 3)

    def test_bad_input_names_the_field(self):
        self.assertIn("max_tokens", self.refusal("--prompt", "x", "--max_tokens", "100000"))
        self.assertIn("sampling.top_p", self.refusal("--prompt", "x", "--top_p", "1.5"))
        self.assertIn("prompt_ids[1]", self.refusal("--prompt_ids", "1,99999"))
        self.assertIn("prompt", self.refusal("--prompt", "word " * 5000))

    def test_the_request_id_stands_in_every_log(self):
        self.ask("generate", "--prompt", "x", "--max_tokens", "3", "--request_id", "mark-4711")
        deadline = time.monotonic() + 30
        logs = [self.logs / f"{name}.log" for name in ("router", "prefill_0", "decode_0")]
        while not all("mark-4711" in log.read_text() for log in logs):
            self.assertLess(time.monotonic(), deadline, [log.name for log in logs if "mark-4711" not in log.read_text()])
            time.sleep(0.1)

    def test_tokenize_and_back(self):
        ids = self.ask("tokenize", "--prompt", "Grüße, 世界!")["ids"]
        text = self.ask("detokenize", "--prompt_ids", ",".join(map(str, ids)))["text"]
        self.assertEqual(text, "Grüße, 世界!")

    def test_status_knows_every_worker(self):
        workers = self.ask("status")["workers"]
        self.assertEqual(sorted((w["role"], w["state"]) for w in workers), [("decode", "ready"), ("prefill", "ready")])

    def test_metrics_have_the_names_of_the_field(self):
        self.ask("generate", "--prompt", "x", "--max_tokens", "3")
        # What was never counted is there, too, so that the first of its kind shows as an increase.
        wanted = {"router": ["baton_requests_total", "baton_time_to_first_token_seconds_bucket",
                             'baton_requests_total{status="INTERNAL"} 0',
                             'baton_retries_total{cause="decode_lost"} 0'],
                  "prefill_0": ["baton_tokens_total", "baton_handoff_bytes_total"],
                  "decode_0": ["baton_kv_blocks", "baton_engine_step_seconds_bucket"]}
        for name, metrics in wanted.items():
            address = re.search(r"metrics on (\S+)", (self.logs / f"{name}.out").read_text()).group(1)
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as response:
                page = response.read().decode()
            for metric in metrics:
                self.assertIn(metric, page, name)


if __name__ == "__main__":
    unittest.main()
