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

#define SKIP_WITHOUT_HOPPER()             \
  SKIP_WITHOUT_GPU();                     \
  if (Gpu()->compute_capability != 90) {  \
    GTEST_SKIP() << "the GPU is another"; \
  }                                       \
  static_assert(true)

// Chunks at the beginning and behind a prefix, of less than, just and more than the 64 rows of a
// consumer and the 128 of a tile, and places that are not taken.
const std::vector<AttentionChunk> kRagged = {{0, 5},  {0, 64},    {37, 1},   {0, 0},  {0, 128},
                                             {70, 0}, {100, 127}, {64, 130}, {0, 300}};

// The kernel wants a block of all layers to be a multiple of a KV head's part of one. The padding
// stands for a second layer.
AttentionShape WithTwoLayers(AttentionShape shape) {
  shape.kv_type = shape.type;
  shape.block_padding = static_cast<uint32_t>(2 * shape.kv_heads * shape.block_tokens *
                                              shape.head_dim * DTypeBytes(shape.type));
  return shape;
}

cudaError_t RunIfItFits(const Launch& launch, const AttentionArgs& args) {
  EXPECT_TRUE(PrefillAttentionSm90Fits(launch, args));
  return PrefillAttentionSm90(launch, args);
}

// Weights are rounded to the type. What of float16 is below 2^-14 is off by up to 2^-25.
void ExpectReference(const AttentionShape& shape, const std::vector<AttentionChunk>& chunks,
                     uint32_t seed) {
  SCOPED_TRACE(testing::Message() << DTypeName(shape.type) << ", " << shape.heads << "/"
                                  << shape.kv_heads << " heads of " << shape.head_dim
                                  << ", blocks of " << shape.block_tokens);
  const AttentionCase batch(WithTwoLayers(shape), chunks, seed);
  batch.ExpectReference(
      batch.Run(RunIfItFits),
      {.relative = RoundingOf(shape.type), .absolute = shape.type == DType::kF16 ? 0x1p-25 : 0.0});
}

TEST(PrefillAttentionSm90Test, EveryTypeAndHeadSize) {
  SKIP_WITHOUT_HOPPER();
  uint32_t seed = 100;
  for (const DType type : {DType::kBF16, DType::kF16}) {
    for (const uint32_t head_dim : {64u, 128u}) {
      ExpectReference({.type = type, .heads = 4, .head_dim = head_dim}, kRagged, ++seed);
    }
  }
}

TEST(PrefillAttentionSm90Test, QueryHeadsShareAKvHead) {
  SKIP_WITHOUT_HOPPER();
  ExpectReference({.heads = 2, .kv_heads = 2}, kRagged, 200);
  ExpectReference({.heads = 8, .kv_heads = 2}, kRagged, 201);
  ExpectReference({.heads = 7, .kv_heads = 1}, kRagged, 202);
  ExpectReference({.heads = 8, .kv_heads = 1}, kRagged, 203);
}

TEST(PrefillAttentionSm90Test, BlocksOfEverySize) {
  SKIP_WITHOUT_HOPPER();
  for (const uint32_t block_tokens : {16u, 32u, 64u, 128u}) {
    for (const uint32_t head_dim : {64u, 128u}) {
      ExpectReference({.heads = 2, .head_dim = head_dim, .block_tokens = block_tokens}, kRagged,
                      300 + block_tokens + head_dim);
    }
  }
}

// One, two, three and more tiles of keys, which end with a tile and beside it: every stage of the
// ring is used again.
TEST(PrefillAttentionSm90Test, PrefixesOfAnyLength) {
  SKIP_WITHOUT_HOPPER();
  ExpectReference({.heads = 2, .kv_heads = 1},
                  {{126, 1}, {127, 1}, {128, 1}, {128, 128}, {255, 1}, {256, 2}, {383, 130}}, 400);
  ExpectReference({.heads = 2, .kv_heads = 1}, {{3000, 33}, {2047, 2}, {1000, 130}}, 401);
}

