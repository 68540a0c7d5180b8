#!/usr/bin/python3
"""Proves that the simulation bites: plants bugs, one at a time, and counts the seeds until each is caught.

  tests/simulation/planted_bugs.py [--tree DIR] [--seeds N] [NAME…]

Works on a copy of the tree (default: build/planted_bugs), which it builds incrementally. Prints the
table of "What is simulated" in DESIGN_NOTES.md. Fails if a bug is not caught or cannot be planted.
"""

import argparse
import pathlib
import re
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import planting

SEARCH_SECONDS_MAX = 900

# What it is, where it goes, what is replaced there, by what.
BUGS = {
    "blocks are free while receives are posted into them": (
        "decode_worker/decode_engine.cc",
        "  for (BlockId block : blocks) pool_->Quarantine(block);\n"
        "  retiring_[{slot.lease, slot.epoch}] = std::move(blocks);\n",
        "  for (BlockId block : blocks) {\n"
        "    pool_->Quarantine(block);\n"
        "    pool_->ReleaseQuarantined(block);\n"
        "  }\n"),
    "quarantined blocks are forgotten": (
        "decode_worker/decode_engine.cc",
        "    for (BlockId block : it->second) pool_->ReleaseQuarantined(block);\n",
        ""),
    "the commit counts before all bytes are there": (
        "common/kv_transfer/kv_receiver.cc",
        "  if (state.landed_cells == state.coverage.cells()) {\n",
        "  if (state.landed_cells > 0 || state.coverage.cells() == 0) {\n    return Fill(state);\n  }\n"
        "  if (state.landed_cells == state.coverage.cells()) {\n"),
    "checksums are not compared": (
        "common/kv_transfer/kv_receiver.cc",
        "  if (*checksum != message.checksum) {",
        "  if (false && *checksum != message.checksum) {"),
    "the prefill worker unpins blocks that are still being sent": (
        "prefill_worker/prefill_engine.cc",
        "  closing_[transfer] = std::move(job);\n",
        "  transfer_owner_.erase(transfer);\n"),
    "a transfer has no deadline": (
        "common/kv_transfer/kv_sender.cc",
        "    } else {\n      late.push_back(id);\n    }\n",
        "    } else {\n      transfer.deadline = now + options_.transfer_deadline;\n    }\n"),
    "the router forgets a deadline": (
        "router/request_table.cc",
        "  deadlines_.Add(request->spec.deadline, id);\n",
        ""),
    "credit for sent bytes is not given back": (
        "common/kv_transfer/kv_sender.cc",
        "  peers_.at(peer_id).in_flight_bytes -= bytes;\n",
        ""),
    "nobody sends on when there is credit again": (
        "common/kv_transfer/kv_sender.cc",
        "  PumpLine();\n  Pump(peer_id);\n}\n",
        "}\n"),
    "sends that hang are waited for": (
        "common/kv_transfer/kv_sender.cc",
        "    transport_.ForceClose(peer);\n",
        "    static_cast<void>(peer);\n"),
    "a running lease is reopened": (
        "decode_worker/decode_engine.cc",
        "  if (slot->state != State::kReserved && slot->state != State::kBroken) {\n",
        "  if (slot->state == State::kPrefilling) {\n"),
    "a lease that is being filled is preempted": (
        "decode_worker/decode_engine_preemption.cc",
        "                       (slot->state == State::kRunning || slot->state == State::kPrefilling);\n",
        "                       slot->state != State::kBroken;\n"),
    "a preempted sequence keeps its place as running": (
        "decode_worker/decode_engine_preemption.cc",
        "  SetState(slot, State::kPrefilling);\n  scheduler_.Add(&slot.sequence);\n}\n",
        "}\n"),
    "a swapped sequence comes back without its last block": (
        "decode_worker/decode_engine_preemption.cc",
        "  if (present < end) {\n",
        "  if (present + 1 < end) {\n"),
    "places in the swap space are not given back": (
        "common/kv_cache/swap_space.cc",
        "  if (space_ != nullptr) space_->free_.insert(slots_.begin(), slots_.end());\n",
        ""),
    "the decode worker keeps the requests of a router that died": (
        "decode_worker/decode_engine.cc",
        "    if (key.router == router) keys.push_back(key);\n",
        "    if (key.router == router && slot->state != State::kReserved) keys.push_back(key);\n"),
    "workers are not told of a cancelled request": (
        "router/router_core_placements.cc",
        "  if (request.attempt == AttemptId{}) return;\n",
        "  if (request.attempt != AttemptId{}) return;\n"),
    "the seed is not forwarded": (
        "router/router_core_placements.cc",
        "  *work.mutable_sampling() = request.spec.sampling;\n",
        "  *work.mutable_sampling() = request.spec.sampling;\n"
        "  if (request.retries > 0) work.mutable_sampling()->set_seed(0);\n"),
    "after a retry shown tokens count as prompt": (
        "router/router_core_placements.cc",
        "  work.set_prompt_tokens(request.spec.prompt_tokens);\n",
        "  work.set_prompt_tokens(request.placed_tokens);\n"),
    "a repeated token is shown again": (
        "router/router_core_events.cc",
        "    if (fit == TokenFit::kRepeat) continue;\n",
        ""),
    "a request ends twice": (
        "router/router_core.cc",
        "  actions_.push_back(std::move(finish));\n",
        "  actions_.push_back(finish);\n"
        "  if (!ending.status.ok()) actions_.push_back(finish);\n"),
    "a worker whose session broke is used on": (
        "router/worker_table.cc",
        "  } else if (worker->state != WorkerState::kConnecting) {\n    worker->state = WorkerState::kLost;\n",
        "  } else if (worker->state == WorkerState::kConnecting) {\n    worker->state = WorkerState::kLost;\n"),
    "a lost worker is not noticed by its requests": (
        "router/router_core.cc",
        "    if (request->decode == id || request->prefill == id) on_it.push_back(request_id);\n",
        "    if (request->decode == id) on_it.push_back(request_id);\n"),
    "the worker that a request moves to is not told of its end": (
        "router/router_core_placements.cc",
        "  if (request.move.has_value() && request.move->to != except) {\n",
        "  if (false && request.move.has_value() && request.move->to != except) {\n"),
    "a moved sequence takes the log-probabilities of another token along": (
        "decode_worker/decode_engine_moves.cc",
        "    first.logprobs = slot.said_tokens[slot.said_tokens.size() - 1 - later];\n",
        "    first.logprobs = slot.said_tokens.front();\n"),
    "a drain that was lost with its session is not told again": (
        "router/router_core.cc",
        "  if (worker->draining) SendDrain(id);  // It may not have heard it in its last session.\n",
        ""),
    "the KV cache of its worker is no limit to an answer": (
        "router/router_core.cc",
        "  request.placed_tokens_max = std::min(request.placed_tokens_max, KvTokensMax(decode));\n",
        ""),
    "blocks are free while a step that was started writes them": (
        "decode_worker/decode_engine_ahead.cc",
        "  if (executor_->IsStarted(sequence)) written_.push_back(std::move(sequence.blocks));\n",
        ""),
    "a step is started without room for its tokens": (
        "decode_worker/decode_engine_ahead.cc",
        "    const uint32_t tokens = sequence.token_count() + (in_step.contains(&sequence) ? 1 : 0);\n",
        "    const uint32_t tokens = sequence.token_count();\n"),
    "a worker with a started step is at rest": (
        "decode_worker/decode_engine.h",
        "return running_count_ > 0 || !scheduler_.empty() || !executor_->started().empty();",
        "return running_count_ > 0 || !scheduler_.empty();"),
    "prefix blocks are published before they are computed": (
        "common/engine/sequence.cc",
        "  while ((sequence.published_blocks + 1) * block_tokens <= sequence.computed) {\n",
        "  while ((sequence.published_blocks + 1) * block_tokens <=\n"
        "         std::min<size_t>(tokens.size(), sequence.blocks.size() * block_tokens)) {\n"),
}


