// FlashAttention-3 (Shah et al., 2024) for Hopper: a block of threads computes 128 query rows of
// one head. One warpgroup, the producer, has the copy engine bring tiles of 128 keys and values
// into a ring of shared memory; two consumers multiply 64 rows each with warpgroup instructions. A
// consumer's softmax runs while its own last product of weights and values is under way, and while
// the other consumer has its turn at the tensor cores.
//
// Tiles are taken from the last to the first, so that those which need the causal mask come first.
#include <cuda.h>
#include <cudaTypedefs.h>

#include <cmath>
#include <type_traits>

#include "common/kernels/cuda/device_code.cuh"
#include "common/kernels/cuda/hopper.cuh"

namespace baton::cuda {
namespace {

constexpr uint32_t kWarpgroup = 128;
constexpr uint32_t kConsumers = 2;
constexpr uint32_t kThreads = kWarpgroup * (1 + kConsumers);
constexpr uint32_t kGroupRows = 64;  // Of queries, of one consumer.
constexpr uint32_t kRows = kGroupRows * kConsumers;
constexpr uint32_t kKeys = 128;  // Of a tile.
constexpr uint32_t kStages = 2;

// A tile in shared memory is one or two halves of 128 rows of 64 elements, swizzled.
constexpr uint32_t kHalf = 64;
constexpr uint32_t kHalfBytes = kKeys * kRowBytes;
static_assert(kRows == kKeys, "tiles of queries and of keys have one layout");

// The highest number of blocks of a cache, BlockPool::kBlockCountMax. The copy engine only compares
// ids with it.
constexpr uint32_t kBlockCountMax = 1u << 24;

struct Params {
  CUtensorMap q;      // [rows][heads][head_dim]
  CUtensorMap pages;  // [blocks][K|V and kv_head][block_tokens][head_dim]
  void* out = nullptr;
  SequenceTable table;
  uint32_t heads = 0;
  uint32_t kv_heads = 0;
  uint32_t block_shift = 0;  // log2(block_tokens).
  float scale_log2 = 0.0f;   // Of the scores, for powers of 2.
};

// Where things lie in shared memory: its addresses, as instructions take them.
template <uint32_t kDim>
struct Shared {
  static constexpr uint32_t kTileBytes = kDim / kHalf * kHalfBytes;
  static constexpr uint32_t kBytes =
      kSwizzleBytes + kTileBytes * (1 + 2 * kStages) + 8 * (1 + 4 * kStages);

  uint32_t base;

  __device__ uint32_t Queries() const { return base; }
  __device__ uint32_t Keys(uint32_t stage) const { return base + kTileBytes * (1 + stage); }
  __device__ uint32_t Values(uint32_t stage) const {
    return base + kTileBytes * (1 + kStages + stage);
  }
  __device__ uint32_t QueriesFull() const { return base + kTileBytes * (1 + 2 * kStages); }
  __device__ uint32_t KeysFull(uint32_t stage) const { return QueriesFull() + 8 * (1 + stage); }
  __device__ uint32_t KeysEmpty(uint32_t stage) const { return KeysFull(kStages + stage); }
  __device__ uint32_t ValuesFull(uint32_t stage) const { return KeysFull(2 * kStages + stage); }
  __device__ uint32_t ValuesEmpty(uint32_t stage) const { return KeysFull(3 * kStages + stage); }
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// 64 threads' worth of registers more than the kernel starts with would not be there:
// 128 * 24 + 256 * 240 = 384 * 168.
constexpr int kProducerRegisters = 24;
constexpr int kConsumerRegisters = 240;

// Named barriers; 0 is that of __syncthreads().
constexpr uint32_t kTurnBarrier = 1;  // And 2: a consumer's turn at the tensor cores.
constexpr uint32_t kZeroBarrier = 3;
constexpr uint32_t kStoreBarrier = 4;  // And 5.

// What a block of threads computes.
struct Tile {
  uint32_t row = 0;       // Of its first query, in the batch.
  uint32_t rows = 0;      // 0: nothing.
  uint32_t position = 0;  // Of its first query.
  uint32_t blocks = 0;    // Of its sequence, in the block table.

