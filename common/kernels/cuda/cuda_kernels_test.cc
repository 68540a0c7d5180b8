// Goal: each operation on the GPU computes what its CPU twin computes. Method: the same random
// inputs, rounded to the type of activations, through both tables of kernels.h.
//
// The tolerance of a result of magnitude m is m times the rounding of its type (half the distance
// of neighbours: 2^-8 for bfloat16, 2^-11 for float16) plus what float32 loses on the way: 2^-22
// for each operation of a short chain, sqrt(n) 2^-22 for sums over n. Tests give the number of
// roundings.
#include "common/kernels/cuda/cuda_kernels.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "common/device/cuda/cuda_device.h"
#include "common/kernels/cuda/launch.h"
#include "common/kernels/cuda/testing/gpu.h"
#include "common/kernels/kernels.h"

namespace baton::cuda {
namespace {

using Floats = std::vector<float>;

float Rounding(DType type) {
  switch (type) {
    case DType::kBF16:
      return 0x1p-8f;
    case DType::kF16:
      return 0x1p-11f;
    case DType::kF32:
      return 0x1p-24f;
    case DType::kI8:
    case DType::kFp8:
      break;
  }
  return 0.5f;
}

Floats Rounded(const Floats& values, DType type) { return Decode(Encode(values, type), type); }

Floats Random(size_t count, uint32_t seed, float deviation = 1.0f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  Floats values(count);
  for (float& value : values) value = normal(random);
  return values;
}

void ExpectNear(const Floats& ours, const Floats& twin, float relative, float absolute) {
  ASSERT_EQ(ours.size(), twin.size());
  for (size_t i = 0; i < ours.size(); ++i) {
    const float tolerance = std::abs(twin[i]) * relative + absolute;
    ASSERT_TRUE(std::abs(ours[i] - twin[i]) <= tolerance)  // False for NaN.
        << "at " << i << ": " << ours[i] << " instead of " << twin[i] << " +- " << tolerance;
  }
}

// Rows of 8 bits with a scale: a number may be one off where the other side rounds the other way.
void ExpectScaledRowsNear(DType type, const std::vector<std::byte>& ours,
                          const std::vector<std::byte>& twin, size_t head_dim) {
  for (size_t row = 0; row < ours.size(); row += head_dim + sizeof(float)) {
    float scales[2];
    std::memcpy(&scales[0], &ours[row + head_dim], sizeof(float));
    std::memcpy(&scales[1], &twin[row + head_dim], sizeof(float));
    ASSERT_NEAR(scales[0], scales[1], scales[1] * 0x1p-7f);
    for (size_t i = 0; i < head_dim; ++i) {
      if (type == DType::kFp8) {
        const float a = E4m3ToF32(std::to_integer<uint8_t>(ours[row + i]));
        const float b = E4m3ToF32(std::to_integer<uint8_t>(twin[row + i]));
        // The next number is an eighth away at most, or the smallest one.
        ASSERT_NEAR(a, b, std::abs(b) / 8 + 0x1p-9f) << "row " << row << " number " << i;
        continue;
      }
      const auto a = static_cast<int8_t>(ours[row + i]);
      const auto b = static_cast<int8_t>(twin[row + i]);
      ASSERT_LE(std::abs(a - b), 2) << "row " << row << " number " << i;
    }
  }
}

struct AttentionShape {
  uint32_t heads = 8;
  uint32_t kv_heads = 2;
  uint32_t head_dim = 128;
  uint32_t block_tokens = 16;
  AttentionOptions options = {};
};

// One operation on both devices: tensors of the CPU are float32, those of the GPU of `type`.
class CudaKernelsTest : public testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    SKIP_WITHOUT_GPU();
    gpu_ = CudaDevice::Open("cuda", &CudaKernels()).value();
    // Operations have to ask for more scratch memory, or to do with what there is.
    ours_ = KernelContext::Create({.device = gpu_.get(), .activations = type(), .scratch_bytes = 1})
                .value();
    twin_ = KernelContext::Create({}).value();
  }

  DType type() const { return GetParam(); }

