// Attention of many rows: FlashAttention-2 (Dao, 2023) on the tensor cores' mma.sync, over a paged
// KV cache, for every GPU since Ampere.
//
// A block of threads computes a tile of 128 rows of q: a row is one query head of one token, and
// all query heads of a KV head are together, so that its keys are read once for all of them. It
// walks through the keys that the rows see in tiles of 64, aligned at multiples of 64 of the
// absolute position (64 rows and 32 keys if heads have 256 elements, of which a thread can hold the
// outputs of no more). A tile of which a row sees nothing leaves that row exactly as it was: what
// comes out for a token does not depend on how its prompt was cut into chunks.
//
// K and V have one buffer each: V of a tile arrives while the scores are computed, K of the next
// one during the softmax and the sum over V. Two blocks of threads on a multiprocessor fill each
// other's gaps.
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "common/kernels/cuda/device_code.cuh"
#include "common/kernels/cuda/launch.h"
#include "common/kernels/cuda/tensor_cores.cuh"

namespace baton::cuda {
namespace {

constexpr uint32_t kWarps = 4;
constexpr uint32_t kThreads = kWarps * kWarp;
constexpr uint32_t kMmaRows = 16;  // One mma takes so many.
constexpr uint32_t kChunk = 16;    // Bytes, of one copy.
constexpr uint32_t kWorkBytes = 128;
constexpr uint32_t kWarpKeysMax = 16;

// The tiles, and what is in shared memory: the rows of q, later of the output; K; V; what is
// computed.
template <uint32_t kDim>
struct Layout {
  static constexpr uint32_t kDims = kDim;
  static constexpr bool kLong = kDim > 128;
  static constexpr uint32_t kKeys = kLong ? 32 : 64;
  // A warp with two times the rows of one mma reads K and V half as often.
  static constexpr uint32_t kRowTiles = kLong ? 1 : 2;
  static constexpr uint32_t kWarpRows = kRowTiles * kMmaRows;
  static constexpr uint32_t kRows = kWarps * kWarpRows;
  // What one warp copies of a tile of keys. All of them are in one block of the cache.
  static constexpr uint32_t kWarpKeys = kKeys / kWarps;
  static_assert(kWarpKeysMax % kWarpKeys == 0);

  static constexpr uint32_t kRowBytes = kDim * 2;
  static constexpr uint32_t kRowChunks = kRowBytes / kChunk;
  // An odd number of chunks: eight rows of a column of chunks lie in different banks.
  static constexpr uint32_t kPitch = kRowBytes + kChunk;
  static_assert(kPitch / kChunk % 2 == 1);
  static constexpr uint32_t kKeysAt = kRows * kPitch;
  static constexpr uint32_t kValuesAt = kKeysAt + kKeys * kPitch;
  static constexpr uint32_t kWorkAt = kValuesAt + kKeys * kPitch;
  static constexpr uint32_t kBytes = kWorkAt + kWorkBytes;
};

__device__ uint32_t ThisWarp() { return threadIdx.x / kWarp; }
__device__ uint32_t ThisLane() { return threadIdx.x % kWarp; }

// Exact to about 2^-22 of 1, other than the instruction tanh.approx.
__device__ float Tanh(float x) { return 1.0f - __fdividef(2.0f, 1.0f + Exp2(2.0f * kLog2E * x)); }

// ---- What a block of threads computes ---------------------------------------------------------

__device__ uint32_t FirstSeen(uint32_t position, uint32_t window) {
  return window == 0 || position < window ? 0 : position - window + 1;
}

// Rows [first, end) of a sequence; row i is query head i % group of token i / group.
struct QueryTile {
  DeviceSequence sequence;
  uint32_t group = 0;  // Query heads of a KV head.
  uint32_t first = 0;
  uint32_t end = 0;
  // Positions that any of the rows sees.
  uint32_t key_begin = 0;
  uint32_t key_end = 0;

