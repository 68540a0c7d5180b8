// Goal: the cache holds what the formats of its numbers say, at their edges too, and a row that is
// not finite shows. Method: one token whose heads hold the numbers in question; every instruction
// set.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "common/kernels/testing/kernel_fixture.h"

namespace baton {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// The cache of one sequence of `tokens` tokens with `heads` heads of its own each.
class Cache {
 public:
  Cache(DType dtype, uint32_t tokens, uint32_t heads, uint32_t head_dim)
      : tokens_(tokens), heads_(heads), head_dim_(head_dim) {
    pages_ = {.block_bytes = size_t{2} * heads * tokens * KvRowBytes(dtype, head_dim),
              .dtype = dtype,
              .kv_heads = heads,
              .head_dim = head_dim,
              .block_tokens = tokens};
    memory_.resize(pages_.block_bytes);
    pages_.data = memory_.data();
  }

  // k, v: [tokens, heads, head_dim].
  void Write(KernelContext& context, Floats& k, Floats& v) {
    WriteKv(context, View(k, {tokens_, heads_, head_dim_}), View(v, {tokens_, heads_, head_dim_}),
            std::span(&rows_, 1), pages_);
  }
  // As Write's.
  Floats Attend(KernelContext& context) {
    Floats q(size_t{tokens_} * heads_ * head_dim_, 0.125f);
    Floats out(q.size());
    Attention(context, View(q, {tokens_, heads_, head_dim_}), pages_, std::span(&rows_, 1), {},
              View(out, {tokens_, heads_, head_dim_}));
    return out;
  }
  // V of the first token.
  const std::byte* Row(uint32_t head) const {
    return memory_.data() + pages_.OffsetOf(blocks_, /*value=*/true, head, 0);
  }

 private:
  const uint32_t tokens_;
  const uint32_t heads_;
  const uint32_t head_dim_;
  const std::vector<BlockId> blocks_ = {BlockId{0}};
  const SequenceRows rows_ = {.row = 0, .count = tokens_, .position = 0, .blocks = blocks_};
  KvPages pages_;
  std::vector<std::byte> memory_;
};

// Every number of E4M3 but NaN, what lies in the middle between two, and its neighbours.
Floats NumbersAroundE4m3() {
  Floats numbers;
  for (uint32_t bits = 0; bits < 0x7e; ++bits) {
    const float number = E4m3ToF32(static_cast<uint8_t>(bits));
    const float middle = (number + E4m3ToF32(static_cast<uint8_t>(bits + 1))) / 2;
    for (const float x :
         {number, std::nextafter(middle, 0.0f), middle, std::nextafter(middle, 1e9f)}) {
      numbers.push_back(x);
      numbers.push_back(-x);
    }
  }
  return numbers;
}

TEST(KvFormatsTest, Fp8RowsAreRoundedAsTheFormatSays) {
  const Floats numbers = NumbersAroundE4m3();
  constexpr uint32_t kHeadDim = 48;
  const auto heads = static_cast<uint32_t>(numbers.size() / (kHeadDim - 1) + 1);
  // The largest number in each row makes the scale 1.
  Floats v(size_t{heads} * kHeadDim);
  for (size_t i = 0, next = 0; i < v.size(); ++i) {
    v[i] = i % kHeadDim == 0 ? kE4m3Highest : next < numbers.size() ? numbers[next++] : 0.0f;
  }
  Floats k(v.size());
  for (const CpuIsa isa : Isas()) {
    Cache cache(DType::kFp8, 1, heads, kHeadDim);
    const auto context = MakeContext(1, isa);

    cache.Write(*context, k, v);
    const Floats out = cache.Attend(*context);

    for (size_t i = 0; i < v.size(); ++i) {
      const std::byte* const row = cache.Row(static_cast<uint32_t>(i / kHeadDim));
      const auto stored = std::to_integer<uint8_t>(row[i % kHeadDim]);
      ASSERT_EQ(stored, F32ToE4m3(v[i])) << CpuIsaName(isa) << " " << v[i];
      ASSERT_EQ(out[i], E4m3ToF32(stored)) << CpuIsaName(isa) << " " << v[i];
      float scale = 0.0f;
      std::memcpy(&scale, row + kHeadDim, sizeof(scale));
      ASSERT_EQ(scale, 1.0f);
    }
  }
}

TEST(KvFormatsTest, EveryNumberOfBinary16ComesBack) {
  constexpr uint32_t kHeadDim = 64;
  constexpr uint32_t kHeads = (1u << 16) / kHeadDim;
  Floats v(size_t{kHeads} * kHeadDim);
  for (size_t i = 0; i < v.size(); ++i) v[i] = F16ToF32(static_cast<uint16_t>(i));
  Floats k(v.size());
  for (const CpuIsa isa : Isas()) {
    Cache cache(DType::kF16, 1, kHeads, kHeadDim);
    const auto context = MakeContext(1, isa);

    cache.Write(*context, k, v);
    const Floats out = cache.Attend(*context);

    for (size_t i = 0; i < v.size(); ++i) {
      if (std::isnan(v[i])) {
        ASSERT_TRUE(std::isnan(out[i])) << CpuIsaName(isa) << " " << i;
      } else {
        ASSERT_EQ(out[i], v[i]) << CpuIsaName(isa) << " " << i;
      }
    }
  }
}

// Whoever sees it has no number, the others have.
TEST(KvFormatsTest, ARowThatIsNotFiniteShowsInNarrowCachesToo) {
  constexpr uint32_t kTokens = 70;
  constexpr uint32_t kHeads = 2;
  constexpr uint32_t kHeadDim = 20;
  constexpr uint32_t kBadToken = 30;
  for (const DType dtype : {DType::kI8, DType::kFp8}) {
    for (const float bad : {kNan, kInfinity, -kInfinity}) {
      for (const CpuIsa isa : Isas()) {
        Floats k = Random(size_t{kTokens} * kHeads * kHeadDim, 1);
        Floats v = Random(k.size(), 2);
        v[(kBadToken * kHeads + 1) * kHeadDim + 17] = bad;
        Cache cache(dtype, kTokens, kHeads, kHeadDim);
        const auto context = MakeContext(1, isa);

        cache.Write(*context, k, v);
        const Floats out = cache.Attend(*context);

        for (size_t i = 0; i < out.size(); ++i) {
          const bool sees = i / (kHeads * kHeadDim) >= kBadToken && i / kHeadDim % kHeads == 1;
          ASSERT_EQ(std::isfinite(out[i]), !sees)
              << DTypeName(dtype) << " " << CpuIsaName(isa) << " " << bad << " at " << i;
        }
      }
    }
  }
}

}  // namespace
}  // namespace baton
