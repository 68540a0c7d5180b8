// x weight^T for few rows of x: as fast as the weights can be read.
//
// A block of threads computes 16 or 32 outputs for all rows of x. Its eight warps take chunks of
// 128 bytes of the weights' rows in turn and are summed at the end, in order. The products run on
// tensor cores (mma.sync m16n8k16): weights are the 16 rows, rows of x the 8 columns. Operands come
// straight from memory in loads of 16 bytes: a sum does not change when its terms are taken in
// another order, so a thread (g = lane / 4, c = lane % 4) may take neighbouring elements of row g
// where the instruction's layout wants them apart, if it does so on both sides.
//
// Weights do not depend on earlier kernels: the first are on their way before the wait. What an
// output becomes depends on its inputs alone, not on the number of rows.
#include <algorithm>
#include <type_traits>

#include "common/kernels/cuda/device_code.cuh"
#include "common/kernels/cuda/tensor_cores.cuh"

namespace baton::cuda {
namespace {

constexpr uint32_t kWarps = 8;
constexpr uint32_t kChunkBytes = 128;  // Of each row of the weights, that a warp takes at a time.
constexpr uint32_t kRowsMax = 64;
constexpr uint32_t kTileOutputs = 16;
constexpr uint32_t kColumnStride = 20;  // Floats; so that 32 lanes meet 32 banks.

struct Outputs {
  SkinnyOutput outputs[kSkinnyOutputsMax];
  uint32_t first_block[kSkinnyOutputsMax + 1];  // Of each; those that are not there have none.
};

template <typename W, typename T>
__device__ uint2 Widen(uint32_t bytes, T) {
  if constexpr (std::is_same_v<W, Fp8>) {
    return WidenE4m3(bytes, T{});
  } else {
    return WidenBytes(bytes, T{});
  }
}

// Weights of four k for rows g and g + 8, as the instruction wants them: word `i` of 16 bytes for
// 8 bits, words 2 i and 2 i + 1 for T.
template <typename T, typename W>
__device__ void Operand(const uint4& low, const uint4& high, uint32_t i, uint32_t (&a)[4]) {
  if constexpr (sizeof(W) == 1) {
    const uint2 first = Widen<W>(Word(low, i), T{});
    const uint2 second = Widen<W>(Word(high, i), T{});
    a[0] = first.x, a[1] = second.x, a[2] = first.y, a[3] = second.y;
  } else {
    a[0] = Word(low, 2 * i), a[1] = Word(high, 2 * i);
    a[2] = Word(low, 2 * i + 1), a[3] = Word(high, 2 * i + 1);
  }
}

template <typename T, typename W, uint32_t kColumnTiles>
struct Shape {
  static constexpr uint32_t kTiles = kColumnTiles == 1 ? 1 : 2;  // Of outputs.
  static constexpr uint32_t kStages = 2;
  static constexpr uint32_t kChunk = kChunkBytes / sizeof(W);  // Elements.
  static constexpr uint32_t kLoadElements = 16 / sizeof(W);    // Of one load of weights.
  static constexpr uint32_t kLoadSteps = kLoadElements / 4;    // Instructions that it serves.
  static constexpr uint32_t kXLoads = kLoadElements * sizeof(T) / 16;
  // Pointers to the rows of x would be the registers too many.
  static constexpr bool kRowsByIndex = kColumnTiles == 8 && kXLoads > 1;
  static constexpr uint32_t kBlockOutputs = kTiles * kTileOutputs;
};

template <typename T, typename W, uint32_t kColumnTiles>
class Warp {
 public:
  using S = Shape<T, W, kColumnTiles>;

