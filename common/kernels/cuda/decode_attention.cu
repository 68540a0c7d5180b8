// Flash decoding (Dao et al., 2023): attention of few query rows over a long paged cache, bound by
// the memory that K and V are read from.
//
// A sequence's cache is cut into splits, each for one block of threads; a second kernel merges
// them. All query heads of a KV head are taken together, up to 16 rows (8 if heads have 256
// elements), so that K and V are read once. The products run on tensor cores (mma.sync m16n8k16)
// whose operands come straight from global memory in loads of 16 bytes: a sum does not change when
// its terms are taken in another order, so a thread may take eight neighbouring elements where the
// instruction's layout wants them apart.
//
// Of both products the transpose is computed, K Q^T and V^T W^T: 16 tokens or elements are the rows
// of a product, and query rows its 8 columns. As rows they would leave half of each operand empty.
//
// In a warp, g = lane / 4 and c = lane % 4. For a tile of 16 tokens:
//   K   thread loads elements 32 j + 8 c .. + 7 of tokens g and 8 + g; they are the terms of steps
//       2 j and 2 j + 1. Q is loaded in the same way: of query row g.
//   W   thread has scores, then weights, of tokens g and 8 + g for query rows 2 c and 2 c + 1;
//       transposed they are an operand.
//   V   thread loads elements 64 h + 8 g .. + 7 of tokens 2 c, 2 c + 1, 2 c + 8 and 2 c + 9, and
//       pairs the tokens. Rows g and 8 + g of output tile 4 h + j are elements 64 h + 8 g + 2 j and
//       the next, its columns query rows. Of 96 elements the second load has 32: where they end, a
//       thread loads the last ones again, and what comes of it is not written.
#include <algorithm>
#include <type_traits>

#include "common/kernels/cuda/device_code.cuh"
#include "common/kernels/cuda/tensor_cores.cuh"
#include "common/tensor/kv_row.h"

namespace baton::cuda {
namespace {

constexpr uint32_t kWarps = 4;
constexpr uint32_t kTile = 16;  // Tokens that a warp takes at a time.
constexpr uint32_t kSplitsMax = 128;
// A split has a tile for each warp at least.
constexpr uint32_t kSplitTilesMin = kWarps;
// Blocks of threads for each multiprocessor where sequences are few; they run at once. Where there
// are many, long ones are cut in two, so that the last find work to share.
constexpr uint32_t kBlocksWanted = 2;
constexpr uint32_t kLongTiles = 128;
constexpr uint32_t kMergeGroups = 4;
// Numbers of V below it count as zero next to others.
constexpr float kValueScaleMin = 0x1p-64f;

// How many times 8 query rows of a KV head there may be. Of heads of 256 elements 16 rows have more
// outputs than the shared memory that is there without asking.
constexpr uint32_t EightsMax(uint32_t head_dim) { return head_dim > 128 ? 1 : 2; }

struct Geometry {
  uint32_t group = 0;  // Query heads of a KV head.
  uint32_t rows = 0;   // count_max * group
  uint32_t splits = 0;
};

// What the products are computed in. Numbers of 8 bits become float16 with few instructions, and
// lose nothing in it; what q and the weights lose is less than the numbers have lost already.
template <typename T, typename Kv>
using Product = std::conditional_t<sizeof(Kv) == 1, __half, T>;

// Eight elements of a row as they lie in memory, and as four pairs.
template <typename Kv>
struct Eight {
  uint4 words = {0, 0, 0, 0};

  __device__ void Load(const std::byte* row, uint32_t element) {
    words = LoadOnce(row + element * sizeof(Kv));
  }
  __device__ uint4 Pairs() const { return words; }
};
template <>
struct Eight<int8_t> {
  uint32_t words[2] = {0, 0};

