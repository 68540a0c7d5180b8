#!/bin/bash
# Runs a Baton cluster of any shape on this machine, on loopback, one process per worker.
#
#   deploy/local_cluster.sh start --prefill 2 --decode 3   split: each phase has its own workers
#   deploy/local_cluster.sh start --colocated 4            four workers that do both phases
#   deploy/local_cluster.sh status                         the processes, and what the router says
#   deploy/local_cluster.sh stop
#
# Options of start:
#   --prefill N         prefill workers (default 1)
#   --decode N          decode workers (default 1)
#   --colocated N       decode workers with local prefill always on, and no prefill worker
#   --model DIR         model folder (default deploy/demo_model/model)
#   --port N            the router's port (default 7000, the client's default; 0 = any
#                       free one)
#   --bin DIR           where the binaries are (default $BATON_BIN_DIR, else build/release/bin, else
#                       build/dev/bin)
#   --ready_seconds N   how long all of it may take to become ready (default 120)
#   --router_flags "…"  more flags for the router
#   --prefill_flags "…" more flags for every prefill worker
#   --decode_flags "…"  more flags for every decode worker
#   -- FLAG…            more flags for every worker
# Option of stop:
#   --stop_seconds N    how long the processes may drain before they are killed (default 35)
# Option of all three commands:
#   --logs DIR          logs, pid files and addresses (default build/local_cluster); one cluster per
#                       folder, so several can run side by side
#
# Workers listen on ports that the system picks, and share the machine's cores evenly unless
# --threads says otherwise. `start` returns when every worker is ready, or it fails with the end of
# the log of what went wrong, and leaves nothing running.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly root
readonly LOG_LINES_SHOWN=20

fail() {
  echo "local_cluster.sh: $*" >&2
  exit 1
}

usage() {
  sed -n '2,/^set -/{/^#/s/^# \{0,1\}//p}' "$0"
}

# ---- Options -------------------------------------------------------------------------------------

prefill_count=1
decode_count=1
colocated_count=0
model=$root/deploy/demo_model/model
logs=$root/build/local_cluster
port=7000
bin=${BATON_BIN_DIR:-}
ready_seconds=120
stop_seconds=35
router_flags=()
prefill_flags=()
decode_flags=()
worker_flags=()

