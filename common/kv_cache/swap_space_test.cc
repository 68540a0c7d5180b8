#include "common/kv_cache/swap_space.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <utility>
#include <vector>

namespace baton {
namespace {

constexpr KvLayout kLayout = {
    .layers = 3, .kv_heads = 2, .head_dim = 8, .block_tokens = 4, .dtype = DType::kF32};

class SwapSpaceTest : public testing::TestWithParam<uint32_t> {
 protected:
  static constexpr uint32_t kBlocks = 16;

  SwapSpaceTest() {
    std::vector<Device*> shards;
    for (uint32_t i = 0; i < GetParam(); ++i) {
      devices.push_back(MakeHostDevice());
      shards.push_back(devices.back().get());
    }
    arena = KvArena::Create(shards, kLayout, kBlocks).value();
  }

  // As if it were the KV of block `name`.
  void Write(BlockId block, uint32_t name) {
    for (uint32_t shard = 0; shard < arena->shard_count(); ++shard) {
      std::memset(arena->BlockData(block, shard), static_cast<int>(2 * name + shard),
                  arena->shard_layout().block_bytes());
    }
  }
  bool Holds(BlockId block, uint32_t name) const {
    for (uint32_t shard = 0; shard < arena->shard_count(); ++shard) {
      const std::byte* data = arena->BlockData(block, shard);
      for (size_t i = 0; i < arena->shard_layout().block_bytes(); ++i) {
        if (data[i] != static_cast<std::byte>(2 * name + shard)) return false;
      }
    }
    return true;
  }

  std::vector<std::unique_ptr<Device>> devices;
  std::unique_ptr<KvArena> arena;
};

TEST_P(SwapSpaceTest, BlocksComeBackAsTheyWentWhereverTheyLieThen) {
  const auto space = SwapSpace::Create(*arena, 12 * kLayout.block_bytes()).value();
  std::mt19937 random(3);
  const auto below = [&random](uint32_t bound) { return static_cast<uint32_t>(random() % bound); };
  // Sequences come and go, so that free places are scattered.
  struct Kept {
    SwappedBlocks blocks;
    std::vector<uint32_t> names;
  };
  std::vector<Kept> kept;
  uint32_t next_name = 1;
  for (int round = 0; round < 200; ++round) {
    std::vector<BlockId> blocks;
    std::vector<uint32_t> names;
    for (uint32_t i = 0, count = 1 + below(5); i < count; ++i) {
      blocks.push_back(BlockId{3 * i + below(3)});
      names.push_back(next_name = next_name % 100 + 1);
      Write(blocks.back(), names.back());
    }
    absl::StatusOr<SwappedBlocks> swapped = space->SwapOut(blocks);
    if (swapped.ok()) {
      kept.push_back({*std::move(swapped), names});
      continue;
    }
    EXPECT_EQ(swapped.status().code(), absl::StatusCode::kResourceExhausted);
    std::swap(kept[below(static_cast<uint32_t>(kept.size()))], kept.back());
    const Kept back = std::move(kept.back());
    kept.pop_back();
    const uint32_t first = below(back.blocks.size());
    std::vector<BlockId> to;
    for (uint32_t i = first; i < back.blocks.size(); ++i) to.push_back(BlockId{kBlocks - 1 - i});
    ASSERT_TRUE(space->SwapIn(back.blocks, first, to).ok());
    for (uint32_t i = 0; i < to.size(); ++i) EXPECT_TRUE(Holds(to[i], back.names[first + i]));
  }

  kept.clear();
  EXPECT_EQ(space->blocks_used(), 0u);
}

INSTANTIATE_TEST_SUITE_P(Shards, SwapSpaceTest, testing::Values(1u, 2u));

TEST(SwapSpaceCreateTest, MustHoldOneBlock) {
  const std::unique_ptr<Device> device = MakeHostDevice();
  const auto arena = KvArena::Create(*device, kLayout, 2).value();

  EXPECT_EQ(SwapSpace::Create(*arena, kLayout.block_bytes() - 1).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(SwapSpace::Create(*arena, 3 * kLayout.block_bytes()).value()->blocks_total(), 3u);
}

}  // namespace
}  // namespace baton