  // Rows have 4 bytes more than elements: only words are aligned.
  __device__ void Load(const std::byte* row, uint32_t element) {
    words[0] = __ldg(reinterpret_cast<const uint32_t*>(row + element));
    words[1] = __ldg(reinterpret_cast<const uint32_t*>(row + element) + 1);
  }
  __device__ uint4 Pairs() const {
    const uint2 first = WidenBytes(words[0], __half{});
    const uint2 second = WidenBytes(words[1], __half{});
    return make_uint4(first.x, first.y, second.x, second.y);
  }
};

template <>
struct Eight<Fp8> : Eight<int8_t> {
  __device__ uint4 Pairs() const {
    const uint2 first = WidenE4m3(words[0], __half{});
    const uint2 second = WidenE4m3(words[1], __half{});
    return make_uint4(first.x, first.y, second.x, second.y);
  }
};

// Eight elements of q, as pairs of the type of products.
template <typename T, typename P>
__device__ uint4 LoadQuery(const T* from) {
  uint4 words = *reinterpret_cast<const uint4*>(from);
  if constexpr (!std::is_same_v<T, P>) {
    const auto* const numbers = reinterpret_cast<const T*>(&words);
    words = make_uint4(PackPair(ToFloat(numbers[0]), ToFloat(numbers[1]), P{}),
                       PackPair(ToFloat(numbers[2]), ToFloat(numbers[3]), P{}),
                       PackPair(ToFloat(numbers[4]), ToFloat(numbers[5]), P{}),
                       PackPair(ToFloat(numbers[6]), ToFloat(numbers[7]), P{}));
  }
  return words;
}

// Loads of V for a token.
constexpr uint32_t ValueLoadsOf(uint32_t head_dim) { return (head_dim + 63) / 64; }

// What a thread knows of query rows 8 i + 2 c and 8 i + 2 c + 1: of all tokens the maximum, of its
// own the sum, and of its elements the output.
template <uint32_t kDim>
struct Running {
  float maximum[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0.0f, 0.0f};
  float output[4 * ValueLoadsOf(kDim)][4] = {};
};

// Tokens of a sequence that a row sees, and where they lie.
struct Task {
  DeviceSequence sequence;
  const uint32_t* blocks = nullptr;
  uint32_t kv_head = 0;
  uint32_t begin = 0;  // What no row sees is not read.
  uint32_t end = 0;
  uint32_t tile_begin = 0;
  uint32_t tile_end = 0;
};

// kEights: how many times 8 query rows there are.
template <typename T, typename Kv, uint32_t kDim, uint32_t kEights>
class Decoder {
 public:
  using P = Product<T, Kv>;
  static constexpr uint32_t kSteps = kDim / 32;  // Loads of K for a token.
  static constexpr uint32_t kValueLoads = ValueLoadsOf(kDim);
  // Those that start together with the loads of K. For all of a long row there are not registers
  // enough: the others take the place of K.
  static constexpr uint32_t kEarlyValueLoads =
      kDim * sizeof(Kv) > 256 ? kValueLoads / 2 : kValueLoads;
  // As KvRowBytes.
  static constexpr uint32_t kRowBytes = kDim * sizeof(Kv) + (sizeof(Kv) == 1 ? sizeof(float) : 0);

  __device__ Decoder(const AttentionArgs& args, const Geometry& geometry, const Task& task)
      : args_(args), geometry_(geometry), task_(task) {}

  __device__ void LoadQ() {
#pragma unroll
    for (uint32_t i = 0; i < kEights; ++i) {
      const uint32_t row = 8 * i + group_lane();
      const uint32_t head = task_.kv_head * geometry_.group + row % geometry_.group;
      const T* const from =
          static_cast<const T*>(args_.q) +
          (static_cast<size_t>(task_.sequence.row + TokenOfRow(row)) * args_.heads + head) * kDim;
#pragma unroll
      for (uint32_t j = 0; j < kSteps; ++j) {
        q_[i][j] = RowExists(row) ? LoadQuery<T, P>(from + 32 * j + 8 * column_lane())
                                  : make_uint4(0, 0, 0, 0);
      }
#pragma unroll
      for (uint32_t r = 0; r < 2; ++r) {
        const uint32_t own = 8 * i + 2 * column_lane() + r;
        // What a row that does not exist sees is nobody's.
        const uint32_t last = RowExists(own) ? task_.sequence.position + TokenOfRow(own) : 0;
        last_[i][r] = last;
        first_[i][r] = args_.window == 0 || last < args_.window ? 0 : last - args_.window + 1;
      }
    }
  }