TEST(PrefillAttentionSm90Test, ChunksOfManyTiles) {
  SKIP_WITHOUT_HOPPER();
  ExpectReference({.heads = 2, .kv_heads = 1}, {{0, 700}, {123, 700}}, 500);
  ExpectReference({.heads = 2, .kv_heads = 1, .block_tokens = 64}, {{0, 1024}}, 501);
}

// More than a warp looks at together when it searches for its tile.
TEST(PrefillAttentionSm90Test, ManySequences) {
  SKIP_WITHOUT_HOPPER();
  std::vector<AttentionChunk> chunks;
  for (uint32_t i = 0; i < 100; ++i) chunks.push_back({i % 131, i % 7 == 3 ? 0u : 1u + i % 5});
  chunks.push_back({0, 260});
  ExpectReference({.heads = 4}, chunks, 600);
}

// Tiles of keys are aligned by position, and what a row does not see changes nothing.
TEST(PrefillAttentionSm90Test, ChunksGiveTheBitsOfTheWhole) {
  SKIP_WITHOUT_HOPPER();
  for (const uint32_t head_dim : {64u, 128u}) {
    const AttentionCase batch(WithTwoLayers({.head_dim = head_dim}), {{0, 600}}, 700);
    const DeviceSequence whole = batch.sequences()[0];
    std::vector<DeviceSequence> parts;
    uint32_t done = 0;
    for (const uint32_t count : {1u, 130u, 5u, 64u, 300u, 100u}) {
      parts.push_back({whole.row + done, count, done, whole.blocks});
      done += count;
    }
    ASSERT_EQ(done, whole.count);
    const DeviceArray<DeviceSequence> device_parts(parts);
    const auto in_parts = [&](const Launch& launch, AttentionArgs args) {
      args.table.sequences = device_parts.data();
      args.table.count = static_cast<uint32_t>(parts.size());
      return RunIfItFits(launch, args);
    };

    EXPECT_EQ(batch.Run(in_parts), batch.Run(RunIfItFits)) << "heads of " << head_dim;
  }
}

AttentionArgs Fitting() {
  return AttentionCase(WithTwoLayers({.heads = 8, .kv_heads = 2}), {{0, 1}}, 800).Args();
}

TEST(PrefillAttentionSm90Test, FitsOnlyHopper) {
  Launch launch;
  for (const int other : {80, 89, 100, 120}) {
    launch.compute_capability = other;
    EXPECT_FALSE(PrefillAttentionSm90Fits(launch, Fitting())) << other;
  }
  launch.compute_capability = 90;
  EXPECT_TRUE(PrefillAttentionSm90Fits(launch, Fitting()));
}

TEST(PrefillAttentionSm90Test, FitsOnlyWhatItComputes) {
  const auto fits_with = [](auto change) {
    Launch launch;
    launch.compute_capability = 90;
    AttentionArgs args = Fitting();
    change(args);
    return PrefillAttentionSm90Fits(launch, args);
  };

  EXPECT_TRUE(fits_with([](AttentionArgs&) {}));
  for (const uint32_t tokens : {0u, 4u, 8u, 48u, 256u}) {
    EXPECT_FALSE(fits_with([&](AttentionArgs& args) { args.pages.block_tokens = tokens; }))
        << tokens;
  }
  EXPECT_FALSE(fits_with([](AttentionArgs& args) { args.pages.dtype = DType::kI8; }));
  EXPECT_FALSE(fits_with([](AttentionArgs& args) { args.type = DType::kF16; }));
  EXPECT_FALSE(fits_with([](AttentionArgs& args) { args.pages.head_dim = 96; }));
  EXPECT_FALSE(fits_with([](AttentionArgs& args) { args.heads = 7; }));
  EXPECT_FALSE(fits_with([](AttentionArgs& args) { args.window = 64; }));
  EXPECT_FALSE(fits_with([](AttentionArgs& args) { args.soft_cap = 5.0f; }));
  EXPECT_FALSE(fits_with([](AttentionArgs& args) { args.pages.block_bytes += 48; }));
}

}  // namespace
}  // namespace baton::cuda