count_option() {  # NAME VALUE MAX
  if ! [[ $2 =~ ^[0-9]{1,5}$ ]] || ((10#$2 > $3)); then
    fail "$1 takes a number from 0 to $3, not '$2'"
  fi
}

parse_options() {
  local split=false
  while (($# > 0)); do
    if [[ $1 == -- ]]; then
      shift
      worker_flags=("$@")
      break
    fi
    if [[ $1 == -h || $1 == --help ]]; then
      usage
      exit 0
    fi
    if [[ $1 == --*=* ]]; then
      set -- "${1%%=*}" "${1#*=}" "${@:2}"
    fi
    (($# >= 2)) || fail "$1: unknown option, or its value is missing (see --help)"
    case "$1" in
      --prefill) count_option "$1" "$2" 64 && prefill_count=$((10#$2)) split=true ;;
      --decode) count_option "$1" "$2" 64 && decode_count=$((10#$2)) split=true ;;
      --colocated) count_option "$1" "$2" 64 && colocated_count=$((10#$2)) ;;
      --port) count_option "$1" "$2" 65535 && port=$((10#$2)) ;;
      --ready_seconds) count_option "$1" "$2" 86400 && ready_seconds=$((10#$2)) ;;
      --stop_seconds) count_option "$1" "$2" 86400 && stop_seconds=$((10#$2)) ;;
      --model) model=$2 ;;
      --logs) logs=$2 ;;
      --bin) bin=$2 ;;
      --router_flags) read -ra router_flags <<< "$2" ;;
      --prefill_flags) read -ra prefill_flags <<< "$2" ;;
      --decode_flags) read -ra decode_flags <<< "$2" ;;
      *) fail "unknown option '$1' (see --help)" ;;
    esac
    shift 2
  done
  if ((colocated_count > 0)); then
    ! $split || fail "--colocated goes without --prefill and --decode"
    prefill_count=0
    decode_count=$colocated_count
    decode_flags=(--local_prefill=always "${decode_flags[@]}")
  fi
  ((decode_count > 0)) || fail "a cluster needs at least one decode worker"
}

find_binaries() {
  if [[ -z $bin ]]; then
    bin=$root/build/release/bin
    [[ -x $bin/baton_router ]] || bin=$root/build/dev/bin
  fi
  local name
  for name in baton baton_router baton_prefill_worker baton_decode_worker; do
    [[ -x $bin/$name ]] || fail "there is no $bin/$name: build it first (cmake --preset release &&" \
      "cmake --build --preset release), or name its folder with --bin"
  done
}

# ---- Processes -----------------------------------------------------------------------------------
# A pid file holds "PID START_TIME". The start time tells the process from a later one that was
# given the same number, so a stale file never gets a stranger killed.

# Sets `start_time` to the kernel's start time of a live process; fails if there is none. A zombie is
# dead. Forks nothing: a Ctrl-C would kill a child, and a live process would pass for a dead one.
start_time=
start_time_of() {  # PID
  local stat fields
  { read -r stat < "/proc/$1/stat"; } 2> /dev/null || return 1
  stat=${stat##*) }  # The name before it may hold spaces.
  read -ra fields <<< "$stat"
  [[ ${fields[0]} != Z && ${fields[0]} != X ]] || return 1
  start_time=${fields[19]}
}

is_running() {  # NAME
  local pid start
  { read -r pid start < "$logs/$1.pid"; } 2> /dev/null || return 1
  start_time_of "$pid" && [[ $start_time == "$start" ]]
}

# Names of all processes that have a pid file, the router first: it stops taking requests before
# the workers go.
process_names() {
  local file
  [[ ! -e $logs/router.pid ]] || echo router
  for file in "$logs"/prefill_*.pid "$logs"/decode_*.pid; do
    [[ -e $file ]] || continue
    file=${file##*/}
    echo "${file%.pid}"
  done
}

# Ends the script, though not between the start of a process and its pid file: nothing would stop
# that process then.
launching=false
interrupted=0
interrupt() {  # STATUS
  interrupted=$1
  $launching || exit "$1"
}

# Starts a program in the background in a session of its own, so that Ctrl-C reaches this script
# and not the cluster. Standard output goes to NAME.out, standard error to NAME.log.
launch() {  # NAME PROGRAM FLAG...
  local name=$1
  shift
  launching=true
  touch "$logs/$name.out" "$logs/$name.log"  # Read by us, perhaps before the child opens them.
  setsid "$@" > "$logs/$name.out" 2> "$logs/$name.log" < /dev/null &
  local pid=$!
  # Gone already? An impossible start time then marks it as dead.
  start_time_of "$pid" || start_time=0
  echo "$pid $start_time" > "$logs/$name.pid"
  launching=false
  ((interrupted == 0)) || exit "$interrupted"
}

show_log() {  # NAME
  echo "---- the last lines of $logs/$1.log:" >&2
  tail -n "$LOG_LINES_SHOWN" "$logs/$1.log" >&2
}

# Ends the script when a process has died. REQUIRES: this script launched them all.
check_alive() {  # NAME...
  local name pid status
  for name in "$@"; do
    is_running "$name" && continue
    read -r pid _ < "$logs/$name.pid"
    status=0
    wait "$pid" || status=$?
    show_log "$name"
    fail "$name died with status $status before the cluster was ready"
  done
}

# Prints the address that a process announced as "WHAT on HOST:PORT".
announced() {  # NAME WHAT
  sed -n "s/^$2 on \([^ ]*:[0-9][0-9]*\)[[:space:]]*$/\1/p" "$logs/$1.out" | head -n 1
}

# Waits until the process listens; its address is then in NAME.address.
wait_for_address() {  # NAME DEADLINE
  local address
  while true; do
    address=$(announced "$1" listening)
    if [[ -n $address ]]; then
      echo "$address" > "$logs/$1.address"
      return 0
    fi
    check_alive "$1"
    if ((SECONDS >= $2)); then
      show_log "$1"
      fail "$1 did not listen within $ready_seconds seconds"
    fi
    sleep 0.05
  done
}

stop_all() {
  trap '' INT TERM HUP  # Stopping is bounded; a second Ctrl-C must not leave half of it running.
  local names name pid deadline
  mapfile -t names < <(process_names)
  for name in "${names[@]}"; do
    if is_running "$name"; then
      read -r pid _ < "$logs/$name.pid"
      kill -TERM "$pid" 2> /dev/null || true
    fi
  done
  deadline=$((SECONDS + stop_seconds))
  for name in "${names[@]}"; do
    while is_running "$name" && ((SECONDS < deadline)); do
      sleep 0.05
    done
    if is_running "$name"; then
      echo "local_cluster.sh: $name did not stop within $stop_seconds seconds; killing it" >&2
      read -r pid _ < "$logs/$name.pid"
      kill -KILL "$pid" 2> /dev/null || true
    fi
    rm -f "$logs/$name.pid" "$logs/$name.address"
  done
}

# ---- Commands ------------------------------------------------------------------------------------

# Prints how many workers the router calls ready; 0 when it does not answer.
ready_count() {
  local said
  said=$(timeout 5 "$bin/baton" status --router "$(< "$logs/router.address")" --json 2> "$logs/status.log") || true
  grep -o '"state": *"ready"' <<< "$said" | wc -l || true
}

wait_until_ready() {  # DEADLINE NAME...
  local deadline=$1
  shift
  local worker_count=$((prefill_count + decode_count)) ready
  while true; do
    check_alive "$@"
    ready=$(ready_count)
    ((ready < worker_count)) || return 0
    if ((SECONDS >= deadline)); then
      "$bin/baton" status --router "$(< "$logs/router.address")" >&2 || cat "$logs/status.log" >&2
      show_log router
      fail "$ready of $worker_count workers were ready after $ready_seconds seconds"
    fi
    sleep 0.1
  done
}

# The addresses of the workers of one kind, joined by commas.
addresses_of() {  # KIND COUNT
  local i list=()
  for ((i = 0; i < $2; ++i)); do
    list+=("$(< "$logs/$1_$i.address")")
  done
  (IFS=,; echo "${list[*]-}")
}

start() {
  find_binaries
  [[ -f $model/config.json ]] || fail "there is no model in $model (no config.json)"
  mkdir -p "$logs"
  logs=$(cd "$logs" && pwd)
  local name i names=()
  for name in $(process_names); do
    ! is_running "$name" || fail "a cluster already runs in $logs: stop it first, or give another --logs"
  done
  rm -f "$logs"/{router,prefill_*,decode_*}.{pid,address,out,log}

  trap 'stop_all' EXIT
  trap 'interrupt 130' INT
  trap 'interrupt 143' TERM HUP
  local deadline=$((SECONDS + ready_seconds))
  local common_flags=(--model "$model" --metrics 127.0.0.1:0)
  local threads=$(($(nproc) / (prefill_count + decode_count)))
  worker_flags=(--threads "$((threads > 0 ? threads : 1))" "${worker_flags[@]}")
  for ((i = 0; i < prefill_count; ++i)); do
    names+=("prefill_$i")
    launch "prefill_$i" "$bin/baton_prefill_worker" --listen 127.0.0.1:0 "${common_flags[@]}" \
      "${worker_flags[@]}" "${prefill_flags[@]}"
  done
  for ((i = 0; i < decode_count; ++i)); do
    names+=("decode_$i")
    launch "decode_$i" "$bin/baton_decode_worker" --listen 127.0.0.1:0 "${common_flags[@]}" \
      "${worker_flags[@]}" "${decode_flags[@]}"
  done
  for name in "${names[@]}"; do
    wait_for_address "$name" "$deadline"
  done

  local pools=(--decode "$(addresses_of decode "$decode_count")")
  if ((prefill_count > 0)); then
    pools+=(--prefill "$(addresses_of prefill "$prefill_count")")
  fi
  launch router "$bin/baton_router" --listen "127.0.0.1:$port" "${common_flags[@]}" "${pools[@]}" \
    "${router_flags[@]}"
  names+=(router)
  wait_for_address router "$deadline"
  wait_until_ready "$deadline" "${names[@]}"
  trap - EXIT INT TERM HUP

  echo "router on $(< "$logs/router.address"), $prefill_count prefill and $decode_count decode workers, logs in $logs"
}

status() {
  local names name state=0 pid what metrics
  mapfile -t names < <(process_names)
  ((${#names[@]} > 0)) || fail "no cluster was started in $logs"
  for name in "${names[@]}"; do
    read -r pid _ < "$logs/$name.pid"
    what=running
    is_running "$name" || { what=dead state=1; }
    metrics=$(announced "$name" metrics)
    printf '%-12s %-8s pid %-8s %s%s\n' "$name" "$what" "$pid" "$(cat "$logs/$name.address" 2> /dev/null)" \
      "${metrics:+, metrics on $metrics}"
  done
  if is_running router; then
    find_binaries
    echo
    timeout 10 "$bin/baton" status --router "$(< "$logs/router.address")" || state=1
  fi
  return "$state"
}

command=${1:-}
shift || true
case "$command" in
  start | stop | status) parse_options "$@" ;;
  -h | --help | help)
    usage
    exit 0
    ;;
  *)
    usage >&2
    exit 2
    ;;
esac
case "$command" in
  start) start ;;
  stop) stop_all ;;
  status) status ;;
esac