  __device__ uint32_t Position(uint32_t row) const { return sequence.position + row / group; }
  // Of a row of q or the output, in numbers.
  __device__ size_t Offset(const AttentionArgs& args, uint32_t row) const {
    const size_t token = sequence.row + row / group;
    return (token * args.heads + blockIdx.x * group + row % group) * args.pages.head_dim;
  }
};

// The tiles of the last tokens see the most and start first. False: there is no such tile.
template <typename L>
__device__ bool FindTile(const AttentionArgs& args, QueryTile* tile) {
  tile->sequence = args.table.sequences[blockIdx.z];
  tile->group = args.heads / args.pages.kv_heads;
  tile->first = (gridDim.y - 1 - blockIdx.y) * L::kRows;
  tile->end = min(tile->sequence.count * tile->group, tile->first + L::kRows);
  if (tile->first >= tile->end) return false;
  tile->key_begin = FirstSeen(tile->Position(tile->first), args.window);
  tile->key_end = tile->Position(tile->end - 1) + 1;
  return true;
}

// The keys of which a warp's rows see some, and those that all of them see.
struct WarpView {
  uint32_t some_begin = 0;
  uint32_t some_end = 0;
  uint32_t all_begin = 0;
  uint32_t all_end = 0;
};

template <typename L>
__device__ WarpView FindView(const QueryTile& tile, uint32_t window) {
  const uint32_t first = tile.first + ThisWarp() * L::kWarpRows;
  if (first >= tile.end) return {};
  const uint32_t first_position = tile.Position(first);
  const uint32_t last_position = tile.Position(min(first + L::kWarpRows, tile.end) - 1);
  return {.some_begin = FirstSeen(first_position, window),
          .some_end = last_position + 1,
          .all_begin = FirstSeen(last_position, window),
          .all_end = first_position + 1};
}

// In shared memory, for there are hardly registers enough.
struct Work {
  QueryTile tile;
  WarpView views[kWarps];
};
static_assert(sizeof(Work) <= kWorkBytes);

// False: there is none.
template <typename L>
__device__ bool FindWork(const AttentionArgs& args, Work* work) {
  QueryTile tile;
  if (!FindTile<L>(args, &tile)) return false;
  if (ThisLane() == 0) work->views[ThisWarp()] = FindView<L>(tile, args.window);
  if (threadIdx.x == 0) work->tile = tile;
  __syncthreads();
  return true;
}

// ---- Copies into shared memory -----------------------------------------------------------------

template <typename L>
__device__ void StartQueries(const AttentionArgs& args, const QueryTile& tile, uint32_t shared) {
  static_assert(L::kRows * L::kRowChunks % kThreads == 0);
#pragma unroll 4
  for (uint32_t i = threadIdx.x; i < L::kRows * L::kRowChunks; i += kThreads) {
    const uint32_t row = i / L::kRowChunks;
    const uint32_t chunk = i % L::kRowChunks;
    const bool valid = tile.first + row < tile.end;
    const size_t offset = tile.Offset(args, valid ? tile.first + row : tile.first);
    StartCopy(shared + row * L::kPitch + chunk * kChunk,
              static_cast<const std::byte*>(args.q) + offset * 2 + chunk * kChunk, valid);
  }
}

// The block that holds this warp's keys of the tile at `key`. Entries of the table for what no row
// sees may be anything and are not read.
template <typename L>
__device__ uint32_t WarpBlock(const AttentionArgs& args, const QueryTile& tile, uint32_t key) {
  const uint32_t first = key + ThisWarp() * L::kWarpKeys;
  if (first >= tile.key_end || first + L::kWarpKeys <= tile.key_begin) return 0;
  return args.table.block_table[tile.sequence.blocks + first / args.pages.block_tokens];
}

// K of this warp's keys of the tile at `key`.
template <typename L>
__device__ const std::byte* WarpRows(const DevicePages& pages, uint32_t block, uint32_t key) {
  const uint32_t token = (key + ThisWarp() * L::kWarpKeys) % pages.block_tokens;
  return pages.data + block * pages.block_bytes +
         static_cast<size_t>(blockIdx.x * pages.block_tokens + token) * L::kRowBytes;
}

// Copies K or V of this warp's keys of the tile at `key`. Those that no row sees become zeros:
// their probability is 0, but 0 times what is in memory there might be NaN.
template <typename L>
__device__ void StartRows(const std::byte* rows, const QueryTile& tile, uint32_t key,
                          uint32_t shared) {
  static_assert(L::kWarpKeys * L::kRowChunks % kWarp == 0);
  const uint32_t first = ThisWarp() * L::kWarpKeys;
  const uint32_t begin = tile.key_begin;
  const uint32_t end = tile.key_end;
#pragma unroll
  for (uint32_t i = 0; i < L::kWarpKeys * L::kRowChunks; i += kWarp) {
    const uint32_t row = (i + ThisLane()) / L::kRowChunks;
    const uint32_t chunk = (i + ThisLane()) % L::kRowChunks;
    const uint32_t position = key + first + row;
    StartCopy(shared + (first + row) * L::kPitch + chunk * kChunk, rows + (i + ThisLane()) * kChunk,
              position >= begin && position < end);
  }
}

// ---- Arithmetic of a warp ----------------------------------------------------------------------
//
// A thread holds of each 16 x 8 result of an mma the columns 2 * (lane % 4) and the next, of row
// lane / 4 in [0] and [1] and of row lane / 4 + 8 in [2] and [3].

template <typename L>
using Scores = float[L::kRowTiles][L::kKeys / 8][4];
template <typename L>
using Outputs = float[L::kRowTiles][L::kDims / 8][4];
// Of the thread's rows: the highest score until now, and this thread's part of the sum.
template <typename L>
struct Softmax {
  float max[L::kRowTiles][2];
  float sum[L::kRowTiles][2];
};

// Where the lane's row is of four matrices that are 16 rows by two chunks: first the upper and the
// lower left one, then the right ones.
template <typename L>
__device__ uint32_t LaneOffset() {
  return ThisLane() % 16 * L::kPitch + ThisLane() / 16 * kChunk;
}

// scores += q K^T.
template <typename T, typename L>
__device__ void AddScores(uint32_t queries, uint32_t keys, Scores<L>& scores) {
  constexpr uint32_t kPitch = L::kPitch;
  const uint32_t lane_offset = LaneOffset<L>();
  queries += ThisWarp() * L::kWarpRows * kPitch + lane_offset;
  keys += lane_offset;
#pragma unroll
  for (uint32_t dim = 0; dim < L::kDims; dim += 16) {
    uint32_t a[L::kRowTiles][4];
#pragma unroll
    for (uint32_t m = 0; m < L::kRowTiles; ++m) {
      LoadMatrices(a[m], queries + m * kMmaRows * kPitch + dim * 2);
    }
#pragma unroll
    for (uint32_t n = 0; n < L::kKeys / 8; n += 2) {
      uint32_t b[4];
      LoadMatrices(b, keys + n * 8 * kPitch + dim * 2);
#pragma unroll
      for (uint32_t m = 0; m < L::kRowTiles; ++m) {
        MultiplyAdd(scores[m][n], a[m], b[0], b[2], T{});
        MultiplyAdd(scores[m][n + 1], a[m], b[1], b[3], T{});
      }
    }
  }
}

template <typename L>
__device__ void CapScores(float factor, Scores<L>& scores) {
#pragma unroll
  for (uint32_t i = 0; i < L::kRowTiles * L::kKeys / 8 * 4; ++i) {
    float& score = scores[i / (L::kKeys / 8 * 4)][i / 4 % (L::kKeys / 8)][i % 4];
    score = Tanh(factor * score);
  }
}

// Scores of the keys that a row does not see become -inf.
template <typename L>
__device__ void MaskScores(const QueryTile& tile, uint32_t window, uint32_t key,
                           Scores<L>& scores) {
  const uint32_t row = tile.first + ThisWarp() * L::kWarpRows + ThisLane() / 4;
  const int32_t column = key + ThisLane() % 4 * 2;  // Of the thread's first score.
#pragma unroll
  for (uint32_t i = 0; i < L::kRowTiles * 2; ++i) {
    const uint32_t position = tile.Position(row + i * 8);
    const int32_t end = static_cast<int32_t>(position) - column;
    const int32_t begin = static_cast<int32_t>(FirstSeen(position, window)) - column;
#pragma unroll
    for (int32_t n = 0; n < L::kKeys; n += 8) {
      float(&score)[4] = scores[i / 2][n / 8];
      if (n < begin || n > end) score[i % 2 * 2] = -INFINITY;
      if (n + 1 < begin || n + 1 > end) score[i % 2 * 2 + 1] = -INFINITY;
    }
  }
}

// Scores, in units of `factor` of a logarithm to base 2, become probabilities relative to the
// highest until now; what was summed until now is brought to that as well.
template <typename L>
__device__ void UpdateSoftmax(float factor, Scores<L>& scores, Softmax<L>& softmax,
                              Outputs<L>& outputs) {
#pragma unroll
  for (uint32_t i = 0; i < L::kRowTiles * 2; ++i) {
    const uint32_t m = i / 2;
    const uint32_t at = i % 2 * 2;
    float max = softmax.max[m][i % 2];
#pragma unroll
    for (uint32_t n = 0; n < L::kKeys / 8; ++n) {
      max = fmaxf(max, fmaxf(scores[m][n][at], scores[m][n][at + 1]));
    }
    max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, 1));
    max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, 2));
    // A row that has seen nothing yet: anything finite will do.
    const float base = max == -INFINITY ? 0.0f : max;
    // Exactly 1 if the maximum is what it was.
    const float keep = Exp2((softmax.max[m][i % 2] - base) * factor);
    softmax.max[m][i % 2] = max;
    const float shift = base * factor;
    float& sum = softmax.sum[m][i % 2];
    sum *= keep;