  // row_of(i): the row of x that is the i-th.
  template <typename RowOf>
  __device__ Warp(const W* weight, uint32_t outputs, uint32_t first_output, const T* x,
                  uint32_t rows, uint32_t inputs, const RowOf& row_of)
      : chunks_(inputs / S::kChunk), next_(threadIdx.x / kWarp), x_(x) {
    const uint32_t g = threadIdx.x % kWarp / 4;
    const uint32_t c = threadIdx.x % 4;
#pragma unroll
    for (uint32_t i = 0; i < 2 * S::kTiles; ++i) {
      const uint32_t output = min(first_output + 8 * i + g, outputs - 1);
      weights_[i] =
          reinterpret_cast<const std::byte*>(weight + static_cast<size_t>(output) * inputs) +
          16 * c;
    }
#pragma unroll
    for (uint32_t i = 0; i < kColumnTiles; ++i) {
      const uint32_t row = row_of(min(8 * i + g, rows - 1));
      if constexpr (S::kRowsByIndex) {
        rows_[i] = row * inputs + c * S::kLoadElements;
      } else {
        rows_[i] = x + static_cast<size_t>(row) * inputs + c * S::kLoadElements;
      }
    }
  }

  // The first weights.
  __device__ void Begin() {
#pragma unroll
    for (uint32_t stage = 0; stage < S::kStages; ++stage) Load(stage, next_ + stage * kWarps);
  }

  __device__ void Run() {
    while (next_ < chunks_) {
#pragma unroll
      for (uint32_t stage = 0; stage < S::kStages; ++stage) {
        if (next_ < chunks_) {
          Take(stage, next_);
          Load(stage, next_ + S::kStages * kWarps);
          next_ += kWarps;
        }
      }
    }
  }

  float sums[S::kTiles][kColumnTiles][4] = {};

 private:
  __device__ void Load(uint32_t stage, uint32_t chunk) {
    if (chunk >= chunks_) return;
#pragma unroll
    for (uint32_t i = 0; i < 2 * S::kTiles; ++i) {
#pragma unroll
      for (uint32_t j = 0; j < 2; ++j) {
        stages_[stage][i][j] =
            LoadOnceOfLine(weights_[i] + static_cast<size_t>(chunk) * kChunkBytes + 64 * j);
      }
    }
  }

  __device__ const T* RowAt(uint32_t column, uint32_t chunk) const {
    if constexpr (S::kRowsByIndex) {
      return x_ + (rows_[column] + chunk * S::kChunk);
    } else {
      return rows_[column] + static_cast<size_t>(chunk) * S::kChunk;
    }
  }

  __device__ void Take(uint32_t stage, uint32_t chunk) {
#pragma unroll
    for (uint32_t j = 0; j < 2; ++j) {
      uint4 x[kColumnTiles][S::kXLoads];
#pragma unroll
      for (uint32_t column = 0; column < kColumnTiles; ++column) {
        const T* const from = RowAt(column, chunk) + j * 4 * S::kLoadElements;
#pragma unroll
        for (uint32_t i = 0; i < S::kXLoads; ++i) {
          x[column][i] = reinterpret_cast<const uint4*>(from)[i];
        }
      }
#pragma unroll
      for (uint32_t step = 0; step < S::kLoadSteps; ++step) {
#pragma unroll
        for (uint32_t tile = 0; tile < S::kTiles; ++tile) {
          uint32_t a[4];
          Operand<T, W>(stages_[stage][2 * tile][j], stages_[stage][2 * tile + 1][j], step, a);
#pragma unroll
          for (uint32_t column = 0; column < kColumnTiles; ++column) {
            MultiplyAdd(sums[tile][column], a, Word(x[column][step / 2], step % 2 * 2),
                        Word(x[column][step / 2], step % 2 * 2 + 1), T{});
          }
        }
      }
    }
  }