  __device__ uint32_t KeyEnd() const { return position + rows; }
  __device__ uint32_t KeyTiles() const { return (KeyEnd() + kKeys - 1) / kKeys; }
};

// ---- Producer ----

// The tile with number `index` of those of all sequences, of a sequence the last first: it sees
// most keys and takes longest. Every warp finds it for itself.
__device__ Tile FindTile(const SequenceTable& table, uint32_t index) {
  const uint32_t lane = threadIdx.x % kWarp;
  for (uint32_t begin = 0; begin < table.count; begin += kWarp) {
    DeviceSequence sequence;
    if (begin + lane < table.count) sequence = table.sequences[begin + lane];
    uint32_t end = (sequence.count + kRows - 1) / kRows;  // Of tiles, summed over the lanes.
#pragma unroll
    for (uint32_t offset = 1; offset < kWarp; offset *= 2) {
      const uint32_t before = __shfl_up_sync(~0u, end, offset);
      if (lane >= offset) end += before;
    }
    const uint32_t total = __shfl_sync(~0u, end, kWarp - 1);
    if (index < total) {
      const uint32_t owner = __popc(__ballot_sync(~0u, end <= index));
      const uint32_t offset = (__shfl_sync(~0u, end, owner) - 1 - index) * kRows;
      Tile tile;
      tile.row = __shfl_sync(~0u, sequence.row, owner) + offset;
      tile.rows = min(kRows, __shfl_sync(~0u, sequence.count, owner) - offset);
      tile.position = __shfl_sync(~0u, sequence.position, owner) + offset;
      tile.blocks = __shfl_sync(~0u, sequence.blocks, owner);
      return tile;
    }
    index -= total;
  }
  return Tile{};
}

// Brings the queries, and keys and values in the order in which the consumers take them. A lane
// copies a half of a page.
template <uint32_t kDim>
class Producer {
 public:
  __device__ Producer(const Params& params, const Tile& tile, Shared<kDim> shared)
      : params_(params), tile_(tile), shared_(shared) {}

  __device__ void Run() {
    const uint32_t tiles = tile_.KeyTiles();
    const uint32_t kv_head = blockIdx.x / (params_.heads / params_.kv_heads);
    uint32_t block = BlockOf(tiles - 1);
    LoadKeys(0, tiles - 1, kv_head, block);
    LoadQueries();
    for (uint32_t i = 1; i < tiles; ++i) {
      const uint32_t next = BlockOf(tiles - 1 - i);
      LoadKeys(i, tiles - 1 - i, kv_head, next);
      LoadValues(i - 1, tiles - i, kv_head, block);
      block = next;
    }
    LoadValues(tiles - 1, 0, kv_head, block);
  }

 private:
  static constexpr uint32_t kHalves = kDim / kHalf;

  __device__ uint32_t Lane() const { return threadIdx.x % kWarp; }
  __device__ uint32_t Page() const { return Lane() / kHalves; }
  __device__ uint32_t HalfIndex() const { return Lane() % kHalves; }

  // Pages of a tile that hold keys which are seen.
  __device__ uint32_t PageCount(uint32_t tile) const {
    const uint32_t keys = min(kKeys, tile_.KeyEnd() - tile * kKeys);
    return (keys + (1u << params_.block_shift) - 1) >> params_.block_shift;
  }

  __device__ uint32_t BlockOf(uint32_t tile) const {
    if (Page() >= PageCount(tile)) return 0;
    return params_.table.block_table[tile_.blocks + (tile * kKeys >> params_.block_shift) + Page()];
  }

  __device__ void LoadQueries() const {
    if (Lane() != 0) return;
    ArriveExpecting(shared_.QueriesFull(), Shared<kDim>::kTileBytes);
    for (uint32_t half = 0; half < kHalves; ++half) {
      CopyBox(shared_.Queries() + half * kHalfBytes, params_.q, half * kHalf, blockIdx.x, tile_.row,
              shared_.QueriesFull());
    }
  }

  // The i-th tile that is taken.
  __device__ void LoadKeys(uint32_t i, uint32_t tile, uint32_t plane, uint32_t block) const {
    const uint32_t stage = i % kStages;
    WaitFor(shared_.KeysEmpty(stage), (i / kStages & 1) ^ 1);
    LoadPages(shared_.Keys(stage), shared_.KeysFull(stage), tile, plane, block);
  }

