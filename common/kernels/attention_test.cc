// Goal: attention is what its definition says, and its bits depend on nothing but q and the cache.
// Method: the definition in double precision; comparisons of bits over chunks, blocks, threads and
// instruction sets.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "common/base/deterministic_math.h"
#include "common/kernels/testing/kernel_fixture.h"

namespace baton {
namespace {

// A paged cache of one layer with scattered blocks, and queries for one or more sequences.
class AttentionCase {
 public:
  struct Shape {
    uint32_t heads = 4;
    uint32_t kv_heads = 2;
    uint32_t head_dim = 16;
    uint32_t block_tokens = 16;
    DType dtype = DType::kF32;
    uint32_t length = 0;  // Tokens of the sequence.
    uint32_t window = 0;
    float soft_cap = 0.0f;
  };

  explicit AttentionCase(const Shape& shape) : shape_(shape) {
    const size_t blocks = (shape.length + shape.block_tokens - 1) / shape.block_tokens;
    for (size_t i = 0; i < blocks; ++i)
      blocks_.push_back(BlockId{static_cast<uint32_t>(2 * i + 1)});
    std::shuffle(blocks_.begin(), blocks_.end(), std::mt19937(1));
    const size_t block_bytes =
        size_t{2} * shape.kv_heads * shape.block_tokens * KvRowBytes(shape.dtype, shape.head_dim);
    // Bytes that nobody wrote are NaN: whoever reads them shows.
    memory_.assign((2 * blocks + 1) * block_bytes, std::byte{0xff});
    pages_ = {.data = memory_.data(),
              .block_bytes = block_bytes,
              .dtype = shape.dtype,
              .kv_heads = shape.kv_heads,
              .head_dim = shape.head_dim,
              .block_tokens = shape.block_tokens};
    q_ = Random(size_t{shape.length} * shape.heads * shape.head_dim, 20);
    k_ = Random(size_t{shape.length} * shape.kv_heads * shape.head_dim, 21);
    v_ = Random(size_t{shape.length} * shape.kv_heads * shape.head_dim, 22);
    stored_k_ = AsStored(k_);
    stored_v_ = AsStored(v_);
  }

  // Writes K and V of [begin, end), then attends from these positions.
  void Step(KernelContext& context, uint32_t begin, uint32_t end, Floats* out) {
    const uint32_t count = end - begin;
    const SequenceRows rows = {.row = 0, .count = count, .position = begin, .blocks = blocks_};
    const size_t kv_row = size_t{shape_.kv_heads} * shape_.head_dim;
    const size_t q_row = size_t{shape_.heads} * shape_.head_dim;
    Floats k(k_.begin() + begin * kv_row, k_.begin() + end * kv_row);
    Floats v(v_.begin() + begin * kv_row, v_.begin() + end * kv_row);
    Floats q(q_.begin() + begin * q_row, q_.begin() + end * q_row);
    Floats part(q.size());
    WriteKv(context, View(k, {count, shape_.kv_heads, shape_.head_dim}),
            View(v, {count, shape_.kv_heads, shape_.head_dim}), std::span(&rows, 1), pages_);
    Attention(context, View(q, {count, shape_.heads, shape_.head_dim}), pages_, std::span(&rows, 1),
              {.scale = kScale, .window = shape_.window, .soft_cap = shape_.soft_cap},
              View(part, {count, shape_.heads, shape_.head_dim}));
    out->insert(out->end(), part.begin(), part.end());
  }
  Floats OnePass(KernelContext& context) {
    Floats out;
    Step(context, 0, shape_.length, &out);
    return out;
  }

  // Makes K and V of [0, end) unreadable: NaN, and no block where none is needed any more.
  void Forget(uint32_t end) {
    for (uint32_t position = 0; position < end; ++position) {
      if (blocks_[position / shape_.block_tokens] == kNoBlock) continue;
      for (uint32_t head = 0; head < shape_.kv_heads; ++head) {
        for (bool value : {false, true}) {
          std::memset(memory_.data() + pages_.OffsetOf(blocks_, value, head, position), 0xff,
                      KvRowBytes(shape_.dtype, shape_.head_dim));
        }
      }
    }
    for (uint32_t i = 0; (i + 1) * shape_.block_tokens <= end; ++i) blocks_[i] = kNoBlock;
  }

