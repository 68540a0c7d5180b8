#!/bin/bash
# Puts programs and the shared libraries that they need into one folder, which runs on another
# machine, from any place.
#
#   deploy/bundle.sh                            what a cluster and its measurements need
#   deploy/bundle.sh baton_run --tests a_test   these programs, and these tests
#
# Options:
#   --build DIR     where they were built (default build/release, else build/dev)
#   --out DIR       the folder, which is made anew (default build/bundle)
#   --tests NAME…   what follows are names in the build's folder of tests, or paths
#   --no_ucx        without UCX: the other machine provides it, one with CUDA for example
#
# The folder holds bin/, lib/ and tests/. Programs find lib/ by a path relative to their own, so
# nothing has to be set. The other machine provides glibc, no older than this machine's, and what
# belongs to its hardware: CUDA's libraries and driver, and the libraries of InfiniBand.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly root
readonly PROGRAMS=(baton baton_router baton_prefill_worker baton_decode_worker baton_run baton_bench)
readonly CUDA_MODULE=libbaton_cuda.so
# What the other machine provides.
readonly GLIBC='^(linux-vdso|ld-linux.*|lib(c|m|pthread|dl|rt|resolv|util|mvec))\.so'
readonly HARDWARE='^lib(cuda|cudart|cublas|cublasLt|nv.*|nccl|ibverbs|rdmacm|mlx[0-9]+|nl-.*)\.so'
readonly UCX='^libuc[mpst]\.so'
readonly MARK=.baton_bundle  # In a folder that this script has made, and may make anew.

fail() {
  echo "bundle.sh: $*" >&2
  exit 1
}

# ---- Options -------------------------------------------------------------------------------------

build=
out=$root/build/bundle
programs=()
tests=()
into=programs
provided="$GLIBC|$HARDWARE"
while (($# > 0)); do
  case "$1" in
    -h | --help)
      sed -n '2,/^set -/{/^#/s/^# \{0,1\}//p}' "$0"
      exit 0
      ;;
    --build | --out)
      (($# >= 2)) || fail "$1 takes a folder"
      declare "${1#--}=$2"
      shift
      ;;
    --tests) into=tests ;;
    --no_ucx) provided+="|$UCX" ;;
    -*) fail "unknown option '$1' (see --help)" ;;
    *) declare -n list=$into && list+=("$1") ;;
  esac
  shift
done
if [[ -z $build ]]; then
  build=$root/build/release
  [[ -d $build/bin ]] || build=$root/build/dev