  // A tensor on both sides.
  struct Both {
    DeviceMemory memory;
    TensorView ours;
    Floats values;
    TensorView twin;
  };
  Both Make(const Floats& values, DType dtype, std::initializer_list<size_t> shape) {
    Both both;
    const std::vector<std::byte> bytes = Encode(values, dtype);
    both.memory = gpu_->Allocate(bytes.size()).value();
    BATON_CHECK(gpu_->CopyFromHost(both.memory.data(), bytes.data(), bytes.size()).ok());
    both.ours = TensorView(both.memory.data(), dtype, DeviceKind::kCuda, shape);
    both.values = Decode(bytes, dtype);
    both.twin = TensorView(reinterpret_cast<std::byte*>(both.values.data()), DType::kF32,
                           DeviceKind::kCpu, shape);
    return both;
  }
  Both Activations(size_t rows, size_t columns, uint32_t seed, float deviation = 1.0f) {
    return Make(Random(rows * columns, seed, deviation), type(), {rows, columns});
  }
  Floats Read(const TensorView& view) {
    std::vector<std::byte> bytes(view.bytes());
    BATON_CHECK(gpu_->CopyToHost(bytes.data(), view.data(), bytes.size()).ok());
    return Decode(bytes, view.dtype());
  }
  void ExpectTwins(const Both& both, float relative, float absolute) {
    ExpectNear(Read(both.ours), both.values, relative, absolute);
  }

  // Sequences of one token and of many, at several positions, over one cache.
  void ExpectSameAttention(const AttentionShape& shape, DType cache_type) {
    SCOPED_TRACE(testing::Message() << shape.heads << "/" << shape.kv_heads << " heads of "
                                    << shape.head_dim << ", cache " << DTypeName(cache_type));
    constexpr uint32_t kCounts[] = {1, 1, 130, 1, 5, 1, 64};
    constexpr uint32_t kPositions[] = {0, 17, 0, 1000, 300, 3000, 15};
    const uint32_t blocks_each = (3072 + shape.block_tokens - 1) / shape.block_tokens;
    std::vector<BlockId> ids;
    for (uint32_t i = 0; i < 7 * blocks_each; ++i) ids.push_back(BlockId{i});
    std::shuffle(ids.begin(), ids.end(), std::mt19937(5));
    std::vector<SequenceRows> rows;
    uint32_t next = 0;
    for (uint32_t i = 0; i < 7; ++i) {
      const auto blocks = std::span<const BlockId>(ids).subspan(i * blocks_each, blocks_each);
      rows.push_back(
          {.row = next, .count = kCounts[i], .position = kPositions[i], .blocks = blocks});
      next += kCounts[i];
    }
    const size_t block_bytes =
        2 * shape.kv_heads * shape.block_tokens * KvRowBytes(cache_type, shape.head_dim);
    std::vector<std::byte> cache(ids.size() * block_bytes);
    KvPages pages = {.data = cache.data(),
                     .block_bytes = block_bytes,
                     .dtype = cache_type,
                     .kv_heads = shape.kv_heads,
                     .head_dim = shape.head_dim,
                     .block_tokens = shape.block_tokens};
    FillCache(rows, pages);
    const DeviceMemory copy = gpu_->Allocate(cache.size()).value();
    ASSERT_TRUE(gpu_->CopyFromHost(copy.data(), cache.data(), cache.size()).ok());
    const Both q = Activations(next, shape.heads * shape.head_dim, 40);
    const Both out = Activations(next, shape.heads * shape.head_dim, 41);
    AttentionOptions options = shape.options;
    options.scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
    const auto heads = [&](const TensorView& view) {
      return view.Reshaped({next, shape.heads, shape.head_dim});
    };

    Attention(*twin_, heads(q.twin), pages, rows_of(rows), options, heads(out.twin));
    pages.data = copy.data();
    Attention(*ours_, heads(q.ours), pages, rows_of(rows), options, heads(out.ours));

    // A score of a longer head has so many more roundings in float32.
    const float of_sums = 2e-6f * std::max(1.0f, static_cast<float>(shape.head_dim) / 128.0f);
    ExpectTwins(out, 2 * Rounding(type()), 4 * Rounding(type()) + of_sums);
  }
  static std::span<const SequenceRows> rows_of(const std::vector<SequenceRows>& rows) {
    return rows;
  }
  // K and V of all positions of all sequences; behind their ends NaN.
  void FillCache(const std::vector<SequenceRows>& rows, const KvPages& pages) {
    for (const SequenceRows& sequence : rows) {
      const uint32_t end = sequence.position + sequence.count;
      for (BlockId block : sequence.blocks) {
        std::memset(pages.data + Raw(block) * pages.block_bytes, 0xff, pages.block_bytes);
      }
      Floats k = Random(size_t{end} * pages.kv_heads * pages.head_dim, 50 + end);
      Floats v = Random(size_t{end} * pages.kv_heads * pages.head_dim, 51 + end);
      const SequenceRows whole = {.row = 0, .count = end, .position = 0, .blocks = sequence.blocks};
      const auto view = [&](Floats& values) {
        return TensorView(reinterpret_cast<std::byte*>(values.data()), DType::kF32,
                          DeviceKind::kCpu, {end, pages.kv_heads, pages.head_dim});
      };
      baton::WriteKv(*twin_, view(k), view(v), std::span(&whole, 1), pages);
    }
  }