  __device__ void Run(uint32_t warp, Running<kDim> (&running)[kEights]) const {
    uint32_t tile = task_.tile_begin + warp;
    uint32_t block = tile < task_.tile_end ? BlockOf(tile) : 0;
    while (tile < task_.tile_end) {
      const uint32_t next = tile + kWarps;
      const uint32_t next_block = next < task_.tile_end ? BlockOf(next) : 0;
      TakeTile(tile, block, running);
      tile = next;
      block = next_block;
    }
  }

 private:
  __device__ static uint32_t group_lane() { return threadIdx.x % kWarp / 4; }
  __device__ static uint32_t column_lane() { return threadIdx.x % 4; }
  __device__ uint32_t TokenOfRow(uint32_t row) const { return row / geometry_.group; }
  __device__ bool RowExists(uint32_t row) const {
    return TokenOfRow(row) < task_.sequence.count && row < geometry_.rows;
  }
  __device__ uint32_t BlockOf(uint32_t tile) const {
    return __ldg(task_.blocks + tile * kTile / args_.pages.block_tokens);
  }

  __device__ void TakeTile(uint32_t tile, uint32_t block, Running<kDim> (&running)[kEights]) const {
    const uint32_t g = group_lane();
    const uint32_t c = column_lane();
    const uint32_t first_token = tile * kTile;
    const DevicePages& pages = args_.pages;
    const std::byte* const k = pages.data + block * pages.block_bytes +
                               (static_cast<size_t>(task_.kv_head) * pages.block_tokens +
                                first_token % pages.block_tokens) *
                                   kRowBytes;
    const std::byte* const v =
        k + static_cast<size_t>(pages.kv_heads) * pages.block_tokens * kRowBytes;
    // Loads first, and none behind a branch. What no row sees is not a number, perhaps: instead
    // of it the nearest token that one does, which has no weight there.
    const uint32_t lowest = max(first_token, task_.begin) - first_token;
    const uint32_t highest = min(kTile, task_.end - first_token) - 1;
    Eight<Kv> keys[2][kSteps];
    Eight<Kv> values[4][kValueLoads];
    float key_scales[2] = {};
    float value_scales[2] = {};
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i) {
      const uint32_t token = min(max(8 * i + g, lowest), highest);
#pragma unroll
      for (uint32_t j = 0; j < kSteps; ++j) keys[i][j].Load(k + token * kRowBytes, 32 * j + 8 * c);
      if constexpr (sizeof(Kv) == 1) {
        key_scales[i] = ScaleOf(k + token * kRowBytes);
        value_scales[i] = ScaleOf(v + token * kRowBytes);
      }
    }
    const auto load_values = [&](uint32_t begin, uint32_t end) {
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) {
        const uint32_t token = min(max(2 * c + i % 2 + i / 2 * 8, lowest), highest);
#pragma unroll
        for (uint32_t h = begin; h < end; ++h) {
          const uint32_t element = 64 * h + 8 * g;
          values[i][h].Load(v + token * kRowBytes,
                            kDim % 64 == 0 ? element : min(element, kDim - 8));
        }
      }
    };
    load_values(0, kEarlyValueLoads);
    float scores[kEights][4] = {};
#pragma unroll
    for (uint32_t j = 0; j < kSteps; ++j) {
      const uint4 low = keys[0][j].Pairs();
      const uint4 high = keys[1][j].Pairs();
      const uint32_t even[4] = {low.x, high.x, low.y, high.y};
      const uint32_t odd[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
      for (uint32_t i = 0; i < kEights; ++i) {
        MultiplyAdd(scores[i], even, q_[i][j].x, q_[i][j].y, P{});
        MultiplyAdd(scores[i], odd, q_[i][j].z, q_[i][j].w, P{});
      }
    }
    load_values(kEarlyValueLoads, kValueLoads);
    uint32_t weights[kEights][2];
#pragma unroll
    for (uint32_t i = 0; i < kEights; ++i) {
#pragma unroll
      for (uint32_t r = 0; r < 2; ++r) {
        float row[2] = {scores[i][r], scores[i][2 + r]};
        Weigh(first_token + g, first_[i][r], last_[i][r], key_scales, value_scales, row, r,
              running[i]);
        scores[i][r] = row[0];
        scores[i][2 + r] = row[1];
      }
      weights[i][0] = Transposed(PackPair(scores[i][0], scores[i][1], P{}));
      weights[i][1] = Transposed(PackPair(scores[i][2], scores[i][3], P{}));
    }
#pragma unroll
    for (uint32_t h = 0; h < kValueLoads; ++h) {
      const uint4 pairs[4] = {values[0][h].Pairs(), values[1][h].Pairs(), values[2][h].Pairs(),
                              values[3][h].Pairs()};
#pragma unroll
      for (uint32_t j = 0; j < 4; ++j) {
        const uint32_t elements[4] = {__byte_perm(Word(pairs[0], j), Word(pairs[1], j), 0x5410),
                                      __byte_perm(Word(pairs[0], j), Word(pairs[1], j), 0x7632),
                                      __byte_perm(Word(pairs[2], j), Word(pairs[3], j), 0x5410),
                                      __byte_perm(Word(pairs[2], j), Word(pairs[3], j), 0x7632)};
#pragma unroll
        for (uint32_t i = 0; i < kEights; ++i) {
          MultiplyAdd(running[i].output[4 * h + j], elements, weights[i][0], weights[i][1], P{});
        }
      }
    }
  }