fi
((${#programs[@]} + ${#tests[@]} > 0)) || programs=("${PROGRAMS[@]}")

# ---- Files ---------------------------------------------------------------------------------------

# Copies a file without what only debuggers read.
copy_file() {  # FROM TO
  strip --strip-unneeded -o "$2" "$1"
  chmod 755 "$2"
}

copy_named() {  # FOLDER INTO NAME…
  local folder=$1 into=$2 name path
  shift 2
  mkdir -p "$into"
  for name in "$@"; do
    path=$name
    [[ $name == */* ]] || path=$folder/$name
    [[ -f $path ]] || fail "there is no $path: build it first"
    copy_file "$path" "$into/${path##*/}"
    originals+=("$path")
  done
}

# Prints "NAME PATH" of every library that the files need and the other machine does not provide.
needed_libraries() {  # FILE…
  local name path
  ldd "$@" | sed -nE 's/^\s+(\S+) => (not found|\S+).*/\1 \2/p' | sort -u | while read -r name path; do
    if [[ $name =~ $provided ]]; then continue; fi
    [[ $path == /* ]] || fail "$name is needed, and is not on this machine"
    echo "$name $path"
  done
}

# UCX looks for its transports in ucx/ beside its own library, under the same ending.
copy_ucx_modules() {  # LIBUCS
  local module folder
  folder=$(dirname "$(readlink -f "$1")")/ucx
  mkdir -p "$out/lib/ucx"
  for module in "$folder"/libuct_*.so.0; do
    [[ -f $module ]] || fail "UCX has no modules in $folder"
    copy_file "$module" "$out/lib/ucx/${module##*/}"
  done
}

# Makes the paths that programs look for libraries in (DT_RUNPATH) hold for the libraries of their
# libraries, too (DT_RPATH), and name lib/ where the build's named bin/.
point_to_lib() {  # FILE…
  /usr/bin/python3 - "$@" << 'PYTHON'
import struct, sys

RPATH, RUNPATH, STRTAB, DYNAMIC, LOAD = 15, 29, 5, 2, 1

def patch(name):
    with open(name, "r+b") as file:
        data = bytearray(file.read())
        assert data[:6] == b"\x7fELF\x02\x01", f"{name}: not a 64-bit little-endian ELF file"
        headers_at, = struct.unpack_from("<Q", data, 32)
        size, count = struct.unpack_from("<HH", data, 54)
        headers = [struct.unpack_from("<IIQQQQQQ", data, headers_at + i * size) for i in range(count)]
        offset, length = next((h[2], h[5]) for h in headers if h[0] == DYNAMIC)
        entries = [(at, *struct.unpack_from("<QQ", data, at)) for at in range(offset, offset + length, 16)]
        address = next(value for _, tag, value in entries if tag == STRTAB)
        strings = next(h[2] + address - h[3] for h in headers if h[0] == LOAD and h[3] <= address < h[3] + h[5])
        for at, tag, value in entries:
            if tag not in (RPATH, RUNPATH):
                continue
            begin = strings + value
            end = data.index(0, begin)
            struct.pack_into("<Q", data, at, RPATH)
            data[begin:end] = data[begin:end].replace(b"$ORIGIN/../bin", b"$ORIGIN/../lib")
        file.seek(0)
        file.write(data)

for name in sys.argv[1:]:
    patch(name)
PYTHON
}

# As on the other machine: every library comes from the folder or is provided.
check_file() {  # FILE
  local name path
  while read -r name path; do
    if [[ $name =~ $provided || $(readlink -f "$path") == "$out"/* ]]; then continue; fi
    fail "$1 would load $name from '$path', not from $out/lib: was it linked with '\$ORIGIN/../bin'?"
  done < <(env -i PATH="$PATH" ldd "$1" | sed -nE 's/^\s+(\S+) => (not found|\S+).*/\1 \2/p')
}

# ---- Bundle --------------------------------------------------------------------------------------

[[ ! -e $out || -z $(ls -A "$out") || -f $out/$MARK ]] || fail "--out $out: holds something else"
mkdir -p "$out"
touch "$out/$MARK"
rm -rf "${out:?}"/{bin,lib,tests}
mkdir "$out/lib"
out=$(readlink -f "$out")
readonly out

originals=()
copy_named "$build/bin" "$out/bin" ${programs[@]+"${programs[@]}"}
copy_named "$build/tests" "$out/tests" ${tests[@]+"${tests[@]}"}
if [[ -f $build/bin/$CUDA_MODULE ]]; then copy_named "$build/bin" "$out/lib" "$CUDA_MODULE"; fi

libraries=$(needed_libraries "${originals[@]}")
while read -r name path; do
  [[ -n $name ]] || continue
  copy_file "$path" "$out/lib/$name"
  if [[ $name == libucs.so.0 ]]; then copy_ucx_modules "$path"; fi
done <<< "$libraries"

mapfile -t files < <(find "$out" -type f ! -name "$MARK")
point_to_lib "${files[@]}"
for file in "${files[@]}"; do
  # Libraries find others by the paths of whoever loads them.
  if [[ $file != "$out"/lib/* || $file == */$CUDA_MODULE ]]; then check_file "$file"; fi
done

bytes=$(cat "${files[@]}" | wc -c)
packed=$(tar -C "$out" -c . | gzip | wc -c)
printf 'bundle.sh: %s: %d files, %.1f MiB, %.1f MiB in a .tar.gz\n' "$out" "${#files[@]}" \
  "$((bytes * 10 / 1048576))e-1" "$((packed * 10 / 1048576))e-1"
