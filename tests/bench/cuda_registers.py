#!/usr/bin/env python3
"""Says what each CUDA kernel takes: registers, shared memory, and what it spills.

    cuda_registers.py [--architectures sm_80,sm_90a,sm_100] [--hot PATTERNS] [--allow BYTES]

Compiles common/kernels/cuda/*.cu with the project's flags, for each architecture, into a folder that is
removed, and prints one line per kernel. No GPU is needed. Shared memory is what is declared, without
what a start adds. Kernels named by --hot, a list of globs, may spill --allow bytes on sm_90a; if one
spills more, the exit status is 1. It is 2 if something is not as expected.
"""

import argparse
import concurrent.futures
import dataclasses
import fnmatch
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
SOURCES = ROOT / "common/kernels/cuda"
HOT_ARCHITECTURE = "sm_90a"
HOT = "DecodeKernel,SkinnyKernel,Prefill*"
# Of the presets that ship; the others come from the build's own files.
RELEASE_FLAGS = ["-std=c++20", "-O3", "-DNDEBUG"]
# (what stands in a name, what is printed instead)
SHORTER = [(r"baton::(cuda::)?|\(anonymous namespace\)::|_GLOBAL__N_\w+::|^void ", ""),
           (r"__nv_bfloat16", "bf16"), (r"__half", "f16"), (r"signed char", "i8"),
           (r"\(?unsigned int\)?(?=\d)|(?<=\d)u\b", "")]


@dataclasses.dataclass
class Kernel:
    file: str
    architecture: str
    name: str
    registers: int = 0
    shared: int = 0
    stack: int = 0
    stores: int = 0
    loads: int = 0

    def spills(self):
        return max(self.stores, self.loads)


def quit_because(reason):
    print(f"cuda_registers: {reason}", file=sys.stderr)
    sys.exit(2)


def flags_of(source):
    """What the build says to nvcc for all files, and for this one."""
    common = re.search(r'APPEND CMAKE_CUDA_FLAGS "(.*?)"', (ROOT / ".cmake/cuda.cmake").read_text())
    if common is None:
        quit_because(".cmake/cuda.cmake: no CMAKE_CUDA_FLAGS")
    own = re.search(rf"set_source_files_properties\({re.escape(source.name)} "
                    r"PROPERTIES COMPILE_OPTIONS (.*?)\)", (SOURCES / "CMakeLists.txt").read_text())
    return RELEASE_FLAGS + common[1].split() + (own[1].strip('"').split(";") if own else [])


def compile_for(nvcc, source, architecture, folder):
    """What the assembler says of the file's kernels."""
    output = pathlib.Path(folder) / f"{source.stem}.{architecture}.cubin"
    run = subprocess.run(
        [nvcc, *flags_of(source), f"-I{ROOT}", f"-arch={architecture}", "-Xptxas", "-v", "--cubin",
         "-o", output, source], capture_output=True, text=True, check=False)
    said = run.stdout + run.stderr
    if run.returncode != 0:
        quit_because(f"{source.name} does not compile for {architecture}:\n{said}")
    for line in said.splitlines():
        if "warning" in line.lower() or "Performance Loss" in line:
            print(line, file=sys.stderr)
    return said


def kernels_in(said, file, architecture):
    found, properties = {}, None
    kernel = None
    for line in said.splitlines():
        if entry := re.search(r"Compiling entry function '(\w+)'", line):
            kernel = found[entry[1]] = Kernel(file, architecture, entry[1])
        elif function := re.search(r"Function properties for (\w+)", line):
            properties = found.get(function[1])  # None: a function that kernels call.
        elif sizes := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, "
                                r"(\d+) bytes spill loads", line):
            if properties is not None:
                properties.stack, properties.stores, properties.loads = map(int, sizes.groups())
        elif used := re.search(r"Used (\d+) registers", line):
            kernel.registers = int(used[1])
            shared = re.search(r"(\d+) bytes smem", line)
            kernel.shared = int(shared[1]) if shared else 0
    return list(found.values())


def shorten(kernels):
    """Names as they are written, without what all have and without parameters."""
    tool = shutil.which("cu++filt") or shutil.which("c++filt")
    if tool is None:
        return
    names = "".join(kernel.name + "\n" for kernel in kernels)
    said = subprocess.run([tool], input=names, capture_output=True, text=True, check=True).stdout
    for kernel, name in zip(kernels, said.splitlines()):
        for pattern, instead in SHORTER:
            name = re.sub(pattern, instead, name)
        kernel.name = re.sub(r"\(.*", "", name)


def print_table(kernels):
    rows = [("file", "kernel", "for", "registers", "shared", "stores", "loads", "stack")]
    rows += [(kernel.file, kernel.name, kernel.architecture, str(kernel.registers),
              str(kernel.shared), str(kernel.stores), str(kernel.loads), str(kernel.stack))
             for kernel in kernels]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) if i < 3 else cell.rjust(width)
                        for i, (cell, width) in enumerate(zip(row, widths))))


def too_many(kernels, patterns, allow):
    """The hot kernels that spill more than they may."""
    hot = []
    for pattern in patterns:
        named = [kernel for kernel in kernels
                 if fnmatch.fnmatchcase(re.sub(r"<.*", "", kernel.name), pattern)]
        if not named:
            quit_because(f"no kernel is named {pattern}")
        hot += [kernel for kernel in named if kernel.architecture == HOT_ARCHITECTURE]
    return [kernel for kernel in hot if kernel.spills() > allow]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--architectures", default="sm_80,sm_90a,sm_100")
    parser.add_argument("--hot", default=HOT, help=f"default: {HOT}")
    parser.add_argument("--allow", type=int, default=64, help="default: 64")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--nvcc", default=shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc")
    options = parser.parse_args()
    architectures = options.architectures.split(",")
    if shutil.which(options.nvcc) is None:
        quit_because(f"{options.nvcc}: no compiler; name one with --nvcc")

    with tempfile.TemporaryDirectory() as folder, \
         concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        compiles = [(source.name, architecture,
                     pool.submit(compile_for, options.nvcc, source, architecture, folder))
                    for source in sorted(SOURCES.glob("*.cu")) for architecture in architectures]
        kernels = [kernel for file, architecture, said in compiles
                   for kernel in kernels_in(said.result(), file, architecture)]
    shorten(kernels)
    kernels.sort(key=lambda kernel: (kernel.file, kernel.name))
    print_table(kernels)

    above = too_many(kernels, options.hot.split(","), options.allow)
    for kernel in above:
        print(f"{kernel.file}: {kernel.name} spills {kernel.spills()} bytes on {HOT_ARCHITECTURE}; "
              f"at most {options.allow}")
    spilling = sum(kernel.spills() > 0 for kernel in kernels)
    unchecked = "" if HOT_ARCHITECTURE in architectures else f"; not compiled for {HOT_ARCHITECTURE}"
    print(f"{spilling} of {len(kernels)} kernels spill, {len(above)} of them hot and more than "
          f"{options.allow} bytes{unchecked}")
    return 1 if above else 0


if __name__ == "__main__":
    sys.exit(main())