  __device__ static float ScaleOf(const std::byte* row) {
    const float scale = __ldg(reinterpret_cast<const float*>(row + kDim));
    return std::is_same_v<Kv, Fp8> ? scale * E4m3Shrink(__half{}) : scale;
  }

  // Scores of query row r for two tokens, `token` and the eighth behind it, become what V is
  // multiplied with: weights, by powers of two, and over 8 bits times the scales of V. What was
  // summed is scaled to the new maximum; over 8 bits that is the maximum of the weights times the
  // scales of V, as these products become float16: the scales alone may be too small for it.
  __device__ void Weigh(uint32_t token, uint32_t first, uint32_t last, const float (&key_scales)[2],
                        const float (&value_scales)[2], float (&row)[2], uint32_t r,
                        Running<kDim>& running) const {
    float highest = running.maximum[r];
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i) {
      float score = row[i] * args_.scale;
      if constexpr (sizeof(Kv) == 1) score *= key_scales[i];
      if (args_.soft_cap > 0.0f) score = args_.soft_cap * tanhf(score / args_.soft_cap);
      const bool seen = token + 8 * i >= first && token + 8 * i <= last;
      row[i] = seen ? score * kLog2E : -INFINITY;
      float product = row[i];
      if constexpr (sizeof(Kv) == 1) product += __log2f(fmaxf(value_scales[i], kValueScaleMin));
      highest = fmaxf(highest, product);
    }
#pragma unroll
    for (uint32_t apart = 4; apart < kWarp; apart *= 2) {
      highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, apart));
    }
    // Nothing seen yet: differences of infinities would not be numbers.
    const float base = highest == -INFINITY ? 0.0f : highest;
    const float kept = exp2f(running.maximum[r] - base);
    running.maximum[r] = highest;
    running.sum[r] *= kept;
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i) {
      row[i] = exp2f(row[i] - base);
      running.sum[r] += row[i];
      if constexpr (sizeof(Kv) == 1) row[i] *= value_scales[i];
    }
#pragma unroll
    for (uint32_t t = 0; t < 4 * kValueLoads; ++t) {
      running.output[t][r] *= kept;
      running.output[t][2 + r] *= kept;
    }
  }

  const AttentionArgs& args_;
  const Geometry& geometry_;
  const Task& task_;
  uint4 q_[kEights][kSteps];
  // Positions that the thread's query rows see.
  uint32_t first_[kEights][2];
  uint32_t last_[kEights][2];
};

// What the warps of a block, or the splits of a sequence, have found for a row.
struct Part {
  float maximum;
  float sum;
};

