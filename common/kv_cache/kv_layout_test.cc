#include "common/kv_cache/kv_layout.h"

#include <gtest/gtest.h>

#include <set>

#include "common/kv_cache/kv_arena.h"

namespace baton {
namespace {

constexpr KvLayout kLayout = {
    .layers = 3, .kv_heads = 2, .head_dim = 8, .block_tokens = 4, .dtype = DType::kF32};

TEST(KvLayoutTest, RowsTileABlockInWireOrder) {
  size_t expected = 0;
  for (uint32_t layer = 0; layer < kLayout.layers; ++layer) {
    for (const bool value : {false, true}) {
      for (uint32_t head = 0; head < kLayout.kv_heads; ++head) {
        for (uint32_t token = 0; token < kLayout.block_tokens; ++token) {
          EXPECT_EQ(kLayout.OffsetOf(layer, value, head, token), expected);
          expected += kLayout.row_bytes();
        }
      }
    }
  }
  EXPECT_EQ(kLayout.block_bytes(), expected);
}

TEST(KvLayoutTest, FingerprintSeesEveryField) {
  std::set<uint64_t> fingerprints = {kLayout.Fingerprint()};
  KvLayout other = kLayout;
  other.layers = 4;
  fingerprints.insert(other.Fingerprint());
  other = kLayout;
  other.kv_heads = 3;
  fingerprints.insert(other.Fingerprint());
  other = kLayout;
  other.head_dim = 9;
  fingerprints.insert(other.Fingerprint());
  other = kLayout;
  other.block_tokens = 5;
  fingerprints.insert(other.Fingerprint());
  other = kLayout;
  other.dtype = DType::kBF16;
  fingerprints.insert(other.Fingerprint());

  EXPECT_EQ(fingerprints.size(), 6u);
}

TEST(KvLayoutTest, CountsBlocksUpwards) {
  EXPECT_EQ(kLayout.BlocksFor(0), 0u);
  EXPECT_EQ(kLayout.BlocksFor(1), 1u);
  EXPECT_EQ(kLayout.BlocksFor(4), 1u);
  EXPECT_EQ(kLayout.BlocksFor(5), 2u);
}

TEST(KvArenaTest, BlocksLieOneAfterTheOther) {
  std::unique_ptr<Device> device = MakeHostDevice();
  const auto arena = KvArena::Create(*device, kLayout, 3).value();

  EXPECT_EQ(arena->BlockData(BlockId{1}), arena->BlockData(BlockId{0}) + kLayout.block_bytes());
  EXPECT_EQ(arena->RowData(BlockId{2}, 1, true, 1, 3),
            arena->BlockData(BlockId{2}) + kLayout.OffsetOf(1, true, 1, 3));
}

TEST(KvArenaTest, EachDeviceHasItsHeadsOfEveryBlock) {
  const std::unique_ptr<Device> devices[] = {MakeHostDevice(), MakeHostDevice()};
  Device* const both[] = {devices[0].get(), devices[1].get()};
  const auto arena = KvArena::Create(both, kLayout, 3).value();
  const KvLayout& shard = arena->shard_layout();

  EXPECT_EQ(arena->shard_count(), 2u);
  EXPECT_EQ(arena->layout(), kLayout);
  EXPECT_EQ(shard.kv_heads, 1u);
  EXPECT_EQ(arena->BlockData(BlockId{1}, 1), arena->BlockData(BlockId{0}, 1) + shard.block_bytes());
  EXPECT_EQ(arena->RowData(BlockId{2}, 1, true, 0, 3),
            arena->BlockData(BlockId{2}, 0) + shard.OffsetOf(1, true, 0, 3));
  EXPECT_EQ(arena->RowData(BlockId{2}, 1, true, 1, 3),
            arena->BlockData(BlockId{2}, 1) + shard.OffsetOf(1, true, 0, 3));
}

TEST(KvArenaTest, HeadsThatDoNotDivideAreRefused) {
  const std::unique_ptr<Device> device = MakeHostDevice();
  Device* const three[] = {device.get(), device.get(), device.get()};

  EXPECT_EQ(KvArena::Create(three, kLayout, 1).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace baton