  struct Value {
    double value = 0.0;
    double tolerance = 0.0;
  };
  // The definition, in double precision. A score errs by (head_dim + 3) roundings of the sum of its
  // products' magnitudes, and by 6 more where it is capped; that error, twice, is relative to the
  // output, as are the roundings of the two sums over positions, of the exponentials and of the
  // merging of tiles.
  std::vector<Value> Expected(uint32_t position, uint32_t head) const {
    const uint32_t kv_head = head / (shape_.heads / shape_.kv_heads);
    const uint32_t begin =
        shape_.window == 0 || position + 1 < shape_.window ? 0 : position + 1 - shape_.window;
    std::vector<double> scores;
    double score_magnitude = 0.0;
    for (uint32_t j = begin; j <= position; ++j) {
      double dot = 0.0;
      double magnitude = 0.0;
      for (uint32_t d = 0; d < shape_.head_dim; ++d) {
        const double product =
            static_cast<double>(q_[(position * shape_.heads + head) * shape_.head_dim + d]) *
            stored_k_[(j * shape_.kv_heads + kv_head) * shape_.head_dim + d];
        dot += product;
        magnitude += std::abs(product);
      }
      const double score = dot * kScale;
      scores.push_back(
          shape_.soft_cap == 0.0f ? score : shape_.soft_cap * std::tanh(score / shape_.soft_cap));
      score_magnitude = std::max(score_magnitude, magnitude * kScale);
    }
    const double highest = *std::max_element(scores.begin(), scores.end());
    double sum = 0.0;
    std::vector<Value> output(shape_.head_dim);
    for (uint32_t j = begin; j <= position; ++j) {
      const double weight = std::exp(scores[j - begin] - highest);
      sum += weight;
      for (uint32_t d = 0; d < shape_.head_dim; ++d) {
        const double v = stored_v_[(j * shape_.kv_heads + kv_head) * shape_.head_dim + d];
        output[d].value += weight * v;
        output[d].tolerance += weight * std::abs(v);
      }
    }
    const double roundings =
        2.0 * (shape_.head_dim + 3 + (shape_.soft_cap == 0.0f ? 0 : 6)) * score_magnitude +
        2.0 * (position + 1) + 16.0;
    for (Value& value : output) {
      value.value /= sum;
      value.tolerance *= roundings * 0x1p-24 / sum;
    }
    return output;
  }

  const Shape& shape() const { return shape_; }

 private:
  static constexpr float kScale = 0.25f;

  // K or V as the cache holds it.
  Floats AsStored(const Floats& values) const {
    Floats stored = values;
    for (size_t row = 0; row < values.size(); row += shape_.head_dim) {
      float highest = 0.0f;
      for (size_t d = 0; d < shape_.head_dim; ++d) {
        highest = std::max(highest, std::abs(values[row + d]));
      }
      for (size_t i = row; i < row + shape_.head_dim; ++i) {
        if (shape_.dtype == DType::kBF16) stored[i] = Bf16ToF32(F32ToBf16(values[i]));
        if (shape_.dtype == DType::kF16) stored[i] = F16ToF32(F32ToF16(values[i]));
        if (shape_.dtype == DType::kFp8) {
          stored[i] =
              E4m3ToF32(F32ToE4m3(values[i] * (kE4m3Highest / highest))) * (highest / kE4m3Highest);
        }
        if (shape_.dtype == DType::kI8) {
          stored[i] = std::nearbyint(values[i] * (127.0f / highest)) * (highest / 127.0f);
        }
      }
    }
    return stored;
  }