// Where the parts of (sequence, KV head, split) begin, counted in rows.
__device__ size_t PartOf(const AttentionArgs& args, const Geometry& geometry, uint32_t sequence,
                         uint32_t kv_head, uint32_t split) {
  return ((static_cast<size_t>(sequence) * args.pages.kv_heads + kv_head) * geometry.splits +
          split) *
         geometry.rows;
}

__device__ size_t OutOffset(const AttentionArgs& args, const Geometry& geometry,
                            const DeviceSequence& sequence, uint32_t kv_head, uint32_t row) {
  const uint32_t head = kv_head * geometry.group + row % geometry.group;
  return (static_cast<size_t>(sequence.row + row / geometry.group) * args.heads + head) *
         args.pages.head_dim;
}

template <typename T, typename Kv, uint32_t kDim, uint32_t kEights>
__global__ void __launch_bounds__(kWarps* kWarp,
                                  kEights > 1 || sizeof(Kv) == 1 || kDim > 128 ? 2 : 3)
    DecodeKernel(AttentionArgs args, Geometry geometry, Part* parts, float* part_outputs) {
  // Two numbers more, so that fewer threads of a warp meet in a bank.
  constexpr uint32_t kStride = kDim + 2;
  __shared__ Part found[kWarps][8 * kEights];
  __shared__ __align__(8) float outputs[kWarps][8 * kEights][kStride];
  WaitForPrevious();
  LetNextStart();
  const uint32_t split = blockIdx.x;
  Task task = {.sequence = args.table.sequences[blockIdx.z], .kv_head = blockIdx.y};
  if (task.sequence.count == 0) return;
  task.blocks = args.table.block_table + task.sequence.blocks;
  const uint32_t position = task.sequence.position;
  const uint32_t first =
      args.window == 0 || position < args.window ? 0 : position - args.window + 1;
  task.begin = first;
  task.end = position + task.sequence.count;
  const uint32_t tile_begin = task.begin / kTile;
  const uint32_t tile_end = (task.end + kTile - 1) / kTile;
  const uint32_t share = (tile_end - tile_begin + geometry.splits - 1) / geometry.splits;
  task.tile_begin = min(tile_end, tile_begin + split * share);
  task.tile_end = min(tile_end, task.tile_begin + share);

  Running<kDim> running[kEights];
  Decoder<T, Kv, kDim, kEights> decoder(args, geometry, task);
  decoder.LoadQ();
  const uint32_t warp = threadIdx.x / kWarp;
  decoder.Run(warp, running);

  const uint32_t g = threadIdx.x % kWarp / 4;
  const uint32_t c = threadIdx.x % 4;
#pragma unroll
  for (uint32_t i = 0; i < 2 * kEights; ++i) {
    const Running<kDim>& part = running[i / 2];
    const uint32_t row = 8 * (i / 2) + 2 * c + i % 2;
    float sum = part.sum[i % 2];
#pragma unroll
    for (uint32_t apart = 4; apart < kWarp; apart *= 2) {
      sum += __shfl_xor_sync(0xffffffffu, sum, apart);
    }
    if (g == 0) found[warp][row] = {part.maximum[i % 2], sum};
#pragma unroll
    for (uint32_t t = 0; t < 4 * ValueLoadsOf(kDim); ++t) {
      const uint32_t element = t / 4 * 64 + 8 * g + t % 4 * 2;
      if (kDim % 64 != 0 && element >= kDim) continue;
      *reinterpret_cast<float2*>(&outputs[warp][row][element]) =
          make_float2(part.output[t][i % 2], part.output[t][2 + i % 2]);
    }
  }
  __syncthreads();
  const uint32_t rows = min(task.sequence.count * geometry.group, geometry.rows);
  const size_t part = PartOf(args, geometry, blockIdx.z, blockIdx.y, split);
  for (uint32_t i = threadIdx.x; i < rows * kDim; i += blockDim.x) {
    const uint32_t row = i / kDim;
    const uint32_t element = i % kDim;
    float highest = -INFINITY;
#pragma unroll
    for (uint32_t w = 0; w < kWarps; ++w) highest = fmaxf(highest, found[w][row].maximum);
    float sum = 0.0f;
    float value = 0.0f;
#pragma unroll
    for (uint32_t w = 0; w < kWarps; ++w) {
      if (found[w][row].maximum == -INFINITY) continue;
      const float factor = exp2f(found[w][row].maximum - highest);
      sum += found[w][row].sum * factor;
      value += outputs[w][row][element] * factor;
    }
    if (geometry.splits == 1) {
      static_cast<T*>(
          args.out)[OutOffset(args, geometry, task.sequence, blockIdx.y, row) + element] =
          FromFloat<T>(value / sum);
      continue;
    }
    part_outputs[(part + row) * kDim + element] = value;
    if (element == 0) parts[part + row] = {highest, sum};
  }
}