  __device__ void LoadValues(uint32_t i, uint32_t tile, uint32_t kv_head, uint32_t block) const {
    const uint32_t stage = i % kStages;
    WaitFor(shared_.ValuesEmpty(stage), (i / kStages & 1) ^ 1);
    LoadPages(shared_.Values(stage), shared_.ValuesFull(stage), tile, params_.kv_heads + kv_head,
              block);
  }

  __device__ void LoadPages(uint32_t to, uint32_t full, uint32_t tile, uint32_t plane,
                            uint32_t block) const {
    const uint32_t page_bytes = kRowBytes << params_.block_shift;
    const uint32_t pages = PageCount(tile);
    if (Lane() == 0) ArriveExpecting(full, pages * kHalves * page_bytes);
    __syncwarp();
    if (Page() < pages) {
      CopyBox(to + HalfIndex() * kHalfBytes + Page() * page_bytes, params_.pages,
              HalfIndex() * kHalf, 0, plane, block, full);
    }
  }

  const Params& params_;
  const Tile& tile_;
  const Shared<kDim> shared_;
};

// ---- Consumer ----

// The softmax of the two rows that a thread has a part of, as far as keys were seen. Four threads
// share a row. Element 4 j + 2 r + e of a product is column 8 j + 2 (lane % 4) + e of row r.
class Softmax {
 public:
  __device__ __forceinline__ explicit Softmax(float scale_log2) : scale_log2_(scale_log2) {}

  // Turns scores into weights. What was summed up before is to be multiplied with `rescale`.
  __device__ __forceinline__ void Take(float (&scores)[64], float (&rescale)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float top = max_[r];
#pragma unroll
      for (int j = 0; j < 16; ++j) {
        top = fmaxf(top, fmaxf(scores[4 * j + 2 * r], scores[4 * j + 2 * r + 1]));
      }
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
      // A row that has seen no key yet: its weights are 2^(-inf - 0).
      const float scaled = top == -INFINITY ? 0.0f : __fmul_rn(top, scale_log2_);
      rescale[r] = Exp2(__fmul_rn(max_[r], scale_log2_) - scaled);
      max_[r] = top;
      sum_[r] *= rescale[r];
#pragma unroll
      for (int j = 0; j < 16; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& score = scores[4 * j + 2 * r + e];
          score = Exp2(fmaf(score, scale_log2_, -scaled));
          sum_[r] += score;
        }
      }
    }
  }

  // What the sums are multiplied with in the end.
  __device__ __forceinline__ float Norm(int r) const {
    float sum = sum_[r];
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    return 1.0f / sum;
  }

 private:
  const float scale_log2_;
  float max_[2] = {-INFINITY, -INFINITY};
  float sum_[2] = {0.0f, 0.0f};
};

template <typename T, uint32_t kDim>
class Consumer {
 public:
  __device__ __forceinline__ Consumer(const Params& params, const Tile& tile, Shared<kDim> shared,
                                      uint32_t group)
      : params_(params),
        tile_(tile),
        shared_(shared),
        group_(group),
        softmax_(params.scale_log2),
        queries_(Descriptor(shared.Queries() + group * kGroupRows * kRowBytes, kLeadingUnused)) {}

  __device__ __forceinline__ void Run() {
    const int tiles = static_cast<int>(tile_.KeyTiles());
    // Tiles of which every row of this consumer sees all keys.
    const int seen = static_cast<int>((tile_.position + group_ * kGroupRows + 1) / kKeys);
    if (group_ == 1) ArriveNamed(kTurnBarrier, kConsumers * kWarpgroup);
    First(tiles - 1);
    ZeroUnseenValues();
    int tile = tiles - 2;
    for (; tile >= seen; --tile) Step<true>(tile);
    for (; tile >= 0; --tile) Step<false>(tile);
    Last();
    // The turn that the other consumer passed on last.
    if (group_ == 0) SyncNamed(kTurnBarrier, kConsumers * kWarpgroup);
    Store();
  }

 private:
  static constexpr uint32_t kHalves = kDim / kHalf;

  __device__ __forceinline__ static uint32_t Lane() { return threadIdx.x % kWarp; }
  __device__ __forceinline__ static uint32_t WarpRow() {
    return threadIdx.x % kWarpgroup / kWarp * 16;
  }

  __device__ __forceinline__ static void Release(uint32_t empty) {
    if (Lane() == 0) Arrive(empty);
  }