  std::unique_ptr<CudaDevice> gpu_;
  std::unique_ptr<KernelContext> ours_;
  std::unique_ptr<KernelContext> twin_;
};

TEST_P(CudaKernelsTest, EmbeddingIsExact) {
  const Both table = Make(Random(50 * 67, 1), type(), {50, 67});
  const std::vector<TokenId> ids = {TokenId{3}, TokenId{49}, TokenId{0}, TokenId{3}};
  const Both out = Make(Floats(4 * 67, 7.0f), DType::kF32, {4, 67});

  Embedding(*ours_, table.ours, ids, out.ours);
  Embedding(*twin_, table.twin, ids, out.twin);

  EXPECT_EQ(Read(out.ours), out.values);
}

TEST_P(CudaKernelsTest, RmsNormOfLongAndShortRows) {
  for (size_t n : {4096u, 896u, 1023u, 128u, 67u}) {
    const Both x = Make(Random(5 * n, 2), DType::kF32, {5, n});
    const Both weight = Make(Random(n, 3), DType::kF32, {n});
    const Both out = Activations(5, n, 4);

    RmsNorm(*ours_, x.ours, weight.ours, 1e-5f, out.ours);
    RmsNorm(*twin_, x.twin, weight.twin, 1e-5f, out.twin);

    ExpectTwins(out, Rounding(type()) + 0x1p-18f, 1e-6f);
  }
}

TEST_P(CudaKernelsTest, RmsNormOfHeadsInPlace) {
  const Both x = Activations(40, 128, 5);
  const Both weight = Make(Random(128, 6), DType::kF32, {128});

  RmsNorm(*ours_, x.ours, weight.ours, 1e-6f, x.ours);
  RmsNorm(*twin_, x.twin, weight.twin, 1e-6f, x.twin);

  ExpectTwins(x, Rounding(type()) + 0x1p-18f, 1e-6f);
}

TEST_P(CudaKernelsTest, AddRmsNormKeepsTheSum) {
  for (size_t n : {4096u, 577u, 64u}) {
    const Both x = Make(Random(3 * n, 7), DType::kF32, {3, n});
    const Both y = Activations(3, n, 8);
    const Both weight = Make(Random(n, 9), DType::kF32, {n});

    AddRmsNorm(*ours_, y.ours, x.ours, weight.ours, 1e-5f, y.ours);
    AddRmsNorm(*twin_, y.twin, x.twin, weight.twin, 1e-5f, y.twin);

    EXPECT_EQ(Read(x.ours), x.values);
    ExpectTwins(y, Rounding(type()) + 0x1p-18f, 1e-6f);
  }
}