#pragma unroll
    for (uint32_t n = 0; n < L::kKeys / 8; ++n) {
      scores[m][n][at] = Exp2(fmaf(scores[m][n][at], factor, -shift));
      scores[m][n][at + 1] = Exp2(fmaf(scores[m][n][at + 1], factor, -shift));
      sum += scores[m][n][at] + scores[m][n][at + 1];
    }
#pragma unroll
    for (uint32_t d = 0; d < L::kDims / 8; ++d) {
      outputs[m][d][at] *= keep;
      outputs[m][d][at + 1] *= keep;
    }
  }
}

// outputs += probabilities V. Two results of the mma before are one operand of this one.
template <typename T, typename L>
__device__ void AddValues(uint32_t values, const Scores<L>& scores, Outputs<L>& outputs) {
  constexpr uint32_t kPitch = L::kPitch;
  values += LaneOffset<L>();
#pragma unroll
  for (uint32_t n = 0; n < L::kKeys / 8; n += 2) {
    uint32_t a[L::kRowTiles][4];
#pragma unroll
    for (uint32_t m = 0; m < L::kRowTiles; ++m) {
      a[m][0] = PackPair(scores[m][n][0], scores[m][n][1], T{});
      a[m][1] = PackPair(scores[m][n][2], scores[m][n][3], T{});
      a[m][2] = PackPair(scores[m][n + 1][0], scores[m][n + 1][1], T{});
      a[m][3] = PackPair(scores[m][n + 1][2], scores[m][n + 1][3], T{});
    }
#pragma unroll
    for (uint32_t d = 0; d < L::kDims / 8; d += 2) {
      uint32_t b[4];
      LoadTransposed(b, values + n * 8 * kPitch + d * 16);
#pragma unroll
      for (uint32_t m = 0; m < L::kRowTiles; ++m) {
        MultiplyAdd(outputs[m][d], a[m], b[0], b[1], T{});
        MultiplyAdd(outputs[m][d + 1], a[m], b[2], b[3], T{});
      }
    }
  }
}

