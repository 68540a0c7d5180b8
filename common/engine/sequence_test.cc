#include "common/engine/sequence.h"

#include <gtest/gtest.h>

#include <numeric>

namespace baton {
namespace {

constexpr uint32_t kBlockTokens = 4;

Sequence MakeSequence(uint32_t token_count) {
  Sequence sequence;
  sequence.tokens.resize(token_count);
  std::iota(sequence.tokens.begin(), sequence.tokens.end(), 0);
  sequence.prompt_tokens = token_count;
  return sequence;
}

void ComputeAll(BlockPool& pool, Sequence& sequence) {
  ASSERT_TRUE(ReserveBlocks(pool, kBlockTokens, sequence.token_count(), sequence).ok());
  sequence.computed = sequence.token_count();
  PublishFullBlocks(pool, kBlockTokens, sequence);
}

TEST(SequenceTest, SecondSequenceFindsTheFullBlocksOfTheFirst) {
  BlockPool pool(16);
  Sequence first = MakeSequence(10);
  TakeCachedPrefix(pool, kBlockTokens, first);
  EXPECT_EQ(first.cached_tokens, 0u);
  ComputeAll(pool, first);

  Sequence second = MakeSequence(10);
  TakeCachedPrefix(pool, kBlockTokens, second);

  EXPECT_EQ(second.cached_tokens, 8u);
  EXPECT_EQ(second.pending(), 2u);
  EXPECT_EQ(second.blocks.blocks()[0], first.blocks.blocks()[0]);
}

TEST(SequenceTest, LastTokenIsNeverTakenFromTheCache) {
  BlockPool pool(16);
  Sequence first = MakeSequence(8);
  TakeCachedPrefix(pool, kBlockTokens, first);
  ComputeAll(pool, first);

  Sequence second = MakeSequence(8);
  TakeCachedPrefix(pool, kBlockTokens, second);

  EXPECT_EQ(second.cached_tokens, 4u);
}

TEST(SequenceTest, ReserveIsAllOrNothing) {
  BlockPool pool(2);
  Sequence sequence = MakeSequence(12);

  EXPECT_EQ(ReserveBlocks(pool, kBlockTokens, 12, sequence).code(),
            absl::StatusCode::kResourceExhausted);

  EXPECT_EQ(pool.counts().free, 2u);
}

TEST(SequenceTest, BlocksGoBackWithTheSequenceAndFullOnesStayCached) {
  BlockPool pool(4);
  {
    Sequence sequence = MakeSequence(6);
    TakeCachedPrefix(pool, kBlockTokens, sequence);
    ComputeAll(pool, sequence);
  }

  EXPECT_EQ(pool.counts().cached, 1u);
  EXPECT_EQ(pool.counts().free, 3u);
}

}  // namespace
}  // namespace baton