TEST_P(CudaKernelsTest, LayerNorm) {
  const Both x = Make(Random(3 * 768, 10), DType::kF32, {3, 768});
  const Both weight = Make(Random(768, 11), DType::kF32, {768});
  const Both bias = Make(Random(768, 12), DType::kF32, {768});
  const Both out = Activations(3, 768, 13);

  LayerNorm(*ours_, x.ours, weight.ours, bias.ours, 1e-5f, out.ours);
  LayerNorm(*twin_, x.twin, weight.twin, bias.twin, 1e-5f, out.twin);

  ExpectTwins(out, Rounding(type()), 8 * Rounding(type()) * 0x1p-9f + 1e-5f);
}

TEST_P(CudaKernelsTest, RotaryAnglesAreNearlyExact) {
  const Both frequencies = Make(Random(64, 14), DType::kF32, {64});
  const Both cosines = Make(Floats(3 * 64), DType::kF32, {3, 64});
  const Both sines = Make(Floats(3 * 64), DType::kF32, {3, 64});
  const SequenceRows rows[] = {{.row = 0, .count = 2, .position = 99990, .blocks = {}},
                               {.row = 2, .count = 1, .position = 5, .blocks = {}}};

  RotaryAngles(*ours_, std::span<const SequenceRows>(rows), frequencies.ours, 1.25f, cosines.ours,
               sines.ours);
  RotaryAngles(*twin_, std::span<const SequenceRows>(rows), frequencies.twin, 1.25f, cosines.twin,
               sines.twin);

  ExpectTwins(cosines, 0x1p-22f, 1e-9f);
  ExpectTwins(sines, 0x1p-22f, 1e-9f);
}

// What is in the cache is rounded twice on the GPU, to activations and to the cache's type.
TEST_P(CudaKernelsTest, RopeWriteKvFillsTheCacheAndRotatesQ) {
  constexpr uint32_t kHeads = 6;
  constexpr uint32_t kKvHeads = 3;
  constexpr uint32_t kHeadDim = 40;
  constexpr uint32_t kTokens = 21;
  for (DType cache_type : {DType::kF32, DType::kF16, DType::kBF16, DType::kI8, DType::kFp8}) {
    const Both cosines = Make(Random(kTokens * 16, 15, 0.5f), DType::kF32, {kTokens, 16});
    const Both sines = Make(Random(kTokens * 16, 16, 0.5f), DType::kF32, {kTokens, 16});
    const Both q = Activations(kTokens, kHeads * kHeadDim, 17);
    const Both k = Activations(kTokens, kKvHeads * kHeadDim, 18);
    const Both v = Activations(kTokens, kKvHeads * kHeadDim, 19);
    const size_t row_bytes = KvRowBytes(cache_type, kHeadDim);
    const size_t block_bytes = 2 * kKvHeads * 16 * row_bytes;
    std::vector<std::byte> twin_cache(8 * block_bytes);
    const DeviceMemory our_cache = gpu_->Allocate(twin_cache.size()).value();
    const BlockId blocks[] = {BlockId{5}, BlockId{2}, BlockId{7}};
    const BlockId other[] = {BlockId{1}};
    const SequenceRows sequences[] = {{.row = 0, .count = 20, .position = 9, .blocks = blocks},
                                      {.row = 20, .count = 1, .position = 0, .blocks = other}};
    KvPages pages = {.data = our_cache.data(),
                     .block_bytes = block_bytes,
                     .dtype = cache_type,
                     .kv_heads = kKvHeads,
                     .head_dim = kHeadDim,
                     .block_tokens = 16};
    const auto heads = [](const TensorView& view, uint32_t count) {
      return view.Reshaped({kTokens, count, kHeadDim});
    };

    RopeWriteKv(*ours_, cosines.ours, sines.ours, heads(q.ours, kHeads), heads(k.ours, kKvHeads),
                heads(v.ours, kKvHeads), std::span<const SequenceRows>(sequences), pages);
    pages.data = twin_cache.data();
    RopeWriteKv(*twin_, cosines.twin, sines.twin, heads(q.twin, kHeads), heads(k.twin, kKvHeads),
                heads(v.twin, kKvHeads), std::span<const SequenceRows>(sequences), pages);

    ExpectTwins(q, Rounding(type()), 4e-6f);
    std::vector<std::byte> our_bytes(twin_cache.size());
    ASSERT_TRUE(gpu_->CopyToHost(our_bytes.data(), our_cache.data(), our_bytes.size()).ok());
    if (HasScales(cache_type)) {
      ExpectScaledRowsNear(cache_type, our_bytes, twin_cache, kHeadDim);
    } else {
      ExpectNear(Decode(our_bytes, cache_type), Decode(twin_cache, cache_type),
                 Rounding(type()) + 2 * Rounding(cache_type), 4e-6f);
    }
  }
}

