#!/usr/bin/python3
"""Proves that the tests on emulated GPUs bite: plants bugs in kernels and in what drives them, one at a time.

  tests/cuda_emulator/planted_bugs.py [--tree DIR] [NAME…]

Works on a copy of the tree (default: build/planted_cuda_bugs), which it builds incrementally. Prints the table of "GPUs
that are not there" in DESIGN_NOTES.md. Fails if a bug is not caught or cannot be planted.
"""

import argparse
import pathlib
import re
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import planting

KERNELS = "common/kernels/cuda/"
TEST_SECONDS_MAX = 300

# What it is, where it goes, what is replaced there, by what, and the test that should fail.
BUGS = {
    "few rows: no barrier before the sums of the warps are added": (
        KERNELS + "skinny_linear.cu",
        "    __syncthreads();\n    for (uint32_t i = threadIdx.x; i < rows",
        "    for (uint32_t i = threadIdx.x; i < rows", "skinny_linear_test"),
    "few rows: the next tile overwrites sums that are still read": (
        KERNELS + "skinny_linear.cu",
        "    __syncthreads();\n#pragma unroll\n    for (uint32_t column",
        "#pragma unroll\n    for (uint32_t column", "skinny_linear_test"),
    "few rows: the scale of fp8 in float16 is forgotten": (
        KERNELS + "skinny_linear.cu",
        "      if constexpr (std::is_same_v<W, Fp8>) sum *= E4m3Shrink(T{});\n",
        "", "skinny_linear_test"),
    "fp8 becomes bfloat16 with the exponent one place off": (
        KERNELS + "tensor_cores.cuh", "SpreadE4m3<4>(bytes)", "SpreadE4m3<3>(bytes)", "skinny_linear_test"),
    "decoding: no barrier before the warps' parts are merged": (
        KERNELS + "decode_attention.cu",
        "  __syncthreads();\n  const uint32_t rows = min(task",
        "  const uint32_t rows = min(task", "decode_attention_test"),
    "decoding: no barrier before the splits' factors are used": (
        KERNELS + "decode_attention.cu",
        "  __syncthreads();\n  float value = 0.0f;\n#pragma unroll 4",
        "  float value = 0.0f;\n#pragma unroll 4", "decode_attention_test"),
    "decoding: the scales of V do not count for the maximum": (
        KERNELS + "decode_attention.cu",
        "      if constexpr (sizeof(Kv) == 1) product += __log2f(fmaxf(value_scales[i], kValueScaleMin));\n",
        "", "decode_attention_test"),
    "decoding: weights are multiplied as they lie in the warp": (
        KERNELS + "decode_attention.cu",
        "weights[i][1] = Transposed(PackPair(scores[i][2], scores[i][3], P{}));",
        "weights[i][1] = PackPair(scores[i][2], scores[i][3], P{});", "decode_attention_test"),
    "decoding: what is before the window is read": (
        KERNELS + "decode_attention.cu",
        "const uint32_t lowest = max(first_token, task_.begin) - first_token;",
        "const uint32_t lowest = 0;", "decode_attention_test"),
    "decoding: what is behind the last token is read": (
        KERNELS + "decode_attention.cu",
        "const uint32_t highest = min(kTile, task_.end - first_token) - 1;",
        "const uint32_t highest = kTile - 1;", "decode_attention_test"),
    "decoding: of long heads half of V stays as it was": (
        KERNELS + "decode_attention.cu", "    load_values(kEarlyValueLoads, kValueLoads);\n", "",
        "decode_attention_test"),
    "decoding: blocks behind the window are read": (
        KERNELS + "decode_attention.cu",
        "  task.begin = first;\n", "  task.begin = 0;\n", "decode_attention_test"),
    "chunks: keys are read while they are still being copied": (
        KERNELS + "prefill_attention.cu",
        "    WaitForCopies();\n    __syncthreads();  // K is there",
        "    __syncthreads();  // K is there", "prefill_attention_test"),
    "chunks: the next keys overwrite those that are read": (
        KERNELS + "prefill_attention.cu",
        "    WaitForCopies();\n    __syncthreads();  // V is there; K is no longer read.\n",
        "    WaitForCopies();\n    __syncwarp();\n", "prefill_attention_test"),
    "the cache: a row is rounded before all of it is there": (
        KERNELS + "rowwise.cu",
        "    __syncwarp();\n    StoreScaledRow", "    StoreScaledRow", "cuda_kernels_test"),
    "the cache: rows of no sequence are written": (
        KERNELS + "rowwise.cu",
        "  if (index == kNoSequence || kv_plane >= 2 * pages.kv_heads) return;\n",
        "  if (kv_plane >= 2 * pages.kv_heads) return;\n", "model_cuda_test"),
    "sampling: no barrier before the sums of the warps are added": (
        KERNELS + "sampling.cu",
        "  __syncthreads();\n  if (warp == 0) shared.warp_sums[lane]",
        "  if (warp == 0) shared.warp_sums[lane]", "sampling_cuda_test"),
    "sampling: bins are cleared while they are read": (
        KERNELS + "sampling.cu",
        "  __syncthreads();  // They are no longer read.\n", "", "sampling_cuda_test"),
    "mixtures: experts are counted before all tokens have chosen": (
        KERNELS + "mixture_routing.cu",
        "  __syncthreads();\n  const uint32_t expert = threadIdx.x;", "  const uint32_t expert = threadIdx.x;",
        "mixture_test"),
    "mixtures: of equal experts the last is chosen": (
        KERNELS + "mixture_routing.cu",
        "(other == best && other_id < id)", "(other == best && other_id > id)", "mixture_test"),
    "mixtures: rows that fill a step up go to experts": (
        KERNELS + "mixture_routing.cu",
        "    if (row_sequence[token] == kNoSequence) continue;\n", "", "mixture_test"),
    "mixtures: an expert's rows end where the first pass ends": (
        KERNELS + "skinny_linear.cu",
        "  const uint32_t end = group.row + group.rows;",
        "  const uint32_t end = group.row + min(group.rows, 8 * kColumnTiles);", "mixture_test"),
    "mixtures: shares of the chosen do not add up to one": (
        KERNELS + "mixture_routing.cu",
        "1.0f / (normalize ? chosen_sum : sum)", "1.0f / sum", "mixture_cuda_test"),
    "mixtures: the expert of all tokens has one share for all": (
        KERNELS + "mixture_routing.cu",
        "expf(-shared_logits[threadIdx.x])", "expf(-shared_logits[0])", "mixture_cuda_test"),
    "mixtures: weights of the expert beside": (
        KERNELS + "skinny_linear.cu",
        "products.experts[group.expert * products.each + index]",
        "products.experts[(group.expert ^ 1) * products.each + index]", "mixture_cuda_test"),
    "products: a bias that cuBLASLt does not add is forgotten": (
        KERNELS + "cuda_linear.cc", "  } else if (product.bias != bias) {",
        "  } else if (product.bias != bias && product.rows == 0) {",
        "cuda_kernels_test"),
    "products: every bias that cuBLASLt adds is that of the first output": (
        KERNELS + "cuda_linear.cc", "      Set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, product.bias);",
        "      static const std::byte* const first = product.bias;\n"
        "      Set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, first);", "model_cuda_test"),
    "products beside each other are not joined": (
        KERNELS + "cuda_linear.cc", "  if (apart) state.Join(lanes);\n", "", "model_cuda_test"),
    "a step is replayed without its inputs": (
        KERNELS + "cuda_state.cc",
        "  Upload();\n  step_inputs_ = used_;\n",
        "  if (shape == nullptr || recordings_[*shape].graph == nullptr) Upload();\n  step_inputs_ = used_;\n",
        "model_cuda_test"),
    "started steps: inputs are overwritten before they are uploaded": (
        KERNELS + "cuda_state.cc",
        '  Check(cudaEventSynchronize(uploads_done_), "waiting for uploads");\n', "", "model_cuda_test"),
    "started steps: a row takes the token of its place in the step before": (
        KERNELS + "rowwise.cu", "id < 0 ? chosen[-1 - id] : id", "id < 0 ? chosen[blockIdx.x] : id",
        "model_cuda_test"),
    "started steps: tokens are read before they have arrived": (
        KERNELS + "started_tokens.cc", "CudaStatus(cudaEventSynchronize(slot.there), what)",
        "CudaStatus(cudaSuccess, what)", "model_cuda_test"),
    "KV leaves the GPU before the copy is complete": (
        "common/device/cuda/cuda_device.cc",
        "      CudaStatus(cudaStreamSynchronize(copies_), name_ + \": finishing copies\");",
        "      CudaStatus(cudaStreamQuery(stream_) == cudaErrorNotReady ? cudaSuccess : cudaSuccess,\n"
        "                 name_ + \": finishing copies\");", "cluster_cuda_test"),
    "several GPUs: a ticket does not say which heads lie together": (
        "common/engine/ticket_codec.cc", "  proto.set_shard_heads(ticket.shard_heads);\n", "", "cluster_cuda_test"),
    "several GPUs: parts of the head come in the wrong order": (
        "common/collective/nccl/nccl_collective.cc",
        "    for (size_t rank = 1; rank < parts.size() && result == ncclSuccess; ++rank) {\n"
        "      const TensorView& part = parts[rank];\n",
        "    for (size_t rank = 1; rank < parts.size() && result == ncclSuccess; ++rank) {\n"
        "      const TensorView& part = parts[parts.size() - rank];\n", "collective_cuda_test"),
    "several GPUs: a rank that gives up leaves the others waiting": (
        "common/collective/nccl/nccl_collective.cc",
        "      nccl_.abort(rank.communicator);\n",
        "      if (rank.communicator == nullptr) nccl_.abort(rank.communicator);\n", "collective_cuda_test"),
    "several GPUs: a rank queues without end for one that does not come": (
        "common/collective/nccl/nccl_collective.cc",
        "  if (index % kApart != 0) return absl::OkStatus();", "  if (index % kApart != 1000) return absl::OkStatus();",
        "collective_cuda_test"),
    "several GPUs: the others do not get the tokens that the first has chosen": (
        "common/model/decoder.cc",
        "  if (collective_ != nullptr) {\n    BATON_RETURN_IF_ERROR(collective_->Broadcast(StartedTokens",
        "  if (collective_ != nullptr && rows == 0) {\n    BATON_RETURN_IF_ERROR(collective_->Broadcast(StartedTokens",
        "model_cuda_test"),
    "several GPUs: the others do not wait for their own step": (
        "common/model/decoder.cc",
        "[this](size_t, size_t) { return AwaitDevice(); }", "[](size_t, size_t) { return absl::OkStatus(); }",
        "gpu_failures_test"),
    "a lost GPU: a copy that was not made counts": (
        "common/device/cuda/cuda_device.cc",
        "  return started.ok() ? finished : started;", "  return started;", "gpu_failures_test"),
    "a lost GPU: the worker goes on taking requests for a while": (
        "common/worker/worker.cc",
        "      published_sessions_.load(std::memory_order_acquire)->Close(session, reason);\n",
        "      static_cast<void>(session);\n", "gpu_failures_test"),
    "a lost GPU: a copy of KV does not show it": (
        "common/worker/worker.cc",
        "      if (const absl::Status health = parts_.model->Health(); !health.ok()) Break(health);\n",
        "      if (const absl::Status health = parts_.model->Health(); can_step && !health.ok()) Break(health);\n",
        "gpu_failures_test"),
    "memory that ends: what steps need is not there from the start": (
        KERNELS + "cuda_state.cc", "  BATON_RETURN_IF_ERROR(AllocateInputs(InputBytesFor(bounds)));\n", "",
        "gpu_memory_test"),
    "memory that ends: widened chunks are taken at the place of the first": (
        KERNELS + "cuda_kernels.cc", "    part.table.sequences += begin;\n", "", "cuda_kernels_test"),
    "swapping: KV does not come back to the GPU": (
        "common/kv_cache/swap_space.cc",
        "                    return device.Scatter(to, host);\n",
        "                    return to.empty() ? device.Scatter(to, host) : absl::OkStatus();\n",
        "gpu_failures_test"),
}


