#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/kernels/cuda/launch.h"
#include "common/kernels/cuda/testing/attention_case.h"
#include "common/kernels/cuda/testing/gpu.h"
#include "common/tensor/dtype.h"

namespace baton::cuda {
namespace {

// Ends at, before and behind the borders of tiles, short and long; places that are not taken.
const std::vector<AttentionChunk> kSingles = {{0, 1},  {14, 1}, {0, 0},   {15, 1},  {16, 1},
                                              {99, 1}, {77, 0}, {999, 1}, {4999, 1}};
const std::vector<AttentionChunk> kFewTokens = {{0, 2},  {13, 3}, {0, 0},   {14, 2},  {15, 1},
                                                {16, 4}, {96, 4}, {998, 2}, {4997, 3}};

cudaError_t RunWithScratch(const Launch& launch, AttentionArgs args) {
  const DeviceArray<std::byte> scratch(DecodeAttentionScratchBytes(launch, args));
  args.scratch = scratch.data();
  args.scratch_bytes = scratch.bytes();
  EXPECT_TRUE(DecodeAttentionFits(args));
  const cudaError_t error = DecodeAttention(launch, args);
  // The scratch memory must live until the kernels end.
  return error == cudaSuccess ? cudaDeviceSynchronize() : error;
}

// Weights are rounded to the type of products: that of q, or float16 over 8 bits. What of float16
// is below 2^-14 is off by up to 2^-25.
WeightRounding RoundingOfWeights(const AttentionShape& shape) {
  const DType product = HasScales(shape.kv_type) ? DType::kF16 : shape.type;
  return {.relative = RoundingOf(product), .absolute = product == DType::kF16 ? 0x1p-25 : 0.0};
}

void ExpectReference(const AttentionShape& shape, const std::vector<AttentionChunk>& chunks,
                     uint32_t seed) {
  SCOPED_TRACE(testing::Message() << DTypeName(shape.type) << " over " << DTypeName(shape.kv_type)
                                  << ", " << shape.heads << "/" << shape.kv_heads << " heads of "
                                  << shape.head_dim << ", window " << shape.window);
  const AttentionCase batch(shape, chunks, seed);
  batch.ExpectReference(batch.Run(RunWithScratch), RoundingOfWeights(shape));
}

// Each with a cache of its own type and of both types of 8 bits.
void ExpectReferences(AttentionShape shape, const std::vector<AttentionChunk>& chunks,
                      uint32_t seed) {
  shape.kv_type = shape.type;
  ExpectReference(shape, chunks, seed);
  for (const DType kv_type : {DType::kI8, DType::kFp8}) {
    shape.kv_type = kv_type;
    ExpectReference(shape, chunks, ++seed);
  }
}

TEST(DecodeAttentionTest, EveryTypeAndHeadSize) {
  SKIP_WITHOUT_GPU();
  uint32_t seed = 100;
  for (const DType type : {DType::kBF16, DType::kF16}) {
    for (const uint32_t head_dim : {64u, 96u, 128u, 256u}) {
      ExpectReferences({.type = type, .head_dim = head_dim}, kSingles, seed += 2);
    }
  }
}

TEST(DecodeAttentionTest, QueryHeadsShareAKvHead) {
  SKIP_WITHOUT_GPU();
  ExpectReferences({.heads = 2, .kv_heads = 2}, kSingles, 200);
  ExpectReferences({.heads = 7, .kv_heads = 1}, kSingles, 202);
  ExpectReferences({.heads = 16, .kv_heads = 2}, kSingles, 204);
  // More rows than half a tile of products.
  ExpectReferences({.heads = 9, .kv_heads = 1}, kSingles, 206);
  ExpectReferences({.heads = 32, .kv_heads = 2}, kSingles, 208);
  ExpectReferences({.heads = 16, .kv_heads = 1, .head_dim = 64}, kSingles, 210);
  ExpectReferences({.heads = 8, .kv_heads = 1, .head_dim = 256}, kSingles, 212);
  ExpectReferences({.heads = 16, .kv_heads = 1, .head_dim = 96}, kSingles, 214);
}

TEST(DecodeAttentionTest, FewTokensSeeOnlyWhatIsBeforeThem) {
  SKIP_WITHOUT_GPU();
  ExpectReferences({.heads = 2, .kv_heads = 2}, kFewTokens, 300);
  ExpectReferences({.heads = 4, .kv_heads = 2, .head_dim = 64}, kFewTokens, 302);
  ExpectReferences({.heads = 8, .kv_heads = 2}, kFewTokens, 304);
  ExpectReferences({.heads = 4, .kv_heads = 2, .head_dim = 256, .window = 100}, kFewTokens, 306);
  ExpectReferences({.heads = 8, .kv_heads = 2, .head_dim = 96, .window = 100}, kFewTokens, 308);
}

TEST(DecodeAttentionTest, WindowHidesWhatIsBeforeIt) {
  SKIP_WITHOUT_GPU();
  for (const uint32_t window : {1u, 2u, 16u, 17u, 100u, 1024u, 8000u}) {
    ExpectReferences({.heads = 4, .window = window}, kSingles, 400 + 4 * window);
    ExpectReferences({.heads = 4, .window = window}, kFewTokens, 402 + 4 * window);
  }
}

TEST(DecodeAttentionTest, SoftCapBoundsScores) {
  SKIP_WITHOUT_GPU();
  ExpectReferences({.heads = 4, .soft_cap = 5.0f}, kSingles, 500);
  ExpectReferences({.heads = 4, .window = 90, .soft_cap = 2.0f}, kFewTokens, 502);
  ExpectReferences({.heads = 4, .head_dim = 256, .block_tokens = 48, .soft_cap = 5.0f}, kSingles,
                   504);
  ExpectReferences({.heads = 4, .head_dim = 96, .block_tokens = 32, .soft_cap = 5.0f}, kSingles,
                   506);
}

TEST(DecodeAttentionTest, LongerBlocks) {
  SKIP_WITHOUT_GPU();
  for (const uint32_t block_tokens : {32u, 48u, 128u}) {
    ExpectReferences({.heads = 4, .block_tokens = block_tokens}, kSingles, 600 + block_tokens);
  }
}

// So many sequences that one block of threads takes a whole one and writes the result itself.
TEST(DecodeAttentionTest, ManySequences) {
  SKIP_WITHOUT_GPU();
  std::vector<AttentionChunk> chunks;
  for (uint32_t i = 0; i < 300; ++i) chunks.push_back({i % 131, i % 7 == 3 ? 0u : 1u});
  const AttentionCase batch({.heads = 4}, chunks, 700);
  EXPECT_EQ(DecodeAttentionScratchBytes(*Gpu(), batch.Args()), 0u);

  ExpectReferences({.heads = 4}, chunks, 700);
}

// A recorded step is launched for the longest sequence that it may be replayed with; most parts of
// shorter ones are empty.
TEST(DecodeAttentionTest, SequencesMayBeShorterThanSaid) {
  SKIP_WITHOUT_GPU();
  for (const DType kv_type : {DType::kBF16, DType::kI8, DType::kFp8}) {
    const AttentionShape shape = {.kv_type = kv_type};
    const AttentionCase batch(shape, {{0, 1}, {16, 1}, {0, 0}, {40, 1}, {300, 1}}, 800);
    const auto for_longer = [](const Launch& launch, AttentionArgs args) {
      args.table.end_max = 32768;
      return RunWithScratch(launch, args);
    };
    batch.ExpectReference(batch.Run(for_longer), RoundingOfWeights(shape));
  }
}

// Scales of V may be far below what float16 can hold.
TEST(DecodeAttentionTest, SmallValuesOfEightBitsKeepTheirPrecision) {
  SKIP_WITHOUT_GPU();
  for (const float deviation : {1e-2f, 1e-4f, 1e-7f}) {
    for (const DType kv_type : {DType::kI8, DType::kFp8}) {
      ExpectReference({.kv_type = kv_type, .value_deviation = deviation}, kSingles, 900);
    }
  }
}

TEST(DecodeAttentionTest, RefusesTooLittleScratch) {
  SKIP_WITHOUT_GPU();
  AttentionArgs args = AttentionCase({}, {{4999, 1}}, 1000).Args();
  ASSERT_GT(DecodeAttentionScratchBytes(*Gpu(), args), 0u);
  args.scratch_bytes = DecodeAttentionScratchBytes(*Gpu(), args) - 1;

  EXPECT_EQ(DecodeAttention(*Gpu(), args), cudaErrorInvalidValue);
}

TEST(DecodeAttentionTest, FitsOnlyWhatItComputes) {
  AttentionArgs args;
  args.type = DType::kBF16;
  args.heads = 32;
  args.pages = {.block_bytes = 65536,
                .dtype = DType::kBF16,
                .kv_heads = 8,
                .head_dim = 128,
                .block_tokens = 16};
  args.table.count_max = 4;
  EXPECT_TRUE(DecodeAttentionFits(args));

  AttentionArgs quantized = args;
  for (const DType kv_type : {DType::kI8, DType::kFp8}) {
    quantized.pages.dtype = kv_type;
    EXPECT_TRUE(DecodeAttentionFits(quantized));
  }
  AttentionArgs other_type = args;
  other_type.pages.dtype = DType::kF16;
  EXPECT_FALSE(DecodeAttentionFits(other_type));
  AttentionArgs float32 = args;
  float32.type = float32.pages.dtype = DType::kF32;
  EXPECT_FALSE(DecodeAttentionFits(float32));
  AttentionArgs more_rows = args;
  more_rows.table.count_max = 5;
  EXPECT_FALSE(DecodeAttentionFits(more_rows));
  AttentionArgs other_heads = args;
  other_heads.pages.head_dim = 96;
  EXPECT_TRUE(DecodeAttentionFits(other_heads));
  AttentionArgs long_heads = args;
  long_heads.pages.head_dim = 256;
  long_heads.table.count_max = 2;
  EXPECT_TRUE(DecodeAttentionFits(long_heads));
  long_heads.table.count_max = 3;
  EXPECT_FALSE(DecodeAttentionFits(long_heads));
  AttentionArgs small_blocks = args;
  small_blocks.pages.block_tokens = 8;
  EXPECT_FALSE(DecodeAttentionFits(small_blocks));
  AttentionArgs odd_head = args;
  odd_head.pages.head_dim = 80;
  EXPECT_FALSE(DecodeAttentionFits(odd_head));
}

}  // namespace
}  // namespace baton::cuda