  // scores of the i-th tile that is taken.
  __device__ __forceinline__ void StartScores(uint32_t i) {
    const uint64_t keys = Descriptor(shared_.Keys(i % kStages), kLeadingUnused);
    FenceProducts();
#pragma unroll
    for (uint32_t k = 0; k < kDim / 16; ++k) {
      const uint32_t step = (k / 4 * kHalfBytes + k % 4 * kSumStepBytes) >> 4;
      MultiplyKeys<T>(scores_, queries_ + step, keys + step, k > 0);
    }
    CommitProducts();
  }

  __device__ __forceinline__ void StartValues(uint32_t i) {
    const uint64_t values = Descriptor(shared_.Values(i % kStages), kHalfBytes);
    FenceProducts();
#pragma unroll
    for (uint32_t k = 0; k < kKeys / 16; ++k) {
      MultiplyValues<T>(out_, weights_ + 4 * k, values + (k * kTokenStepBytes >> 4));
    }
    CommitProducts();
  }

  // Scores of keys behind a row's own position become -inf, also where the keys are none.
  __device__ __forceinline__ void Mask(int tile) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int position = static_cast<int>(tile_.position + group_ * kGroupRows + WarpRow() +
                                            Lane() / 4 + 8 * static_cast<uint32_t>(r));
      const int last = position - tile * static_cast<int>(kKeys) - static_cast<int>(Lane() % 4 * 2);
#pragma unroll
      for (int j = 0; j < 16; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          if (8 * j + e > last) scores_[4 * j + 2 * r + e] = -INFINITY;
        }
      }
    }
  }

  __device__ __forceinline__ void PackWeights() {
#pragma unroll
    for (int i = 0; i < 32; ++i) weights_[i] = Pack<T>(scores_[2 * i], scores_[2 * i + 1]);
  }

  __device__ __forceinline__ void First(int tile) {
    WaitFor(shared_.QueriesFull(), 0);
    WaitFor(shared_.KeysFull(0), 0);
    StartScores(0);
    WaitForProducts<0>();
    KeepBehind(scores_);
    Release(shared_.KeysEmpty(0));
    Mask(tile);
    float rescale[2];
    softmax_.Take(scores_, rescale);
    PackWeights();
  }

  // What lies behind the last key has weight 0, but may be NaN. Only the first tile that is taken
  // can have such rows.
  __device__ __forceinline__ void ZeroUnseenValues() {
    const uint32_t begin = tile_.KeyEnd() % kKeys;
    if (begin == 0) return;
    WaitFor(shared_.ValuesFull(0), 0);
    for (uint32_t half = 0; half < kHalves; ++half) {
      const uint32_t rows = shared_.Values(0) + half * kHalfBytes;
      for (uint32_t at = begin * kRowBytes + (threadIdx.x - kWarpgroup) * 16; at < kHalfBytes;
           at += kConsumers * kWarpgroup * 16) {
        asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(rows + at), "r"(0)
                     : "memory");
      }
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    SyncNamed(kZeroBarrier, kConsumers * kWarpgroup);
  }

  // The scores of the next tile, and the values of the one before.
  template <bool kMasked>
  __device__ __forceinline__ void Step(int tile) {
    const uint32_t i = ++taken_;
    const uint32_t stage = i % kStages;
    const uint32_t before = (i - 1) % kStages;
    WaitFor(shared_.KeysFull(stage), i / kStages & 1);
    SyncNamed(kTurnBarrier + group_, kConsumers * kWarpgroup);
    StartScores(i);
    WaitFor(shared_.ValuesFull(before), (i - 1) / kStages & 1);
    StartValues(i - 1);
    ArriveNamed(kTurnBarrier + (1 - group_), kConsumers * kWarpgroup);

    WaitForProducts<1>();
    KeepBehind(scores_);
    Release(shared_.KeysEmpty(stage));
    if constexpr (kMasked) Mask(tile);
    float rescale[2];
    softmax_.Take(scores_, rescale);

    WaitForProducts<0>();
    KeepBehind(out_);
    Release(shared_.ValuesEmpty(before));
    PackWeights();
#pragma unroll
    for (uint32_t k = 0; k < kDim / 2; ++k) out_[k] *= rescale[k / 2 % 2];
  }

  __device__ __forceinline__ void Last() {
    WaitFor(shared_.ValuesFull(taken_ % kStages), taken_ / kStages & 1);
    StartValues(taken_);
    WaitForProducts<0>();
    KeepBehind(out_);
  }

  // Through shared memory, where the consumer's queries were, so that whole rows are written.
  __device__ __forceinline__ void Store() {
    const float norms[2] = {softmax_.Norm(0), softmax_.Norm(1)};
    const uint32_t rows = shared_.Queries() + (group_ * kGroupRows + WarpRow()) * kRowBytes;
    SyncNamed(kStoreBarrier + group_, kWarpgroup);
#pragma unroll
    for (uint32_t i = 0; i < kDim / 4; ++i) {
      const uint32_t j = i / 2;
      const uint32_t row = Lane() / 4 + i % 2 * 8;
      const uint32_t at = rows + j / 8 * kHalfBytes + row * kRowBytes + ((j ^ row) % 8) * 16;
      asm volatile("st.shared.b32 [%0], %1;" ::"r"(at + Lane() % 4 * 4),
                   "r"(Pack<T>(out_[2 * i] * norms[i % 2], out_[2 * i + 1] * norms[i % 2]))
                   : "memory");
    }
    __syncwarp();
    constexpr uint32_t kChunks = kDim / 8;  // Of 16 bytes, of a row.
    const uint32_t chunk = Lane() % kChunks;
#pragma unroll
    for (uint32_t row = Lane() / kChunks; row < 16; row += kWarp / kChunks) {
      const uint32_t tile_row = group_ * kGroupRows + WarpRow() + row;
      if (tile_row >= tile_.rows) break;
      uint4 x;
      asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                   : "r"(rows + chunk / 8 * kHalfBytes + row * kRowBytes + ((chunk ^ row) % 8) * 16)
                   : "memory");
      const size_t out_row = static_cast<size_t>(tile_.row + tile_row) * params_.heads + blockIdx.x;
      static_cast<uint4*>(params_.out)[out_row * kChunks + chunk] = x;
    }
  }

  const Params& params_;
  const Tile& tile_;
  const Shared<kDim> shared_;
  const uint32_t group_;
  Softmax softmax_;
  const uint64_t queries_;
  uint32_t taken_ = 0;  // Tiles whose scores were computed, less 1.
  float scores_[64];
  float out_[kDim / 2] = {};
  uint32_t weights_[32];
};

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