def failures(tree, test):
    """What failed, in a few words; None if nothing did."""
    try:
        run = subprocess.run(["ctest", "--test-dir", str(tree / "build"), "-R", f"^{test}_emulated$", "-V"],
                             check=False, capture_output=True, text=True, errors="replace", timeout=TEST_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        return "it never ends"
    if run.returncode == 0:
        return None
    if "***Timeout" in run.stdout:
        return "it never ends"
    failed = set(re.findall(r"\[  FAILED  \] (\S+?)[,\s]", run.stdout)) - {"tests", "test"}
    failed = {name for name in failed if "." in name}
    return f"{len(failed)} tests" if failed else "the process stops"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=pathlib.Path, default=planting.ROOT / "build/planted_cuda_bugs")
    parser.add_argument("names", nargs="*", help="only those whose name contains one of these")
    options = parser.parse_args()
    planting.copy_tree(options.tree)
    missed = False
    print("| planted bug | test | fails |\n|---|---|---|")
    for name, (path, old, new, test) in BUGS.items():
        if options.names and not any(part in name for part in options.names):
            continue
        tried = False
        with planting.planted(options.tree, path, old, new) as is_planted:
            if not is_planted:
                found = f"CANNOT BE PLANTED in {path}"
            elif planting.build(options.tree, f"{test}_emulated", "-DBATON_CUDA=OFF").returncode != 0:
                found = "DOES NOT COMPILE"
            else:
                tried = True
                found = failures(options.tree, test)
        missed = missed or not tried or found is None
        print(f"| {name} | `{test}` | {found or 'NOTHING'} |", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