// What each split's output is multiplied with in the end, by the first warp of a block.
__device__ void FindFactors(const Part* parts, uint32_t stride, uint32_t splits, float* factors) {
  constexpr uint32_t kEach = kSplitsMax / kWarp;
  Part found[kEach];
  float highest = -INFINITY;
#pragma unroll
  for (uint32_t i = 0; i < kEach; ++i) {
    const uint32_t split = i * kWarp + threadIdx.x;
    found[i] = split < splits ? parts[split * stride] : Part{-INFINITY, 0.0f};
    highest = fmaxf(highest, found[i].maximum);
  }
  highest = WarpMax(highest);
  float sum = 0.0f;
#pragma unroll
  for (uint32_t i = 0; i < kEach; ++i) {
    // What found nothing counts nothing.
    const bool some = found[i].maximum != -INFINITY;
    found[i].maximum = some ? exp2f(found[i].maximum - highest) : 0.0f;
    if (some) sum += found[i].sum * found[i].maximum;
  }
  sum = WarpSum(sum);
#pragma unroll
  for (uint32_t i = 0; i < kEach; ++i) {
    const uint32_t split = i * kWarp + threadIdx.x;
    if (split < splits) factors[split] = found[i].maximum / sum;
  }
}

// One block for a row of a sequence and KV head: a thread for each element, in groups that take
// splits in turn.
template <typename T, uint32_t kDim>
__global__ void __launch_bounds__(kDim* kMergeGroups)
    MergeKernel(AttentionArgs args, Geometry geometry, const Part* parts,
                const float* part_outputs) {
  __shared__ float factors[kSplitsMax];
  __shared__ float values[kMergeGroups][kDim];
  WaitForPrevious();
  LetNextStart();
  const uint32_t row = blockIdx.x;
  const DeviceSequence sequence = args.table.sequences[blockIdx.z];
  if (row >= sequence.count * geometry.group) return;
  const size_t first = PartOf(args, geometry, blockIdx.z, blockIdx.y, 0) + row;
  if (threadIdx.y == 0 && threadIdx.x < kWarp) {
    FindFactors(parts + first, geometry.rows, geometry.splits, factors);
  }
  __syncthreads();
  float value = 0.0f;
#pragma unroll 4
  for (uint32_t split = threadIdx.y; split < geometry.splits; split += kMergeGroups) {
    // What found nothing need not be read.
    if (factors[split] == 0.0f) continue;
    value += part_outputs[(first + split * geometry.rows) * kDim + threadIdx.x] * factors[split];
  }
  values[threadIdx.y][threadIdx.x] = value;
  __syncthreads();
  if (threadIdx.y > 0) return;
  float sum = 0.0f;
#pragma unroll
  for (uint32_t group = 0; group < kMergeGroups; ++group) sum += values[group][threadIdx.x];
  static_cast<T*>(args.out)[OutOffset(args, geometry, sequence, blockIdx.y, row) + threadIdx.x] =
      FromFloat<T>(sum);
}