// Grid: heads; tiles of queries.
template <typename T, uint32_t kDim>
__global__ void __launch_bounds__(kThreads, 1)
    AttentionKernel(const __grid_constant__ Params params) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ uint8_t memory[];
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(memory));
  const Shared<kDim> shared{(address + kSwizzleBytes - 1) / kSwizzleBytes * kSwizzleBytes};
  if (threadIdx.x == 0) {
    PrefetchMap(params.q);
    PrefetchMap(params.pages);
    InitBarrier(shared.QueriesFull(), 1);
    for (uint32_t stage = 0; stage < kStages; ++stage) {
      InitBarrier(shared.KeysFull(stage), 1);
      InitBarrier(shared.ValuesFull(stage), 1);
      // One lane of each warp of the consumers.
      InitBarrier(shared.KeysEmpty(stage), kConsumers * kWarpgroup / kWarp);
      InitBarrier(shared.ValuesEmpty(stage), kConsumers * kWarpgroup / kWarp);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  WaitForPrevious();
  LetNextStart();
  const Tile tile = FindTile(params.table, blockIdx.y);
  if (tile.rows == 0) return;
  __syncthreads();
  // Through a shuffle, so that the compiler knows it to be the same in the whole warp.
  const uint32_t group = __shfl_sync(~0u, threadIdx.x / kWarpgroup, 0);
  if (group == 0) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kProducerRegisters));
    if (threadIdx.x < kWarp) Producer<kDim>(params, tile, shared).Run();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kConsumerRegisters));
    Consumer<T, kDim>(params, tile, shared, group - 1).Run();
  }
#endif
}

// ---- Host ----

// The driver's encoder of tensor maps, looked up so that nothing links the driver.
PFN_cuTensorMapEncodeTiled_v12000 Encoder() {
  static const PFN_cuTensorMapEncodeTiled_v12000 encoder = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                               12000, cudaEnableDefault, &found);
    if (error != cudaSuccess || found != cudaDriverEntryPointSuccess) function = nullptr;
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
  }();
  return encoder;
}

