#!/bin/bash
# Runs deploy/demo.sh with the programs of this build, and looks at what a reader would look at.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
: "${BATON_BIN_DIR:?names the folder with the programs}"
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

status=0
said=$("$root/deploy/demo.sh" --bin "$BATON_BIN_DIR" --logs "$logs" 2>&1) || status=$?
echo "$said"

expect() {  # PATTERN WHAT
  if ! grep -Eq -- "$1" <<< "$said"; then
    echo "demo_test.sh: the demo shows no $2 (/$1/)" >&2
    status=1
  fi
}
expect 'first.token' "stage timings"
expect '^recalled: ' "recalled answer"
expect '3 \+ 4 = 7' "sum"
expect 'ready' "worker that is ready"
expect '^stopped;' "end of the cluster"

# What a seed gave once it gives again.
story() {  # NUMBER: the text of the N-th story, without its timings.
  grep -E '^Once upon a time' <<< "$said" | sed -n "$1p"
}
if [[ -z $(story 1) || $(story 1) != "$(story 2)" ]]; then
  echo "demo_test.sh: the same seed gave two stories" >&2
  status=1
fi

for name in router prefill_0 decode_0; do
  if [[ -e $logs/$name.pid ]]; then
    echo "demo_test.sh: $name was not stopped" >&2
    status=1
  fi
done
exit "$status"
