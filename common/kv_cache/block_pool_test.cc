#include "common/kv_cache/block_pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

namespace baton {
namespace {

using testing::IsEmpty;
using testing::SizeIs;

PrefixHash HashOf(TokenId token) { return ChainHash({}, std::vector<TokenId>{token}); }

TEST(BlockPoolTest, AcquireIsAllOrNothing) {
  BlockPool pool(4);

  const auto refused = pool.Acquire(5);

  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(pool.counts().free, 4u);
}

TEST(BlockPoolTest, LastReleaseOfAnUnindexedBlockFreesIt) {
  BlockPool pool(2);
  const BlockId block = pool.Acquire(1).value()[0];
  pool.Reference(block);

  pool.Release(block);
  EXPECT_EQ(pool.counts().in_use, 1u);
  pool.Release(block);

  EXPECT_EQ(pool.counts().free, 2u);
  pool.CheckInvariants();
}

TEST(BlockPoolTest, IndexedBlockIsCachedAndFoundAgain) {
  BlockPool pool(2);
  const BlockId block = pool.Acquire(1).value()[0];
  ASSERT_TRUE(pool.Publish(HashOf(1), block));
  pool.Release(block);
  ASSERT_EQ(pool.counts().cached, 1u);

  const std::vector<PrefixHash> hashes = {HashOf(1), HashOf(2)};
  EXPECT_EQ(pool.PeekPrefix(hashes), 1u);
  EXPECT_THAT(pool.TakePrefix(hashes), testing::ElementsAre(block));

  EXPECT_EQ(pool.counts().in_use, 1u);
  pool.CheckInvariants();
}

TEST(BlockPoolTest, EvictsTheOldestCachedBlockOnlyWhenFreeOnesRunOut) {
  BlockPool pool(2);
  const std::vector<BlockId> blocks = pool.Acquire(2).value();
  ASSERT_TRUE(pool.Publish(HashOf(1), blocks[0]));
  ASSERT_TRUE(pool.Publish(HashOf(2), blocks[1]));
  pool.Release(blocks[0]);
  pool.Release(blocks[1]);

  EXPECT_THAT(pool.Acquire(1).value(), testing::ElementsAre(blocks[0]));

  EXPECT_THAT(pool.TakePrefix(std::vector{HashOf(1)}), IsEmpty());
  EXPECT_THAT(pool.TakePrefix(std::vector{HashOf(2)}), SizeIs(1));
}

TEST(BlockPoolTest, QuarantinedBlockIsNotHandedOut) {
  BlockPool pool(1);
  const BlockId block = pool.Acquire(1).value()[0];
  pool.StartReceiving(block);
  pool.Quarantine(block);

  EXPECT_FALSE(pool.Acquire(1).ok());

  pool.ReleaseQuarantined(block);
  EXPECT_TRUE(pool.Acquire(1).ok());
}

TEST(BlockPoolDeathTest, ReleasingABlockThatIsReceivingAborts) {
  BlockPool pool(1);
  const BlockId block = pool.Acquire(1).value()[0];
  pool.StartReceiving(block);

  EXPECT_DEATH(pool.Release(block), "kInUse");
}

TEST(BlockPoolDeathTest, ReleasingTwiceAborts) {
  BlockPool pool(1);
  const BlockId block = pool.Acquire(1).value()[0];
  pool.Release(block);

  EXPECT_DEATH(pool.Release(block), "kInUse");
}

TEST(BlockTableTest, GivesItsBlocksBack) {
  BlockPool pool(3);
  {
    BlockTable table(&pool);
    table.Append(pool.Acquire(3).value());
    BlockTable moved = std::move(table);
    EXPECT_EQ(moved.size(), 3u);
  }
  EXPECT_EQ(pool.counts().free, 3u);
}

TEST(BlockTableTest, GivesLeadingBlocksBackEarlyAndKeepsTheirPlaces) {
  BlockPool pool(4);
  const std::vector<BlockId> blocks = pool.Acquire(4).value();
  ASSERT_TRUE(pool.Publish(HashOf(1), blocks[0]));
  BlockTable table(&pool);
  table.Append(blocks);

  table.ReleaseBefore(2);
  table.ReleaseBefore(1);  // Nothing is left to do.

  EXPECT_THAT(table.blocks(), testing::ElementsAre(kNoBlock, kNoBlock, blocks[2], blocks[3]));
  EXPECT_EQ(pool.counts().cached, 1u);
  EXPECT_EQ(pool.counts().free, 1u);
  EXPECT_EQ(pool.counts().in_use, 2u);
  BlockTable moved = std::move(table);
  EXPECT_THAT(moved.Detach(3), testing::ElementsAre(blocks[3]));
  moved.Clear();
  EXPECT_EQ(moved.size(), 0u);
  EXPECT_EQ(pool.counts().in_use, 1u);  // Which Detach gave away.
  pool.CheckInvariants();
}

TEST(BlockTableDeathTest, DetachingWhatWasReleasedAborts) {
  BlockPool pool(2);
  BlockTable table(&pool);
  table.Append(pool.Acquire(2).value());
  table.ReleaseBefore(1);

  EXPECT_DEATH(table.Detach(0), "released_");
}

// Goal: the ledger holds whatever order holders come and go in.
// Method: random legal operations, with a recount after each.
class BlockPoolRandomTest : public testing::TestWithParam<uint32_t> {};

TEST_P(BlockPoolRandomTest, LedgerHoldsAfterEveryStep) {
  std::mt19937 random(GetParam());
  BlockPool pool(16);
  std::vector<BlockId> held;
  std::vector<BlockId> receiving;
  std::vector<BlockId> quarantined;
  const auto take = [&random](std::vector<BlockId>& from) {
    const size_t i = random() % from.size();
    const BlockId block = from[i];
    from.erase(from.begin() + static_cast<std::ptrdiff_t>(i));
    return block;
  };
  TokenId next_token = 0;
  for (int step = 0; step < 2000; ++step) {
    switch (random() % 8) {
      case 0:
        if (auto blocks = pool.Acquire(1 + static_cast<uint32_t>(random() % 3)); blocks.ok()) {
          held.insert(held.end(), blocks->begin(), blocks->end());
        }
        break;
      case 1:
      case 2:
        if (!held.empty()) pool.Release(take(held));
        break;
      case 3:
        if (auto block = pool.Acquire(1); block.ok()) {
          pool.StartReceiving((*block)[0]);
          receiving.push_back((*block)[0]);
        }
        break;
      case 4:
        if (!receiving.empty()) {
          held.push_back(take(receiving));
          pool.FinishReceiving(held.back());
        }
        break;
      case 5:
        if (!receiving.empty()) {
          quarantined.push_back(take(receiving));
          pool.Quarantine(quarantined.back());
        }
        break;
      case 6:
        if (!quarantined.empty()) pool.ReleaseQuarantined(take(quarantined));
        break;
      case 7:
        if (!held.empty()) pool.Publish(HashOf(next_token++), held[random() % held.size()]);
        if (next_token > 0) {
          const std::vector<PrefixHash> wanted = {
              HashOf(static_cast<TokenId>(random()) % next_token)};
          for (BlockId block : pool.TakePrefix(wanted)) held.push_back(block);
        }
        break;
    }
    pool.CheckInvariants();
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, BlockPoolRandomTest, testing::Range(0u, 20u));

TEST(PrefixIndexTest, HashDependsOnEverythingBefore) {
  const std::vector<TokenId> first = {1, 2, 3, 4};
  const std::vector<TokenId> second = {9, 2, 3, 4};

  const auto a = ChainHashes(first, 2);
  const auto b = ChainHashes(second, 2);

  EXPECT_FALSE(a[1] == b[1]);
}

// Goal: nobody can write a prompt that is taken for another one's beginning. Method: two blocks
// that were made to have the same XXH3 (128 bits), from its source and without a search: where half
// of a number equals a constant of XXH3, the other half is multiplied by zero. A hash that is quick
// to compute and no more would not do.
TEST(PrefixIndexTest, BlocksThatAreMadeToCollideAreToldApart) {
  std::vector<TokenId> first(16);
  first[8] = 1950746808;
  first[9] = -1910225929;
  first[12] = -378678050;
  first[13] = -610824061;
  std::vector<TokenId> second = first;
  second[10] = 7;
  second[14] = -27;
  second[15] = -1;

  EXPECT_FALSE(ChainHashes(first, 16)[0] == ChainHashes(second, 16)[0]);
}

TEST(PrefixIndexTest, BlocksHashedOneByOneGiveTheSameChain) {
  const std::vector<TokenId> tokens = {1, 2, 3, 4};

  const auto chain = ChainHashes(tokens, 2);

  const PrefixHash first = ChainHash({}, std::vector<TokenId>{1, 2});
  EXPECT_TRUE(chain[0] == first);
  EXPECT_TRUE(chain[1] == ChainHash(first, std::vector<TokenId>{3, 4}));
}

TEST(PrefixIndexTest, OnlyFullBlocksAreHashed) {
  EXPECT_THAT(ChainHashes(std::vector<TokenId>{1, 2, 3}, 2), SizeIs(1));
}

}  // namespace
}  // namespace baton