TEST_P(CudaKernelsTest, Gates) {
  for (size_t n : {1024u, 333u}) {
    for (auto* operation : {baton::SiluMul, baton::GeluMul}) {
      const Both gate = Activations(7, n, 20, 3.0f);
      const Both up = Activations(7, n, 21);

      operation(*ours_, gate.ours, up.ours, gate.ours);
      operation(*twin_, gate.twin, up.twin, gate.twin);

      ExpectTwins(gate, Rounding(type()) + 0x1p-18f, 1e-6f);
    }
    const Both x = Activations(7, n, 22, 3.0f);
    baton::Gelu(*ours_, x.ours, x.ours);
    baton::Gelu(*twin_, x.twin, x.twin);
    ExpectTwins(x, Rounding(type()) + 0x1p-18f, 1e-6f);
  }
}

TEST_P(CudaKernelsTest, SoftCapScaleAndAdd) {
  const Both x = Make(Random(5 * 777, 23, 40.0f), DType::kF32, {5, 777});
  const Both y = Activations(5, 777, 24);
  for (auto* side : {&ours_, &twin_}) {
    const TensorView view = side == &ours_ ? x.ours : x.twin;
    SoftCap(**side, 30.0f, view);
    Scale(**side, 1.5f, view);
    Add(**side, side == &ours_ ? y.ours : y.twin, view);
  }

  ExpectTwins(x, 0x1p-20f, 2e-5f);
}

TEST_P(CudaKernelsTest, JoinsColumns) {
  const Both wide = Make(Random(5 * 131, 28), DType::kF32, {5, 131});
  const Both none = Make({}, DType::kF32, {5, 0});
  const Both narrow = Make(Random(5 * 64, 29), DType::kF32, {5, 64});
  const Both joined = Make(Random(5 * 195, 30), DType::kF32, {5, 195});

  JoinColumns(*ours_, std::vector<ConstTensorView>{wide.ours, none.ours, narrow.ours}, joined.ours);
  JoinColumns(*twin_, std::vector<ConstTensorView>{wide.twin, none.twin, narrow.twin}, joined.twin);

  EXPECT_EQ(Read(joined.ours), joined.values);
}

TEST_P(CudaKernelsTest, GatherAndCombineRows) {
  const Both x = Activations(9, 130, 25);
  const std::vector<uint32_t> rows = {8, 0, 3, 3, 5, 1};
  const Floats weights = {0.5f, -1.0f, 2.0f, 0.25f, 0.125f, 3.0f};
  const Both gathered = Activations(6, 130, 26);
  const Both combined = Activations(3, 130, 27);

  GatherRows(*ours_, x.ours, rows, gathered.ours);
  GatherRows(*twin_, x.twin, rows, gathered.twin);
  CombineRows(*ours_, x.ours, rows, weights, combined.ours);
  CombineRows(*twin_, x.twin, rows, weights, combined.twin);

  EXPECT_EQ(Read(gathered.ours), gathered.values);
  ExpectTwins(combined, Rounding(type()), 1e-6f);
}