// Divides by the sums and writes the warp's rows, through its own rows of q in shared memory, for
// whole chunks to go out.
template <typename T, typename L>
__device__ void WriteOutputs(const AttentionArgs& args, const QueryTile& tile, std::byte* shared,
                             const Softmax<L>& softmax, const Outputs<L>& outputs) {
  shared += ThisWarp() * L::kWarpRows * L::kPitch;
  __syncwarp();
#pragma unroll
  for (uint32_t i = 0; i < L::kRowTiles * 2; ++i) {
    float sum = softmax.sum[i / 2][i % 2];
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    const float factor = 1.0f / sum;
    std::byte* const row = shared + (i * 8 + ThisLane() / 4) * L::kPitch + ThisLane() % 4 * 4;
#pragma unroll
    for (uint32_t d = 0; d < L::kDims / 8; ++d) {
      const float(&output)[4] = outputs[i / 2][d];
      *reinterpret_cast<uint32_t*>(row + d * 16) =
          PackPair(output[i % 2 * 2] * factor, output[i % 2 * 2 + 1] * factor, T{});
    }
  }
  __syncwarp();
  for (uint32_t i = ThisLane(); i < L::kWarpRows * L::kRowChunks; i += kWarp) {
    const uint32_t row = i / L::kRowChunks;
    const uint32_t chunk = i % L::kRowChunks;
    const uint32_t tile_row = tile.first + ThisWarp() * L::kWarpRows + row;
    if (tile_row >= tile.end) break;
    std::byte* const to =
        static_cast<std::byte*>(args.out) + tile.Offset(args, tile_row) * 2 + chunk * kChunk;
    *reinterpret_cast<uint4*>(to) =
        *reinterpret_cast<const uint4*>(shared + row * L::kPitch + chunk * kChunk);
  }
}