// dims: the innermost first. strides: bytes, of all but the innermost. box: what a copy brings.
template <uint32_t kRank>
cudaError_t EncodeMap(DType type, const void* data, const cuuint64_t (&dims)[kRank],
                      const cuuint64_t (&strides)[kRank - 1], const cuuint32_t (&box)[kRank],
                      CUtensorMap* map) {
  if (Encoder() == nullptr) return cudaErrorNotSupported;
  cuuint32_t steps[kRank];
  for (cuuint32_t& step : steps) step = 1;
  const CUresult result = Encoder()(
      map, type == DType::kF16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
      kRank, const_cast<void*>(data), dims, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t FillParams(const AttentionArgs& args, Params* params) {
  const DevicePages& pages = args.pages;
  const cuuint64_t row_bytes = pages.head_dim * DTypeBytes(args.type);
  const cudaError_t error =
      EncodeMap<3>(args.type, args.q, {pages.head_dim, args.heads, args.table.rows},
                   {row_bytes, row_bytes * args.heads}, {kHalf, 1, kRows}, &params->q);
  if (error != cudaSuccess) return error;
  params->out = args.out;
  params->table = args.table;
  params->heads = args.heads;
  params->kv_heads = pages.kv_heads;
  while ((1u << params->block_shift) < pages.block_tokens) ++params->block_shift;
  params->scale_log2 = args.scale * 1.4426950408889634f;  // log2(e)
  return EncodeMap<4>(args.type, pages.data,
                      {pages.head_dim, pages.block_tokens, 2 * pages.kv_heads, kBlockCountMax},
                      {row_bytes, row_bytes * pages.block_tokens, pages.block_bytes},
                      {kHalf, pages.block_tokens, 1, 1}, &params->pages);
}

template <typename T, uint32_t kDim>
cudaError_t Start(const Launch& launch, const AttentionArgs& args) {
  constexpr uint32_t kBytes = Shared<kDim>::kBytes;
  // Once per GPU: a thread computes on one.
  static thread_local const cudaError_t allowed = cudaFuncSetAttribute(
      AttentionKernel<T, kDim>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (allowed != cudaSuccess) return allowed;
  Params params;
  const cudaError_t error = FillParams(args, &params);
  if (error != cudaSuccess) return error;
  // Each sequence has at most one tile that is not full.
  const uint32_t tiles = args.table.rows / kRows + args.table.count;
  return StartKernel(AttentionKernel<T, kDim>, dim3(args.heads, tiles), dim3(kThreads), kBytes,
                     launch, params);
}

bool IsAligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

}  // namespace

bool PrefillAttentionSm90Fits(const Launch& launch, const AttentionArgs& args) {
  const DevicePages& pages = args.pages;
  const size_t plane_bytes =
      size_t{pages.block_tokens} * pages.head_dim * DTypeBytes(pages.dtype);  // Of a KV head.
  const bool tokens_fit = pages.block_tokens >= 16 && pages.block_tokens <= kKeys &&
                          (pages.block_tokens & (pages.block_tokens - 1)) == 0;
  return launch.compute_capability == 90 &&
         (args.type == DType::kBF16 || args.type == DType::kF16) && pages.dtype == args.type &&
         (pages.head_dim == 64 || pages.head_dim == 128) && tokens_fit && pages.kv_heads > 0 &&
         args.heads % pages.kv_heads == 0 && args.window == 0 && args.soft_cap == 0.0f &&
         args.scale > 0.0f && pages.block_bytes % plane_bytes == 0 && IsAligned(args.q) &&
         IsAligned(args.out) && IsAligned(pages.data);
}

cudaError_t PrefillAttentionSm90(const Launch& launch, const AttentionArgs& args) {
  if (!PrefillAttentionSm90Fits(launch, args)) return cudaErrorInvalidValue;
  if (args.table.rows == 0 || args.table.count == 0 || args.heads == 0) return cudaSuccess;
  const bool half = args.type == DType::kF16;
  if (args.pages.head_dim == 64) {
    return half ? Start<__half, 64>(launch, args) : Start<__nv_bfloat16, 64>(launch, args);
  }
  return half ? Start<__half, 128>(launch, args) : Start<__nv_bfloat16, 128>(launch, args);
}

}  // namespace baton::cuda
