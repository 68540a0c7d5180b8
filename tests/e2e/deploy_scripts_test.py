#!/usr/bin/python3
"""Tests deploy/local_cluster.sh and deploy/demo.sh with stand-ins for the programs.

The stand-ins announce an address and wait for SIGTERM. What they do beyond that is set by variables
of the environment, so that a worker can die, hang or never become ready.
"""

import os
import pathlib
import signal
import subprocess
import tempfile
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
LOCAL_CLUSTER = ROOT / "deploy/local_cluster.sh"
DEMO = ROOT / "deploy/demo.sh"
WAIT_SECONDS_MAX = 120

SERVER = """#!/bin/bash
# The folder in $0 makes the process recognizable. It starts no other process: a child that has not
# called exec yet would look like it, and outlive it.
name=${0##*/}
exec 3<> "${0%/*}/silent_pipe"
echo "$name $*" >> "${0%/*}/launched"
if [[ ${DIES:-} == "$name" ]]; then
  echo "planted: no memory for $name" >&2
  exit 3
fi
if [[ ${IGNORES_TERM:-} == "$name" ]]; then trap '' TERM; else trap 'exit 0' TERM; fi
if [[ ${SILENT:-} != "$name" ]]; then
  echo "some banner"
  echo "listening on 127.0.0.1:$((10000 + $$ % 50000))"
  echo "metrics on 127.0.0.1:9"
fi
read -r -t 240 -u 3
"""

CLIENT = """#!/bin/bash
echo "baton $*" >> "${0%/*}/launched"
if [[ $1 == status ]]; then
  for ((i = 0; i < ${READY:-2}; ++i)); do echo '{"role": "x", "state": "ready"}'; done
  echo '{"state": "refused", "reason": "planted"}'
  exit 0
fi
if [[ -n ${CLIENT_HANGS:-} ]]; then
  touch "${0%/*}/client_hangs"
  exec -a "$0" sleep 120
fi
[[ " $* " != *" --json "* ]] || echo '{"text": "42"}'
exit "${CLIENT_STATUS:-0}"
"""