def search(tree, seeds):
    """The number of seeds until one is caught, and what was said of it; None if none is."""
    run = subprocess.run([str(tree / "build/bin/simulation"), "--seeds", f"1..{seeds}"], check=False,
                         capture_output=True, text=True, errors="replace", timeout=SEARCH_SECONDS_MAX)
    if run.returncode == 0:
        return None
    found = re.search(r"^seed (\d+)(?:: (.*)| aborted)", run.stdout, re.MULTILINE)
    if found is None:
        raise SystemExit(f"the simulation ended with status {run.returncode}:\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
    if found.group(2):
        return int(found.group(1)), found.group(2)
    check = [line for line in run.stderr.splitlines() if line.strip()]
    return int(found.group(1)), check[-1] if check else "a check failed"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=pathlib.Path, default=planting.ROOT / "build/planted_bugs")
    parser.add_argument("--seeds", type=int, default=20000, help="give up on a bug after so many")
    parser.add_argument("names", nargs="*", help="only those whose name contains one of these")
    options = parser.parse_args()
    planting.copy_tree(options.tree)
    failed = False
    print("| planted bug | seeds until it is caught | by |\n|---|---|---|")
    for name, (path, old, new) in BUGS.items():
        if options.names and not any(part in name for part in options.names):
            continue
        with planting.planted(options.tree, path, old, new) as is_planted:
            if not is_planted:
                print(f"| {name} | CANNOT BE PLANTED in {path} | |")
                failed = True
                continue
            built = planting.build(options.tree, "simulation")
            if built.returncode != 0:
                print(f"| {name} | DOES NOT COMPILE | |\n{built.stdout[-3000:]}")
                failed = True
                continue
            caught = search(options.tree, options.seeds)
        if caught is None:
            print(f"| {name} | NOT CAUGHT in {options.seeds} | |", flush=True)
            failed = True
        else:
            print(f"| {name} | {caught[0]} | {caught[1]} |", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
