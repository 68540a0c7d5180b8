#!/bin/bash
# Installs what is missing, builds, and runs the tests. The last line says "N passed, N failed".
#
#   tests/run.sh                      everything, preset dev
#   tests/run.sh -L unit              only the tests of one label
#   tests/run.sh --preset asan        under AddressSanitizer and UndefinedBehaviorSanitizer (or tsan)
#   tests/run.sh --folder router      builds and runs only the tests below a folder; may be repeated
#   tests/run.sh --no_install         leaves the system's packages alone
#   tests/run.sh --jobs N             compiles and tests N at a time (default: one per core)
# Everything else is passed to ctest: -R name, --repeat until-fail:20, …
#
# Counted are test cases: those of a GoogleTest program one by one, any other test as one.
# BATON_TEST_DATA names a folder of external test vectors (default: shared/data beside the checkout);
# tests that need it say so when it is not there.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly root
cd "$root"

preset=dev
folders=()
install=true
jobs=$(nproc)
ctest_flags=()
while (($# > 0)); do
  case "$1" in
    -h | --help)
      sed -n '2,/^set -/{/^#/s/^# \{0,1\}//p}' "$0"
      exit 0
      ;;
    --no_install) install=false ;;
    --preset | --folder | --jobs)
      if (($# < 2)); then
        echo "run.sh: $1 takes a value" >&2
        exit 2
      fi
      case "$1" in
        --preset) preset=$2 ;;
        --folder) folders+=("${2%/}") ;;
        --jobs) jobs=$2 ;;
      esac
      shift
      ;;
    *) ctest_flags+=("$1") ;;
  esac
  shift
done

export BATON_TEST_DATA=${BATON_TEST_DATA:-$root/../shared/data}
build=$root/build/$preset
results=$build/test_results

if $install; then
  deploy/install_deps.sh
  # Without Python's gRPC the tests of the README's client say that they were skipped, and why.
  deploy/install_deps.sh --test || echo "run.sh: going on without what could not be installed"
fi

echo "run.sh: building preset $preset"
cmake --preset "$preset" -Wno-dev --log-level=WARNING
targets=(all)
test_folders=("$build")
if ((${#folders[@]} > 0)); then
  targets=("${folders[@]/%//all}")
  test_folders=("${folders[@]/#/$build/}")
fi
cmake --build "$build" --parallel "$jobs" --target "${targets[@]}"

# GoogleTest programs write their cases here, one file per program.
rm -rf "$results"
mkdir -p "$results/cases"
export GTEST_OUTPUT=xml:$results/cases/

status=0
number=0
for folder in "${test_folders[@]}"; do
  number=$((number + 1))
  ctest --test-dir "$folder" --output-on-failure -j "$jobs" \
    --output-junit "$results/ctest_$number.xml" "${ctest_flags[@]}" || status=1
done

/usr/bin/python3 tests/count_cases.py "$results" "$SECONDS" || status=1
exit "$status"