// ---- The kernel --------------------------------------------------------------------------------

template <typename T, uint32_t kDim, bool kCapped>
__global__ void __launch_bounds__(kThreads, 2)
    PrefillKernel(const __grid_constant__ AttentionArgs args) {
  using L = Layout<kDim>;
  std::byte* const shared = DynamicShared();
  LetNextStart();
  WaitForPrevious();
  Work& work = *reinterpret_cast<Work*>(shared + L::kWorkAt);
  if (!FindWork<L>(args, &work)) return;
  const QueryTile& tile = work.tile;
  const WarpView& view = work.views[ThisWarp()];

  const uint32_t queries = SharedAddress(shared);
  const uint32_t keys = queries + L::kKeysAt;
  const uint32_t values = queries + L::kValuesAt;
  const size_t value_offset =
      static_cast<size_t>(args.pages.kv_heads) * args.pages.block_tokens * L::kRowBytes;
  const float factor = kLog2E * (kCapped ? args.soft_cap : args.scale);

  uint32_t key = tile.key_begin / L::kKeys * L::kKeys;
  const std::byte* rows = WarpRows<L>(args.pages, WarpBlock<L>(args, tile, key), key);
  StartQueries<L>(args, tile, queries);
  StartRows<L>(rows, tile, key, keys);
  Outputs<L> outputs = {};
  Softmax<L> softmax;
#pragma unroll
  for (uint32_t i = 0; i < L::kRowTiles * 2; ++i) {
    softmax.max[i / 2][i % 2] = -INFINITY;
    softmax.sum[i / 2][i % 2] = 0.0f;
  }

  for (; key < tile.key_end; key += L::kKeys) {
    const bool seen =
        __any_sync(0xffffffffu, key < view.some_end && key + L::kKeys > view.some_begin);
    const uint32_t next_block = WarpBlock<L>(args, tile, key + L::kKeys);
    Scores<L> scores = {};
    WaitForCopies();
    __syncthreads();  // K is there; V of the tile before is no longer read.
    StartRows<L>(rows + value_offset, tile, key, values);
    if (seen) AddScores<T, L>(queries, keys, scores);
    WaitForCopies();
    __syncthreads();  // V is there; K is no longer read.
    if (key + L::kKeys < tile.key_end) {
      rows = WarpRows<L>(args.pages, next_block, key + L::kKeys);
      StartRows<L>(rows, tile, key + L::kKeys, keys);
    }
    if (!seen) continue;
    if (kCapped) CapScores<L>(args.scale / args.soft_cap, scores);
    if (key < view.all_begin || key + L::kKeys > view.all_end) {
      MaskScores<L>(tile, args.window, key, scores);
    }
    UpdateSoftmax<L>(factor, scores, softmax, outputs);
    AddValues<T, L>(values, scores, outputs);
  }
  WriteOutputs<T, L>(args, tile, shared, softmax, outputs);
}

