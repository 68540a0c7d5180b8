#!/bin/bash
# Installs the Debian packages that Baton is built from, and only those that are missing.
#
#   deploy/install_deps.sh           what the build and the programs need
#   deploy/install_deps.sh --test    also what tests/run.sh needs
#   deploy/install_deps.sh --dev     also the formatter, the linter, and clang with its sanitizers
#   deploy/install_deps.sh --check   installs nothing; lists what is missing, exit status 1 if any is
#
# Runs as root, or through sudo. Made for Debian 12; another system has other package names, and
# then --check at least says what to look for. When nothing is missing it takes a fraction of a
# second and needs neither root nor a network.
set -euo pipefail

readonly LOCK_WAIT_SECONDS=600
readonly UPDATE_ATTEMPTS_MAX=5

packages=(
  g++ cmake ninja-build ccache pkg-config python3
  libgrpc++-dev protobuf-compiler-grpc protobuf-compiler libprotobuf-dev libabsl-dev
  libucx-dev ucx-utils
  libpcre2-dev libutf8proc-dev libssl-dev libxxhash-dev nlohmann-json3-dev libspdlog-dev prometheus-cpp-dev
  libgtest-dev libgmock-dev libbenchmark-dev
)
test_packages=(python3-grpcio python3-protobuf libboost-context-dev openssl iproute2)
dev_packages=(clang libclang-rt-14-dev clang-format clang-tidy shellcheck git)

check_only=false
while (($# > 0)); do
  case "$1" in
    --test) packages+=("${test_packages[@]}") ;;
    --dev) packages+=("${test_packages[@]}" "${dev_packages[@]}") ;;
    --check) check_only=true ;;
    -h | --help)
      sed -n '2,/^set -/{/^#/s/^# \{0,1\}//p}' "$0"
      exit 0
      ;;
    *)
      echo "install_deps.sh: unknown option '$1' (see --help)" >&2
      exit 2
      ;;
  esac
  shift
done

if ! command -v dpkg-query > /dev/null || ! command -v apt-get > /dev/null; then
  echo "install_deps.sh: this is not a Debian system. Install what these packages hold by hand:" >&2
  echo "  ${packages[*]}" >&2
  exit 1
fi

# Prints the packages that are not installed, one per line.
missing_packages() {
  local installed
  # dpkg-query exits 1 when it does not know a package at all; that package is then simply missing.
  installed=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' "${packages[@]}" 2> /dev/null |
    sed -n 's/ installed$//p' || true)
  printf '%s\n' "${packages[@]}" | grep -vxF -f <(printf '%s\n' "$installed" | grep .) || true
}

mapfile -t missing < <(missing_packages)
if ((${#missing[@]} == 0)); then
  echo "install_deps.sh: all ${#packages[@]} packages are installed"
  exit 0
fi
if $check_only; then
  printf '%s\n' "${missing[@]}"
  exit 1
fi

as_root=()
if ((EUID != 0)); then
  if ! command -v sudo > /dev/null; then
    echo "install_deps.sh: not root and there is no sudo. As root, run:" >&2
    echo "  apt-get install -y --no-install-recommends ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi

apt_get() {
  ${as_root[@]+"${as_root[@]}"} env DEBIAN_FRONTEND=noninteractive apt-get \
    -o "DPkg::Lock::Timeout=$LOCK_WAIT_SECONDS" -o Acquire::Retries=3 -q "$@"
}

install_missing() {
  apt_get install -y --no-install-recommends "${missing[@]}"
}

# `apt-get update` does not wait for the lock of another one, so it is tried a few times.
update_lists() {
  local attempt
  for ((attempt = 1; attempt <= UPDATE_ATTEMPTS_MAX; ++attempt)); do
    if apt_get update; then return 0; fi
    echo "install_deps.sh: apt-get update failed (attempt $attempt of $UPDATE_ATTEMPTS_MAX)" >&2
    sleep $((attempt * 2))
  done
  return 1
}

echo "install_deps.sh: installing ${#missing[@]} packages: ${missing[*]}"
# Known package lists are tried as they are: an update costs seconds and a network. Stale lists make
# the install fail, and then the update is worth it.
if apt-cache show "${missing[@]}" > /dev/null 2>&1 && install_missing; then
  :
else
  update_lists || echo "install_deps.sh: the package lists could not be updated" >&2
  if ! install_missing; then
    echo "install_deps.sh: apt-get could not install: ${missing[*]}" >&2
    echo "install_deps.sh: its message is above; is there a network, and is this Debian 12?" >&2
    exit 1
  fi
fi

mapfile -t missing < <(missing_packages)
if ((${#missing[@]} > 0)); then
  echo "install_deps.sh: apt-get succeeded, but these are still missing: ${missing[*]}" >&2
  exit 1
fi
echo "install_deps.sh: done"
