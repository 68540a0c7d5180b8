#!/bin/bash
# Builds the fuzz targets with libFuzzer, ASan and UBSan, runs each for a while and says what came of it.
# Exit status 1: an input breaks something; it lies in build/fuzz/findings.
#
#   tests/fuzz/run.sh                      every target, 10 minutes each
#   tests/fuzz/run.sh handoff tokenizer    only these
#   tests/fuzz/run.sh --minutes N          how long each one runs (default: 10)
#   tests/fuzz/run.sh --jobs N             how many run at a time (default: one per core)
#   tests/fuzz/run.sh --merge              afterwards adds to tests/fuzz/corpus what reached new code
#
# What is found on the way is kept in build/fuzz/corpus, where the next run begins.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
readonly root
cd "$root"

minutes=10
jobs=$(nproc)
merge=false
targets=()
while (($# > 0)); do
  case "$1" in
    -h | --help)
      sed -n '2,/^set -/{/^#/s/^# \{0,1\}//p}' "$0"
      exit 0
      ;;
    --merge) merge=true ;;
    --minutes | --jobs)
      if (($# < 2)) || ! [[ $2 =~ ^[1-9][0-9]*$ ]]; then
        echo "run.sh: $1 takes a whole number above 0" >&2
        exit 2
      fi
      case "$1" in
        --minutes) minutes=$2 ;;
        --jobs) jobs=$2 ;;
      esac
      shift
      ;;
    *)
      if [[ ! -e tests/fuzz/$1_fuzz.cc ]]; then
        echo "run.sh: there is no target '$1'; see tests/fuzz/*_fuzz.cc" >&2
        exit 2
      fi
      targets+=("$1")
      ;;
  esac
  shift
done
if ((${#targets[@]} == 0)); then
  for source in tests/fuzz/*_fuzz.cc; do
    name=${source##*/}
    targets+=("${name%_fuzz.cc}")
  done
fi

build=build/fuzz
cmake --preset fuzz -Wno-dev --log-level=WARNING
cmake --build "$build" --parallel "$jobs" --target "${targets[@]/%/_fuzz}"
mkdir -p "$build/findings" "$build/logs"

# Debian's Abseil and Protobuf are not instrumented, so containers that cross into them look overflown.
export ASAN_OPTIONS=detect_container_overflow=0
export UBSAN_OPTIONS=print_stacktrace=1
export UCX_MEM_MMAP_HOOK_MODE=none UCX_MEM_EVENTS=n
# Some targets write what their subject then reads.
if [[ -w /dev/shm ]]; then
  export TMPDIR=/dev/shm
fi
limits=(-rss_limit_mb=2048 -malloc_limit_mb=512 -timeout=60 -report_slow_units=60 -max_len=8192)

fuzz() {  # TARGET
  local flags=("${limits[@]}" -max_total_time=$((minutes * 60)) -print_final_stats=1
    "-artifact_prefix=$build/findings/$1-")
  if [[ -e tests/fuzz/$1.dict ]]; then
    flags+=("-dict=tests/fuzz/$1.dict")
  fi
  mkdir -p "$build/corpus/$1" "tests/fuzz/corpus/$1"
  nice "$build/tests/$1_fuzz" "${flags[@]}" "$build/corpus/$1" "tests/fuzz/corpus/$1" &> "$build/logs/$1.log"
}

for target in "${targets[@]}"; do
  while (($(jobs -rp | wc -l) >= jobs)); do
    wait -n || true
  done
  echo "run.sh: $target, $minutes min"
  fuzz "$target" &
done
wait || true

# The number behind a word in a target's log: the first or the last one.
number() {  # LOG PATTERN head|tail
  { grep -oP "$2" "$1" || echo 0; } | "$3" -n 1
}

status=0
printf '\n%-16s %12s %8s %9s %9s  %s\n' target executions exec/s edges 'new edges' findings
for target in "${targets[@]}"; do
  log=$build/logs/$target.log
  first=$(number "$log" 'INITED cov: \K\d+' head)
  last=$(number "$log" ' cov: \K\d+' tail)
  finding=none
  if ! grep -q '^Done ' "$log"; then
    finding=$(number "$log" 'Test unit written to \K.*' tail)
    status=1
  fi
  printf '%-16s %12s %8s %9s %9s  %s\n' "$target" \
    "$(number "$log" 'number_of_executed_units:\s*\K\d+' tail)" \
    "$(number "$log" 'average_exec_per_sec:\s*\K\d+' tail)" "$last" "$((last - first))" "$finding"
done

if $merge && ((status == 0)); then
  for target in "${targets[@]}"; do
    "$build/tests/${target}_fuzz" "${limits[@]}" -merge=1 "tests/fuzz/corpus/$target" "$build/corpus/$target" \
      &>> "$build/logs/$target.log"
  done
fi
exit "$status"