// Sums of `inputs` products of numbers near 1: both sides round each sum to float32 in their own
// order, and the GPU rounds the result.
TEST_P(CudaKernelsTest, LinearOfFewAndManyRows) {
  const DType float_form = type();
  for (const WeightForm form : {WeightFormOf(float_form), WeightForm::kInt8, WeightForm::kFp8}) {
    const bool bytes = form == WeightForm::kInt8 || form == WeightForm::kFp8;
    if (bytes && type() == DType::kF32) continue;  // Not a pair.
    for (const auto& [rows, inputs, outputs] : {std::tuple<size_t, size_t, size_t>{1, 256, 96},
                                                {7, 896, 130},
                                                {64, 1024, 256},
                                                {64, 512, 72},
                                                {65, 896, 1000},
                                                {66, 512, 130},
                                                {300, 512, 64}}) {
      const Both x = Activations(rows, inputs, 28);
      Floats numbers = Rounded(Random(outputs * inputs, 29, 0.1f), type());
      const ConstTensorView matrix(reinterpret_cast<const std::byte*>(numbers.data()), DType::kF32,
                                   DeviceKind::kCpu, {outputs, inputs});
      // Sometimes part of another one, so that it lies anywhere.
      const size_t part = rows == 300 ? 1 : 0;
      const Both biases = Make(Random(outputs + part, 30), type(), {outputs + part});
      const Both out = Activations(rows, outputs, 31);
      const PackedWeight ours = PackWeight(*ours_, *gpu_, matrix, {.form = form}).value();
      const std::unique_ptr<Device> host = MakeHostDevice();
      // The twin's int8 activations have 16 bits: an error of 2^-15 of the largest.
      const PackedWeight twin = PackWeight(*twin_, *host, matrix, {.form = form}).value();

      const LinearOutput our_output[] = {{&ours, biases.ours.Rows(part, outputs), out.ours}};
      const LinearOutput twin_output[] = {{&twin, biases.twin.Rows(part, outputs), out.twin}};
      Linear(*ours_, x.ours, our_output);
      Linear(*twin_, x.twin, twin_output);

      const auto root = static_cast<float>(std::sqrt(inputs));
      const float magnitude = 0.1f * root;  // Of a result.
      // Many rows: rounded before and after the bias, where cuBLASLt does not add it. 8 bits for
      // many rows: the widened weight too.
      const float widened = bytes ? 4 * Rounding(type()) * magnitude : 0.0f;
      const float quantized = form == WeightForm::kInt8 ? 0x1p-13f * magnitude : 0.0f;
      ExpectTwins(out, 3 * Rounding(type()),
                  8 * Rounding(type()) * magnitude * 0x1p-3f + widened + quantized +
                      root * 0x1p-20f * magnitude);
    }
  }
}

// Of a larger vocabulary the logits go to the host: its kernels would refuse every step.
TEST_P(CudaKernelsTest, ChoosesFromAsManyTokensAsItsKernelsTake) {
  EXPECT_TRUE(CanSampleTokens(*ours_, kSampleVocabMax));
  EXPECT_FALSE(CanSampleTokens(*ours_, kSampleVocabMax + 1));
  EXPECT_FALSE(CanSampleTokens(*twin_, 2));
}

// The GPU rounds weights of the softmax to the type of activations (a relative error of each term,
// so of the sum at most as much, as all have one sign but V), and the result.
TEST_P(CudaKernelsTest, AttentionOfSingleTokensAndChunks) {
  const AttentionShape shapes[] = {
      {},
      {.heads = 8, .kv_heads = 8, .head_dim = 64},
      {.heads = 8, .kv_heads = 1, .head_dim = 128, .block_tokens = 64},
      {.heads = 32, .kv_heads = 2, .head_dim = 64, .block_tokens = 32},
      {.heads = 4, .kv_heads = 2, .head_dim = 96},
      {.heads = 4, .kv_heads = 2, .head_dim = 256},
      {.options = {.window = 100}},
      {.head_dim = 64, .options = {.soft_cap = 5.0f}},
      // AttentionAny takes all, or single tokens alone.
      {.heads = 6, .kv_heads = 3, .head_dim = 40},
      {.heads = 4, .kv_heads = 2, .head_dim = 256, .block_tokens = 4},
      {.heads = 9, .kv_heads = 1, .head_dim = 256},
  };
  for (const AttentionShape& shape : shapes) {
    for (DType cache_type : {type(), DType::kI8, DType::kFp8}) {
      ExpectSameAttention(shape, cache_type);
    }
  }
}