  const uint32_t chunks_;
  uint32_t next_;
  const std::byte* weights_[2 * S::kTiles];
  const T* const x_;
  std::conditional_t<S::kRowsByIndex, uint32_t, const T*> rows_[kColumnTiles];  // Of x.
  uint4 stages_[S::kStages][2 * S::kTiles][2];
};

// Adds up what the warps of a block have found and writes it, to rows of `out` from the first on.
template <typename T, typename W, uint32_t kColumnTiles, typename Out>
__device__ void WriteSums(const Warp<T, W, kColumnTiles>& warp, const SkinnyOutput& output,
                          uint32_t first_output, uint32_t rows, Out* out) {
  using S = Shape<T, W, kColumnTiles>;
  __shared__ float shared[kWarps][kColumnTiles * 8][kColumnStride];
  const uint32_t g = threadIdx.x % kWarp / 4;
  const uint32_t c = threadIdx.x % 4;
#pragma unroll
  for (uint32_t tile = 0; tile < S::kTiles; ++tile) {
    __syncthreads();
#pragma unroll
    for (uint32_t column = 0; column < kColumnTiles; ++column) {
      float(&to)[kColumnTiles * 8][kColumnStride] = shared[threadIdx.x / kWarp];
      to[8 * column + 2 * c][g] = warp.sums[tile][column][0];
      to[8 * column + 2 * c + 1][g] = warp.sums[tile][column][1];
      to[8 * column + 2 * c][g + 8] = warp.sums[tile][column][2];
      to[8 * column + 2 * c + 1][g + 8] = warp.sums[tile][column][3];
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < rows * kTileOutputs; i += blockDim.x) {
      const uint32_t row = i / kTileOutputs;
      const uint32_t column = first_output + tile * kTileOutputs + i % kTileOutputs;
      if (column >= output.outputs) continue;
      float sum = 0.0f;
#pragma unroll
      for (uint32_t w = 0; w < kWarps; ++w) sum += shared[w][row][i % kTileOutputs];
      if constexpr (std::is_same_v<W, Fp8>) sum *= E4m3Shrink(T{});
      if constexpr (sizeof(W) == 1) sum *= output.scales[column];
      if (output.bias != nullptr) sum += ToFloat(static_cast<const Out*>(output.bias)[column]);
      out[static_cast<size_t>(row) * output.outputs + column] = FromFloat<Out>(sum);
    }
  }
}

constexpr int BlocksAtOnce(uint32_t column_tiles) {
  return column_tiles == 1 ? 3 : column_tiles == 2 ? 2 : 1;
}

template <typename T, typename W, uint32_t kColumnTiles, typename Out>
__global__ void __launch_bounds__(kWarps* kWarp, BlocksAtOnce(kColumnTiles))
    SkinnyKernel(Outputs outputs, const T* x, uint32_t rows, uint32_t inputs) {
  using S = Shape<T, W, kColumnTiles>;
  uint32_t index = 0;
  while (blockIdx.x >= outputs.first_block[index + 1]) ++index;
  const SkinnyOutput output = outputs.outputs[index];
  const uint32_t first_output = (blockIdx.x - outputs.first_block[index]) * S::kBlockOutputs;
  Warp<T, W, kColumnTiles> warp(static_cast<const W*>(output.weight), output.outputs, first_output,
                                x, rows, inputs, [](uint32_t row) { return row; });
  LetNextStart();
  warp.Begin();
  WaitForPrevious();
  warp.Run();
  WriteSums(warp, output, first_output, rows, static_cast<Out*>(output.out));
}

// Grid: blocks of outputs, for each of an expert's products; groups. Whose weights are wanted is
// not known before the wait. An expert with more rows than fit at once reads its weights again, and
// the second time from the cache.
template <typename T, typename W, uint32_t kColumnTiles>
__global__ void __launch_bounds__(kWarps* kWarp, BlocksAtOnce(kColumnTiles))
    RoutedKernel(const __grid_constant__ RoutedProducts products, uint32_t blocks_each,
                 const T* x) {
  using S = Shape<T, W, kColumnTiles>;
  WaitForPrevious();
  LetNextStart();
  const RoutedGroup group = products.tables.groups[blockIdx.y];
  const uint32_t index = blockIdx.x / blocks_each;
  const SkinnyOutput output = products.experts[group.expert * products.each + index];
  const uint32_t first_output = blockIdx.x % blocks_each * S::kBlockOutputs;
  const uint32_t end = group.row + group.rows;
  for (uint32_t begin = group.row; begin < end; begin += 8 * kColumnTiles) {
    const uint32_t rows = min(end - begin, 8 * kColumnTiles);
    Warp<T, W, kColumnTiles> warp(
        static_cast<const W*>(output.weight), output.outputs, first_output, x, rows,
        products.inputs, [&](uint32_t row) {
          return products.by_token ? products.tables.row_tokens[begin + row] : begin + row;
        });
    warp.Begin();
    warp.Run();
    WriteSums(warp, output, first_output, rows,
              static_cast<T*>(products.out[index]) + static_cast<size_t>(begin) * output.outputs);
  }
}

template <typename T, typename W, uint32_t kColumnTiles>
cudaError_t StartRouted(const Launch& launch, const T* x, const RoutedProducts& products) {
  constexpr uint32_t kEach = Shape<T, W, kColumnTiles>::kBlockOutputs;
  const uint32_t blocks_each = (products.outputs + kEach - 1) / kEach;
  return StartKernel(RoutedKernel<T, W, kColumnTiles>,
                     dim3(products.each * blocks_each, RoutedGroupsMax(products.shape)),
                     dim3(kWarps * kWarp), 0, launch, products, blocks_each, x);
}

// Room for twice the rows that an expert has on average, and never for more than it can have.
template <typename T, typename W>
cudaError_t StartRoutedOf(const Launch& launch, const T* x, const RoutedProducts& products) {
  const RoutingShape& shape = products.shape;
  const uint32_t rows = std::min(shape.tokens, 2 * shape.tokens * shape.per_token / shape.experts);
  if (rows <= 8) return StartRouted<T, W, 1>(launch, x, products);
  if (rows <= 16) return StartRouted<T, W, 2>(launch, x, products);
  return StartRouted<T, W, 4>(launch, x, products);
}

template <typename T>
cudaError_t StartRoutedFor(const Launch& launch, const void* x, DType weight_type,
                           const RoutedProducts& products) {
  const auto* const from = static_cast<const T*>(x);
  if (weight_type == DType::kI8) return StartRoutedOf<T, int8_t>(launch, from, products);
  if (weight_type == DType::kFp8) return StartRoutedOf<T, Fp8>(launch, from, products);
  return StartRoutedOf<T, T>(launch, from, products);
}

template <typename T, typename W, uint32_t kColumnTiles, typename Out>
cudaError_t Start(const Launch& launch, const T* x, uint32_t rows, uint32_t inputs,
                  const SkinnyOutput* wanted, uint32_t count) {
  Outputs outputs = {};
  uint32_t blocks = 0;
  for (uint32_t i = 0; i < kSkinnyOutputsMax; ++i) {
    outputs.first_block[i] = blocks;
    if (i >= count) continue;
    outputs.outputs[i] = wanted[i];
    constexpr uint32_t kEach = Shape<T, W, kColumnTiles>::kBlockOutputs;
    blocks += (wanted[i].outputs + kEach - 1) / kEach;
  }
  outputs.first_block[kSkinnyOutputsMax] = blocks;
  if (blocks == 0 || rows == 0) return cudaSuccess;
  return StartKernel(SkinnyKernel<T, W, kColumnTiles, Out>, dim3(blocks), dim3(kWarps * kWarp), 0,
                     launch, outputs, x, rows, inputs);
}

template <typename T, typename W, typename Out>
cudaError_t StartOf(const Launch& launch, const T* x, uint32_t rows, uint32_t inputs,
                    const SkinnyOutput* outputs, uint32_t count) {
  if (rows <= 8) return Start<T, W, 1, Out>(launch, x, rows, inputs, outputs, count);
  if (rows <= 16) return Start<T, W, 2, Out>(launch, x, rows, inputs, outputs, count);
  if (rows <= 32) return Start<T, W, 4, Out>(launch, x, rows, inputs, outputs, count);
  return Start<T, W, 8, Out>(launch, x, rows, inputs, outputs, count);
}

template <typename T>
cudaError_t StartFor(const Launch& launch, const void* x, uint32_t rows, uint32_t inputs,
                     DType weight_type, const SkinnyOutput* outputs, uint32_t count,
                     DType out_type) {
  const auto* const from = static_cast<const T*>(x);
  if (weight_type == DType::kI8) {
    return out_type == DType::kF32
               ? StartOf<T, int8_t, float>(launch, from, rows, inputs, outputs, count)
               : StartOf<T, int8_t, T>(launch, from, rows, inputs, outputs, count);
  }
  if (weight_type == DType::kFp8) {
    return out_type == DType::kF32
               ? StartOf<T, Fp8, float>(launch, from, rows, inputs, outputs, count)
               : StartOf<T, Fp8, T>(launch, from, rows, inputs, outputs, count);
  }
  return out_type == DType::kF32 ? StartOf<T, T, float>(launch, from, rows, inputs, outputs, count)
                                 : StartOf<T, T, T>(launch, from, rows, inputs, outputs, count);
}

// One block for a row. kFour: rows are aligned for loads of four numbers.
template <typename T, bool kFour>
__global__ void DequantizeKernel(const std::byte* weight, bool fp8, const float* scales,
                                 uint32_t inputs, T* out) {
  WaitForPrevious();
  LetNextStart();
  constexpr uint32_t kEach = kFour ? 4 : 1;
  const size_t row = static_cast<size_t>(blockIdx.x) * inputs;
  const float scale = scales[blockIdx.x];
  for (uint32_t i = threadIdx.x * kEach; i < inputs; i += blockDim.x * kEach) {
    uint8_t bytes[kEach];
    memcpy(bytes, __builtin_assume_aligned(weight + row + i, kEach), kEach);
#pragma unroll
    for (uint32_t j = 0; j < kEach; ++j) {
      const float number =
          fp8 ? E4m3ToFloat(bytes[j]) : static_cast<float>(static_cast<int8_t>(bytes[j]));
      out[row + i + j] = FromFloat<T>(number * scale);
    }
  }
}

}  // namespace

bool SkinnyLinearFits(DType x_type, DType weight_type, uint32_t rows, uint32_t inputs) {
  const bool types = (x_type == DType::kBF16 || x_type == DType::kF16) &&
                     (weight_type == x_type || HasScales(weight_type));
  // Whole chunks.
  return types && rows <= kRowsMax && inputs > 0 &&
         inputs * DTypeBytes(weight_type) % kChunkBytes == 0;
}

cudaError_t SkinnyLinear(const Launch& launch, const void* x, DType x_type, uint32_t rows,
                         uint32_t inputs, DType weight_type, const SkinnyOutput* outputs,
                         uint32_t output_count, DType out_type) {
  if (!SkinnyLinearFits(x_type, weight_type, rows, inputs) || output_count > kSkinnyOutputsMax ||
      (out_type != x_type && out_type != DType::kF32)) {
    return cudaErrorInvalidValue;
  }
  return x_type == DType::kBF16 ? StartFor<__nv_bfloat16>(launch, x, rows, inputs, weight_type,
                                                          outputs, output_count, out_type)
                                : StartFor<__half>(launch, x, rows, inputs, weight_type, outputs,
                                                   output_count, out_type);
}

cudaError_t RoutedLinear(const Launch& launch, const void* x, DType x_type, DType weight_type,
                         const RoutedProducts& products) {
  if (!SkinnyLinearFits(x_type, weight_type, products.shape.tokens, products.inputs) ||
      products.each > kSkinnyOutputsMax) {
    return cudaErrorInvalidValue;
  }
  if (products.shape.tokens == 0 || products.outputs == 0 || products.each == 0) return cudaSuccess;
  return x_type == DType::kBF16 ? StartRoutedFor<__nv_bfloat16>(launch, x, weight_type, products)
                                : StartRoutedFor<__half>(launch, x, weight_type, products);
}

cudaError_t Dequantize(const Launch& launch, const std::byte* weight, DType weight_type,
                       const float* scales, uint32_t outputs, uint32_t inputs, void* out,
                       DType out_type) {
  if (outputs == 0) return cudaSuccess;
  return WithActivationType(out_type, [&](auto sample) {
    using T = decltype(sample);
    const auto kernel = inputs % 4 == 0 ? DequantizeKernel<T, true> : DequantizeKernel<T, false>;
    return StartKernel(kernel, dim3(outputs), dim3(256), 0, launch, weight,
                       weight_type == DType::kFp8, scales, inputs, static_cast<T*>(out));
  });
}

}  // namespace baton::cuda