template <typename T, uint32_t kDim, bool kCapped>
cudaError_t StartPrefill(const Launch& launch, const AttentionArgs& args) {
  using L = Layout<kDim>;
  const auto kernel = PrefillKernel<T, kDim, kCapped>;
  // Once per GPU: a thread computes on one.
  static thread_local const cudaError_t prepared =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, L::kBytes);
  if (prepared != cudaSuccess) return prepared;
  const uint32_t rows_max = args.table.count_max * (args.heads / args.pages.kv_heads);
  const dim3 grid(args.pages.kv_heads, (rows_max + L::kRows - 1) / L::kRows, args.table.count);
  return StartKernel(kernel, grid, dim3(kThreads), L::kBytes, launch, args);
}

template <typename T>
cudaError_t StartOfType(const Launch& launch, const AttentionArgs& args) {
  const bool capped = args.soft_cap > 0.0f;
  switch (args.pages.head_dim) {
    case 64:
      return capped ? StartPrefill<T, 64, true>(launch, args)
                    : StartPrefill<T, 64, false>(launch, args);
    case 96:
      return capped ? StartPrefill<T, 96, true>(launch, args)
                    : StartPrefill<T, 96, false>(launch, args);
    case 128:
      return capped ? StartPrefill<T, 128, true>(launch, args)
                    : StartPrefill<T, 128, false>(launch, args);
    case 256:
      return capped ? StartPrefill<T, 256, true>(launch, args)
                    : StartPrefill<T, 256, false>(launch, args);
    default:
      return cudaErrorInvalidValue;
  }
}

bool IsAligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % kChunk == 0; }

}  // namespace

bool PrefillAttentionFits(const AttentionArgs& args) {
  const DevicePages& pages = args.pages;
  const bool types_fit =
      (args.type == DType::kBF16 || args.type == DType::kF16) && pages.dtype == args.type;
  const bool dim_fits = pages.head_dim == 64 || pages.head_dim == 96 || pages.head_dim == 128 ||
                        pages.head_dim == 256;
  // A warp's keys are in one block, and every row begins at a whole chunk.
  const bool pages_fit = pages.block_tokens % kWarpKeysMax == 0 && pages.block_bytes % kChunk == 0;
  const bool aligned = IsAligned(args.q) && IsAligned(args.out) && IsAligned(pages.data);
  // The softmax takes the highest score before it is scaled.
  return types_fit && dim_fits && pages_fit && aligned && args.scale > 0.0f;
}

cudaError_t PrefillAttention(const Launch& launch, const AttentionArgs& args) {
  if (args.table.count == 0 || args.table.count_max == 0) return cudaSuccess;
  return args.type == DType::kBF16 ? StartOfType<__nv_bfloat16>(launch, args)
                                   : StartOfType<__half>(launch, args);
}

}  // namespace baton::cuda