// A step that is replayed reads what was placed for it, not what was placed when it was recorded.
TEST_P(CudaKernelsTest, ReplayedStepsReadWhatIsPlaced) {
  const Both table = Make(Random(50 * 64, 32), type(), {50, 64});
  const Both out = Make(Floats(4 * 64, 7.0f), DType::kF32, {4, 64});
  const StepShape shape = {.rows = 4, .end_max = 1024};
  for (int32_t step = 0; step < 6; ++step) {
    const std::vector<TokenId> ids = {TokenId{step}, TokenId{2 * step}, TokenId{0}, TokenId{7}};
    ours_->BeginStep();
    const Placed<TokenId> placed = ours_->Place(std::span<const TokenId>(ids));
    const absl::Status status = ours_->RunStep(&shape, [&] {
      Embedding(*ours_, table.ours, placed, out.ours);
      Scale(*ours_, 2.0f, out.ours);
      return absl::OkStatus();
    });
    ASSERT_TRUE(status.ok()) << status;
    Embedding(*twin_, table.twin, ids, out.twin);
    Scale(*twin_, 2.0f, out.twin);
    EXPECT_EQ(Read(out.ours), out.values) << "step " << step;
  }
}

TEST_P(CudaKernelsTest, WhatIsWaitedForIsDoneInOrder) {
  const Both x = Make(Floats(1000, 1.0f), DType::kF32, {1, 1000});
  std::vector<float> seen;
  ours_->BeginStep();
  const absl::Status status = ours_->RunStep(nullptr, [&] {
    for (int i = 0; i < 3; ++i) {
      Scale(*ours_, 2.0f, x.ours);
      ours_->WhenDone([&] { seen.push_back(static_cast<float>(seen.size())); });
    }
    return absl::OkStatus();
  });

  ASSERT_TRUE(status.ok()) << status;
  EXPECT_THAT(seen, testing::ElementsAre(0.0f, 1.0f, 2.0f));
  EXPECT_EQ(Read(x.ours)[999], 8.0f);
}

TEST_P(CudaKernelsTest, AStepThatFailsLeavesNothingForTheNext) {
  const Both x = Make(Floats(10, 1.0f), DType::kF32, {1, 10});
  int calls = 0;
  ours_->BeginStep();
  const absl::Status failed = ours_->RunStep(nullptr, [&] {
    Scale(*ours_, 2.0f, x.ours);
    ours_->WhenDone([&] { ++calls; });
    return absl::InternalError("planted");
  });
  ours_->BeginStep();
  const std::vector<uint32_t> too_many(std::size_t{10} << 20);
  ours_->Place(std::span<const uint32_t>(too_many));
  const absl::Status too_large = ours_->RunStep(nullptr, [&] {
    ++calls;
    return absl::OkStatus();
  });
  ours_->BeginStep();
  const absl::Status good = ours_->RunStep(nullptr, [&] {
    Scale(*ours_, 2.0f, x.ours);
    return absl::OkStatus();
  });

  EXPECT_EQ(failed, absl::InternalError("planted"));
  EXPECT_EQ(too_large.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(good.ok()) << good;
  EXPECT_EQ(calls, 0);
  EXPECT_EQ(Read(x.ours)[9], 4.0f);
}

// What it would have brought to the device for good may be missing.
TEST_P(CudaKernelsTest, AStepThatHasNotSucceededIsNotRecorded) {
  const Both x = Make(Floats(10, 1.0f), DType::kF32, {1, 10});
  const StepShape shape = {.rows = 1};
  for (const bool fails : {true, true, false}) {
    ours_->BeginStep();
    const absl::Status status = ours_->RunStep(&shape, [&] {
      ours_->Place(std::vector<uint32_t>{1});  // Stops the process in a recording.
      Scale(*ours_, 2.0f, x.ours);
      return fails ? absl::InternalError("planted") : absl::OkStatus();
    });
    EXPECT_EQ(status.ok(), !fails) << status;
  }

  EXPECT_EQ(Read(x.ours)[9], 8.0f);
  EXPECT_EQ(ours_->replays(), 0u);
}

INSTANTIATE_TEST_SUITE_P(Types, CudaKernelsTest,
                         testing::Values(DType::kF32, DType::kF16, DType::kBF16),
                         [](const auto& type) { return std::string(DTypeName(type.param)); });

}  // namespace
}  // namespace baton::cuda
