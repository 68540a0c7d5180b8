#!/bin/bash
# Shows Baton on this machine, from nothing: installs what is missing, builds, starts one router,
# one prefill worker and one decode worker on loopback with the demo model, asks a few prompts and
# prints what each stage took. Everything that it starts it also stops, on Ctrl-C and on failure too.
#
#   deploy/demo.sh                 a second run builds only what changed
#   deploy/demo.sh --bin DIR       neither installs nor builds; uses the binaries in DIR
#   deploy/demo.sh --model DIR     another model folder
#   deploy/demo.sh --logs DIR      where the logs go (default build/demo)
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly root
readonly preset=release
readonly demo_model=$root/deploy/demo_model
bin=
model=$demo_model/model
logs=$root/build/demo

while (($# > 0)); do
  case "$1" in
    -h | --help)
      sed -n '2,/^set -/{/^#/s/^# \{0,1\}//p}' "$0"
      exit 0
      ;;
    --bin | --model | --logs)
      if (($# < 2)); then
        echo "demo.sh: $1 takes a folder" >&2
        exit 2
      fi
      declare "${1#--}=$2"
      shift 2
      ;;
    *)
      echo "demo.sh: unknown option '$1' (see --help)" >&2
      exit 2
      ;;
  esac
done

# ---- Clean-up ------------------------------------------------------------------------------------

cluster_started=false
child=

on_exit() {
  local status=$?
  trap '' INT TERM HUP
  if [[ -n $child ]]; then
    kill -TERM "$child" 2> /dev/null || true
    wait "$child" 2> /dev/null || true
  fi
  if $cluster_started; then
    step "Stopping"
    "$root/deploy/local_cluster.sh" stop --logs "$logs" || status=1
    echo "stopped; the logs are in $logs"
  fi
  if ((status != 0)); then
    echo "demo.sh: failed with status $status" >&2
  fi
  exit "$status"
}
trap on_exit EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# Runs a command so that a signal to this script is served at once: bash runs traps during `wait`,
# but not while it runs a command in the foreground.
run() {
  local status=0
  "$@" &
  child=$!
  wait "$child" || status=$?
  child=
  return "$status"
}

step() {
  printf '\n==== %s (%d s)\n' "$1" "$SECONDS"
}

# ---- Build ---------------------------------------------------------------------------------------

if [[ -z $bin ]]; then
  step "Installing what is missing"
  run "$root/deploy/install_deps.sh"

  step "Building (preset $preset; the first build takes minutes, later ones only what changed)"
  cd "$root"
  run cmake --preset "$preset" -Wno-dev --log-level=WARNING
  run cmake --build --preset "$preset" --target baton baton_router baton_prefill_worker \
    baton_decode_worker baton_run
  bin=$root/build/$preset/bin
fi

# ---- Cluster -------------------------------------------------------------------------------------

step "Starting one router, one prefill worker and one decode worker"
cluster_started=true
run "$root/deploy/local_cluster.sh" start --prefill 1 --decode 1 --model "$model" --port 0 \
  --bin "$bin" --logs "$logs" -- --kv_memory 64MiB
router=$(< "$logs/router.address")
readonly router

# ---- Prompts -------------------------------------------------------------------------------------

ask() {  # COMMAND FLAG...
  local command=$1
  shift
  run "$bin/baton" "$command" --router "$router" --timings "$@"
}

step "A story, sampled with a seed: the tokens appear as they are decoded"
prompt="Once upon a time"
printf '%s' "$prompt"
ask generate --prompt "$prompt" --max_tokens 80 --temperature 0.7 --seed 7

step "The same seed, the same story"
printf '%s' "$prompt"
ask generate --prompt "$prompt" --max_tokens 80 --temperature 0.7 --seed 7

recall=$demo_model/recall.jsonl
if [[ -f $recall ]]; then
  step "Recall: the answer stands far back in the prompt, in KV that crossed from worker to worker"
  # The first plain question that stands some hundred tokens after what it asks for.
  /usr/bin/python3 - "$recall" "$logs" << 'END'
import json, pathlib, sys
cases = [json.loads(line) for line in open(sys.argv[1], encoding="utf-8")]
case = next(case for case in cases if case["distance_tokens"] >= 400 and "<|im_start|>" not in case["prompt"])
for name, value in case.items():
    pathlib.Path(sys.argv[2], f"recall_{name}.txt").write_text(str(value), encoding="utf-8")
END
  answer=$(< "$logs/recall_answer.txt")
  echo "A list, $(< "$logs/recall_distance_tokens.txt") tokens of story, and then:"
  tail -n 2 "$logs/recall_prompt.txt"
  # In the foreground, where Ctrl-C reaches it: `run` cannot see into a pipeline.
  "$bin/baton" generate --router "$router" --timings --prompt_file "$logs/recall_prompt.txt" \
    --max_tokens 24 --temperature 0 2>&1 | tee "$logs/recall_said.txt"
  if grep -qF "$answer" "$logs/recall_said.txt"; then
    echo "recalled: $answer"
  else
    echo "missed: the list says $answer"
  fi
fi

chat() {  # QUESTION
  echo "user: $1"
  printf 'assistant: '
  ask chat --prompt "$1" --max_tokens 60 --temperature 0
}
step "A chat"
chat "What is 3 + 4?"
echo
chat "Count from 5 to 12."

step "The cluster"
run "$bin/baton" status --router "$router"