  const Shape shape_;
  std::vector<BlockId> blocks_;
  std::vector<std::byte> memory_;
  KvPages pages_;
  Floats q_;
  Floats k_;
  Floats v_;
  Floats stored_k_;
  Floats stored_v_;
};

TEST(AttentionTest, OneTokenReturnsItsValue) {
  auto context = MakeContext();
  std::vector<std::byte> memory(2 * 2 * sizeof(float));
  const KvPages pages = {.data = memory.data(),
                         .block_bytes = memory.size(),
                         .kv_heads = 1,
                         .head_dim = 2,
                         .block_tokens = 1};
  const std::vector<BlockId> blocks = {BlockId{0}};
  const SequenceRows rows = {.row = 0, .count = 1, .position = 0, .blocks = blocks};
  Floats q = {1.0f, 1.0f};
  Floats k = {0.5f, -3.0f};
  Floats v = {7.0f, 9.0f};
  Floats out(2);

  WriteKv(*context, View(k, {1, 1, 2}), View(v, {1, 1, 2}), std::span(&rows, 1), pages);
  Attention(*context, View(q, {1, 1, 2}), pages, std::span(&rows, 1), {}, View(out, {1, 1, 2}));

  EXPECT_EQ(out, v);
}

TEST(AttentionTest, EqualsTheDefinition) {
  const AttentionCase::Shape shapes[] = {
      {.length = 150},
      {.heads = 3, .kv_heads = 1, .head_dim = 10, .block_tokens = 7, .length = 131},
      {.heads = 2, .kv_heads = 2, .head_dim = 64, .block_tokens = 1, .length = 65},
      {.heads = 40, .kv_heads = 1, .head_dim = 8, .length = 70},
      {.dtype = DType::kBF16, .length = 150},
      {.heads = 4, .kv_heads = 4, .head_dim = 18, .dtype = DType::kBF16, .length = 64},
      {.head_dim = 64, .dtype = DType::kBF16, .length = 150},
      {.dtype = DType::kI8, .length = 150},
      {.heads = 3, .kv_heads = 1, .head_dim = 68, .dtype = DType::kI8, .length = 70},
      {.dtype = DType::kF16, .length = 150},
      {.heads = 4, .kv_heads = 4, .head_dim = 18, .dtype = DType::kF16, .length = 64},
      {.dtype = DType::kFp8, .length = 150},
      {.heads = 3, .kv_heads = 1, .head_dim = 68, .dtype = DType::kFp8, .length = 70},
      {.heads = 2, .kv_heads = 1, .head_dim = 7, .dtype = DType::kFp8, .length = 20},
      {.length = 200, .window = 1},
      {.length = 200, .window = 50},
      {.length = 200, .window = 64},
      {.heads = 3, .kv_heads = 1, .head_dim = 10, .block_tokens = 7, .length = 270, .window = 130},
      {.dtype = DType::kBF16, .length = 200, .window = 100},
      {.dtype = DType::kI8, .length = 200, .window = 65},
      {.length = 60, .window = 60},
      {.length = 150, .soft_cap = 0.5f},
      {.head_dim = 64, .dtype = DType::kBF16, .length = 150, .window = 70, .soft_cap = 2.0f},
  };
  for (const AttentionCase::Shape& shape : shapes) {
    for (CpuIsa isa : Isas()) {
      AttentionCase attention(shape);
      const Floats out = attention.OnePass(*MakeContext(2, isa));
      for (size_t row = 0; row < out.size() / shape.head_dim; ++row) {
        const uint32_t head = static_cast<uint32_t>(row % shape.heads);
        const uint32_t position = static_cast<uint32_t>(row / shape.heads);
        const std::vector<AttentionCase::Value> expected = attention.Expected(position, head);
        for (uint32_t dim = 0; dim < shape.head_dim; ++dim) {
          ASSERT_NEAR(out[row * shape.head_dim + dim], expected[dim].value, expected[dim].tolerance)
              << CpuIsaName(isa) << " position " << position << " head " << head << " dim " << dim;
        }
      }
    }
  }
}

// A cache type and a window.
class AttentionBitsTest : public testing::TestWithParam<std::tuple<DType, uint32_t>> {
 protected:
  AttentionCase::Shape Like(AttentionCase::Shape shape) const {
    shape.dtype = std::get<0>(GetParam());
    shape.window = std::get<1>(GetParam());
    shape.soft_cap = shape.window == 100 ? 3.0f : 0.0f;
    return shape;
  }
};

TEST_P(AttentionBitsTest, DependOnNeitherChunksNorBlocksNorThreadsNorIsa) {
  const AttentionCase::Shape shape =
      Like({.heads = 6, .kv_heads = 2, .head_dim = 36, .length = 200});
  const Floats reference = AttentionCase(shape).OnePass(*MakeContext(1, CpuIsa::kBaseline));
  for (CpuIsa isa : Isas()) {
    for (uint32_t seed = 0; seed < 6; ++seed) {
      std::mt19937 random(seed);
      AttentionCase::Shape other = shape;
      const uint32_t block_sizes[] = {1, 4, 16, 32, 64, 100};
      other.block_tokens = block_sizes[seed];
      auto context = MakeContext(1 + seed % 4, isa);
      AttentionCase attention(other);
      Floats out;
      const uint32_t chunk_max = seed % 2 == 0 ? 3 : 120;
      for (uint32_t begin = 0; begin < shape.length;) {
        const uint32_t end = std::min<uint32_t>(
            shape.length, begin + 1 + static_cast<uint32_t>(random() % chunk_max));
        attention.Step(*context, begin, end, &out);
        begin = end;
      }
      EXPECT_TRUE(SameBits(out, reference)) << CpuIsaName(isa) << " seed " << seed;
    }
  }
}

// Goal: flash decoding, which cuts a long cache among threads, gives the bits of one thread.
TEST_P(AttentionBitsTest, StayTheSameWhenPartsOfALongCacheAreMerged) {
  const AttentionCase::Shape shape =
      Like({.heads = 3, .kv_heads = 1, .head_dim = 32, .length = 720});
  AttentionCase one(shape);
  const Floats reference = one.OnePass(*MakeContext(1));
  for (CpuIsa isa : Isas()) {
    for (uint32_t threads : {2u, 3u, 4u}) {
      auto context = MakeContext(threads, isa);
      AttentionCase attention(shape);
      Floats out;
      attention.Step(*context, 0, 700, &out);
      attention.Step(*context, 700, 707, &out);  // Across the begin of a tile.
      for (uint32_t position = 707; position < 720; ++position) {
        attention.Step(*context, position, position + 1, &out);
      }
      EXPECT_TRUE(SameBits(out, reference)) << CpuIsaName(isa) << " threads " << threads;
    }
  }
}

// Goal: K and V before the window need not exist any more.
TEST_P(AttentionBitsTest, DoNotDependOnWhatIsBehindTheWindow) {
  const AttentionCase::Shape shape = Like({.heads = 3, .kv_heads = 1, .length = 1000});
  if (shape.window == 0) return;
  AttentionCase one(shape);
  const Floats reference = one.OnePass(*MakeContext(1));
  for (uint32_t seed = 0; seed < 6; ++seed) {
    std::mt19937 random(seed);
    auto context = MakeContext(1 + seed % 3);
    AttentionCase attention(shape);
    Floats out;
    const uint32_t chunk_max = seed % 2 == 0 ? 8 : 120;
    for (uint32_t begin = 0; begin < shape.length;) {
      const uint32_t end =
          std::min<uint32_t>(shape.length, begin + 1 + static_cast<uint32_t>(random() % chunk_max));
      attention.Forget(begin + 1 < shape.window ? 0 : begin + 1 - shape.window);
      attention.Step(*context, begin, end, &out);
      begin = end;
    }
    EXPECT_TRUE(SameBits(out, reference)) << "seed " << seed;
  }
}

INSTANTIATE_TEST_SUITE_P(CachesAndWindows, AttentionBitsTest,
                         testing::Combine(testing::Values(DType::kF32, DType::kF16, DType::kBF16,
                                                          DType::kI8, DType::kFp8),
                                          testing::Values(0u, 100u, 600u)),
                         [](const auto& param) {
                           return std::string(DTypeName(std::get<0>(param.param))) + "_window" +
                                  std::to_string(std::get<1>(param.param));
                         });

// A later token's K or V that is not finite is nothing to the tokens before it in the same pass.
TEST(AttentionTest, LaterTokensOfTheSamePassAreNotSeen) {
  auto context = MakeContext();
  const uint32_t count = 70;
  const uint32_t head_dim = 32;
  std::vector<std::byte> memory(2 * count * head_dim * sizeof(float));
  const KvPages pages = {.data = memory.data(),
                         .block_bytes = memory.size(),
                         .kv_heads = 1,
                         .head_dim = head_dim,
                         .block_tokens = count};
  const std::vector<BlockId> blocks = {BlockId{0}};
  const SequenceRows rows = {.row = 0, .count = count, .position = 0, .blocks = blocks};
  Floats q = Random(count * head_dim, 1);
  Floats k = Random(count * head_dim, 2);
  Floats v = Random(count * head_dim, 3);
  for (uint32_t d = 0; d < head_dim; ++d) {
    k[(count - 1) * head_dim + d] = std::numeric_limits<float>::infinity();
    v[(count - 1) * head_dim + d] = std::numeric_limits<float>::infinity();
  }
  Floats out(count * head_dim);

  WriteKv(*context, View(k, {count, 1, head_dim}), View(v, {count, 1, head_dim}),
          std::span(&rows, 1), pages);
  Attention(*context, View(q, {count, 1, head_dim}), pages, std::span(&rows, 1), {.scale = 0.2f},
            View(out, {count, 1, head_dim}));

  for (size_t i = 0; i < (count - 1) * head_dim; ++i) ASSERT_TRUE(std::isfinite(out[i])) << i;
}

}  // namespace
}  // namespace baton