class DeployScriptsTest(unittest.TestCase):

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name).resolve()
        self.bin = self.folder / "bin"
        self.logs = self.folder / "logs"
        self.model = self.folder / "model"
        for path in (self.bin, self.model):
            path.mkdir()
        (self.model / "config.json").write_text("{}")
        for name in ("baton_router", "baton_prefill_worker", "baton_decode_worker"):
            self.write_program(name, SERVER)
        os.mkfifo(self.bin / "silent_pipe")
        self.write_program("baton", CLIENT)
        self.addCleanup(self.kill_survivors)

    def write_program(self, name, text):
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def survivors(self):
        """Process ids of stand-ins that live. A zombie has no command line, and is dead."""
        found = []
        for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if f"{self.bin}/baton".encode() in path.read_bytes():
                    found.append(int(path.parent.name))
            except OSError:
                pass  # It ended meanwhile.
        return found

    def kill_survivors(self):
        for pid in self.survivors():
            os.kill(pid, signal.SIGKILL)

    def command(self, verb, *flags):
        command = [str(LOCAL_CLUSTER), verb, "--logs", str(self.logs)]
        if verb == "start":
            command += ["--model", str(self.model), "--port", "0", "--ready_seconds", "60"]
        return command + list(flags)

    def cluster(self, verb, *flags, **environment):
        return subprocess.run(self.command(verb, *flags), capture_output=True, text=True,
                              timeout=WAIT_SECONDS_MAX, check=False, env=self.environment(**environment))

    def environment(self, **changes):
        return {**os.environ, "BATON_BIN_DIR": str(self.bin), **changes}

    def launched(self, name):
        """The command lines of one program."""
        lines = (self.bin / "launched").read_text().splitlines()
        return [line for line in lines if line.split()[0] == name]

    def wait_for(self, condition):
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        while not condition():
            self.assertLess(time.monotonic(), deadline, "waited too long")
            time.sleep(0.02)

    def test_split_cluster_starts_and_stops(self):
        started = self.cluster("start", "--prefill", "2", "--decode", "3", READY="5")

        self.assertEqual(started.returncode, 0, started.stderr)
        addresses = {name: (self.logs / f"{name}.address").read_text().strip()
                     for name in ("prefill_0", "prefill_1", "decode_0", "decode_1", "decode_2")}
        router = self.launched("baton_router")[0]
        self.assertIn(f"--prefill {addresses['prefill_0']},{addresses['prefill_1']}", router)
        self.assertIn(f"--decode {addresses['decode_0']},{addresses['decode_1']},{addresses['decode_2']}", router)
        self.assertEqual(len(self.survivors()), 6)

        self.assertEqual(self.cluster("status", READY="5").returncode, 0)
        self.assertEqual(self.cluster("stop").returncode, 0)
        self.assertEqual(self.survivors(), [])

    def test_colocated_cluster_has_no_prefill_worker(self):
        started = self.cluster("start", "--colocated", "2")

        self.assertEqual(started.returncode, 0, started.stderr)
        self.assertEqual(self.launched("baton_prefill_worker"), [])
        for line in self.launched("baton_decode_worker"):
            self.assertIn("--local_prefill=always", line)
        self.assertNotIn("--prefill", self.launched("baton_router")[0])

    def test_extra_flags_reach_their_programs(self):
        started = self.cluster("start", "--router_flags", "--a 1", "--decode_flags=--b", "--", "--c", "x y")

        self.assertEqual(started.returncode, 0, started.stderr)
        self.assertIn("--a 1", self.launched("baton_router")[0])
        self.assertIn("--c x y --b", self.launched("baton_decode_worker")[0])
        self.assertIn("--c x y", self.launched("baton_prefill_worker")[0])
        self.assertNotIn("--c", self.launched("baton_router")[0])

    def test_death_at_start_shows_the_log_and_leaves_nothing(self):
        for name in ("baton_prefill_worker", "baton_decode_worker", "baton_router"):
            with self.subTest(name):
                started = self.cluster("start", DIES=name)

                self.assertEqual(started.returncode, 1)
                self.assertIn(f"planted: no memory for {name}", started.stderr)
                self.assertIn("died with status 3", started.stderr)
                self.assertEqual(self.survivors(), [])

    def test_silence_at_start_ends_at_the_deadline(self):
        started = self.cluster("start", "--ready_seconds", "1", SILENT="baton_decode_worker")

        self.assertEqual(started.returncode, 1)
        self.assertIn("decode_0 did not listen within 1 seconds", started.stderr)
        self.assertEqual(self.survivors(), [])

    def test_worker_that_never_gets_ready_ends_at_the_deadline(self):
        for ready in ("0", "1"):
            with self.subTest(ready):
                # A busy machine may need longer before the stand-ins so much as listen.
                for seconds in ("2", "16", "100"):
                    started = self.cluster("start", "--ready_seconds", seconds, READY=ready)
                    if "did not listen" not in started.stderr:
                        break

                self.assertEqual(started.returncode, 1)
                self.assertIn(f"{ready} of 2 workers were ready", started.stderr)
                self.assertIn("planted", started.stderr)
                self.assertEqual(self.survivors(), [])

    def test_second_start_in_a_folder_is_refused(self):
        self.cluster("start")
        before = self.survivors()

        second = self.cluster("start")

        self.assertEqual(second.returncode, 1)
        self.assertIn("already runs", second.stderr)
        self.assertEqual(self.survivors(), before)

    def test_status_tells_the_dead(self):
        self.cluster("start")
        decode_worker = int((self.logs / "decode_0.pid").read_text().split()[0])
        os.kill(decode_worker, signal.SIGKILL)
        self.wait_for(lambda: decode_worker not in self.survivors())  # SIGKILL takes effect when it is scheduled.

        status = self.cluster("status")

        self.assertEqual(status.returncode, 1)
        self.assertRegex(status.stdout, r"decode_0 +dead")
        self.assertRegex(status.stdout, r"prefill_0 +running")

    def test_stop_spares_a_stranger_with_the_same_pid(self):
        with subprocess.Popen(["sleep", "120"]) as stranger:
            self.logs.mkdir()
            (self.logs / "decode_0.pid").write_text(f"{stranger.pid} 1\n")

            stopped = self.cluster("stop")

            self.assertEqual(stopped.returncode, 0, stopped.stderr)
            self.assertIsNone(stranger.poll())
            stranger.kill()

    def test_stop_kills_what_does_not_stop(self):
        self.cluster("start", IGNORES_TERM="baton_decode_worker")

        stopped = self.cluster("stop", "--stop_seconds", "1")

        self.assertIn("decode_0 did not stop within 1 seconds", stopped.stderr)
        self.wait_for(lambda: not self.survivors())

    def test_stop_without_a_cluster_is_fine(self):
        self.assertEqual(self.cluster("stop").returncode, 0)

    def test_interrupted_start_leaves_nothing(self):
        with subprocess.Popen(self.command("start"), env=self.environment(READY="0"), stderr=subprocess.DEVNULL,
                              start_new_session=True) as start:
            self.wait_for((self.logs / "router.address").exists)
            os.killpg(start.pid, signal.SIGINT)

            self.assertEqual(start.wait(WAIT_SECONDS_MAX), 130)
        self.assertEqual(self.survivors(), [])

    def test_mistakes_are_named(self):
        for flags, message in [(["--decode", "0"], "at least one decode worker"),
                               (["--prefill", "many"], "--prefill takes a number"),
                               (["--colocated", "2", "--prefill", "1"], "--colocated goes without"),
                               (["--shape", "round"], "unknown option '--shape'"),
                               (["--model"], "--model"),
                               (["--model", "/nowhere"], "no model in /nowhere"),
                               (["--bin", "/nowhere"], "/nowhere/baton")]:
            with self.subTest(flags):
                started = self.cluster("start", *flags)

                self.assertNotEqual(started.returncode, 0)
                self.assertIn(message, started.stderr)

    def demo_command(self):
        return [str(DEMO), "--bin", str(self.bin), "--model", str(self.model), "--logs", str(self.logs)]

    def test_demo_stops_what_it_started(self):
        demo = subprocess.run(self.demo_command(), capture_output=True, text=True, timeout=WAIT_SECONDS_MAX,
                              check=False)

        self.assertEqual(demo.returncode, 0, demo.stderr)
        self.assertGreaterEqual(len(self.launched("baton")), 4)
        self.assertEqual(self.survivors(), [])

    def test_demo_stops_what_it_started_when_a_prompt_fails(self):
        demo = subprocess.run(self.demo_command(), capture_output=True, text=True, timeout=WAIT_SECONDS_MAX,
                              check=False, env=self.environment(CLIENT_STATUS="7"))

        self.assertEqual(demo.returncode, 7)
        self.assertIn("failed with status 7", demo.stderr)
        self.assertEqual(self.survivors(), [])

    def test_interrupted_demo_stops_what_it_started(self):
        for sent, to_group, status in [(signal.SIGINT, True, 130), (signal.SIGTERM, False, 143)]:
            with self.subTest(sent):
                (self.bin / "client_hangs").unlink(missing_ok=True)
                with subprocess.Popen(self.demo_command(), env=self.environment(CLIENT_HANGS="1"),
                                      stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                      start_new_session=True) as demo:
                    self.wait_for((self.bin / "client_hangs").exists)
                    if to_group:
                        os.killpg(demo.pid, sent)
                    else:
                        demo.send_signal(sent)

                    self.assertEqual(demo.wait(WAIT_SECONDS_MAX), status)
                self.assertEqual(self.survivors(), [])


if __name__ == "__main__":
    unittest.main()