Geometry GeometryOf(const Launch& launch, const AttentionArgs& args) {
  Geometry geometry;
  geometry.group = args.heads / args.pages.kv_heads;
  geometry.rows = args.table.count_max * geometry.group;
  const uint32_t blocks = std::max(1u, args.table.count * args.pages.kv_heads);
  const uint32_t room = kBlocksWanted * static_cast<uint32_t>(launch.multiprocessors);
  const uint32_t seen =
      args.window == 0 ? args.table.end_max : std::min(args.table.end_max, args.window + kTile);
  const uint32_t tiles = (seen + kTile - 1) / kTile;
  const uint32_t wanted = blocks < room         ? (room + blocks - 1) / blocks
                          : tiles >= kLongTiles ? 2u
                                                : 1u;
  geometry.splits = std::clamp(std::min(wanted, tiles / kSplitTilesMin), 1u, kSplitsMax);
  return geometry;
}

size_t PartCount(const AttentionArgs& args, const Geometry& geometry) {
  return size_t{args.table.count} * args.pages.kv_heads * geometry.splits * geometry.rows;
}

template <typename T, typename Kv, uint32_t kDim>
cudaError_t Start(const Launch& launch, const AttentionArgs& args) {
  const Geometry geometry = GeometryOf(launch, args);
  const size_t count = PartCount(args, geometry);
  auto* const parts = static_cast<Part*>(args.scratch);
  auto* const outputs = reinterpret_cast<float*>(parts + count);
  const dim3 grid(geometry.splits, args.pages.kv_heads, args.table.count);
  auto kernel = DecodeKernel<T, Kv, kDim, 1>;
  if constexpr (EightsMax(kDim) > 1) {
    if (geometry.rows > 8) kernel = DecodeKernel<T, Kv, kDim, 2>;
  }
  const cudaError_t error =
      StartKernel(kernel, grid, dim3(kWarps * kWarp), 0, launch, args, geometry, parts, outputs);
  if (error != cudaSuccess || geometry.splits == 1) return error;
  return StartKernel(MergeKernel<T, kDim>,
                     dim3(geometry.rows, args.pages.kv_heads, args.table.count),
                     dim3(kDim, kMergeGroups), 0, launch, args, geometry, parts,
                     static_cast<const float*>(outputs));
}

template <typename T, typename Kv>
cudaError_t StartOverCache(const Launch& launch, const AttentionArgs& args) {
  switch (args.pages.head_dim) {
    case 64:
      return Start<T, Kv, 64>(launch, args);
    case 96:
      return Start<T, Kv, 96>(launch, args);
    case 128:
      return Start<T, Kv, 128>(launch, args);
    case 256:
      return Start<T, Kv, 256>(launch, args);
    default:
      return cudaErrorInvalidValue;
  }
}

template <typename T>
cudaError_t StartOf(const Launch& launch, const AttentionArgs& args) {
  if (args.pages.dtype == DType::kI8) return StartOverCache<T, int8_t>(launch, args);
  if (args.pages.dtype == DType::kFp8) return StartOverCache<T, Fp8>(launch, args);
  return StartOverCache<T, T>(launch, args);
}

}  // namespace

bool DecodeAttentionFits(const AttentionArgs& args) {
  const uint32_t head_dim = args.pages.head_dim;
  const bool halves = args.type == DType::kBF16 || args.type == DType::kF16;
  const bool kv = args.pages.dtype == args.type || HasScales(args.pages.dtype);
  const bool dim = head_dim == 64 || head_dim == 96 || head_dim == 128 || head_dim == 256;
  return halves && kv && dim && args.pages.block_tokens % kTile == 0 &&
         args.table.count_max * (args.heads / args.pages.kv_heads) <= 8 * EightsMax(head_dim);
}

size_t DecodeAttentionScratchBytes(const Launch& launch, const AttentionArgs& args) {
  const Geometry geometry = GeometryOf(launch, args);
  if (geometry.splits == 1) return 0;
  return PartCount(args, geometry) * (sizeof(Part) + args.pages.head_dim * sizeof(float));
}

cudaError_t DecodeAttention(const Launch& launch, const AttentionArgs& args) {
  if (args.table.count == 0 || args.table.count_max == 0) return cudaSuccess;
  if (args.scratch_bytes < DecodeAttentionScratchBytes(launch, args)) return cudaErrorInvalidValue;
  return args.type == DType::kBF16 ? StartOf<__nv_bfloat16>(launch, args)
                                   : StartOf<__half>(launch, args);
}

}  // namespace baton::cuda
