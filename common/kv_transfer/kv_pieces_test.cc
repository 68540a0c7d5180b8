#include "common/kv_transfer/kv_pieces.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>
#include <tuple>
#include <vector>

#include "common/kv_transfer/testing/handoff_rig.h"

namespace baton {
namespace {

TEST(KvPiecesTest, WholeBlocksOfAllLayersAreOneRunEach) {
  const ArenaRig rig(SmallLayout(), 8);
  const KvPiece piece = {{0, 3}, {0, 8}, {0, 2}};

  EXPECT_EQ(PieceSpans(*rig.arena, Blocks({5, 2}), piece).size(), 2u);
  EXPECT_EQ(PieceSpans(*rig.arena, Blocks({4, 5}), piece).size(), 1u) << "neighbours are joined";
}

TEST(KvPiecesTest, APartialBlockIsOneRunPerHead) {
  const ArenaRig rig(SmallLayout(), 8);

  EXPECT_EQ(PieceSpans(*rig.arena, Blocks({0}), {{1, 2}, {1, 3}, {0, 2}}).size(), 2u * 2u);
  EXPECT_EQ(PieceSpans(*rig.arena, Blocks({0}), {{0, 1}, {0, 4}, {1, 2}}).size(), 2u);
}

TEST(KvPiecesTest, APieceMustLieWithinLayoutAndTokens) {
  const KvLayout layout = SmallLayout();
  const IndexRange tokens = {4, 10};
  EXPECT_TRUE(PieceFits(layout, tokens, {{0, 3}, {4, 10}, {0, 2}}));
  EXPECT_FALSE(PieceFits(layout, tokens, {{0, 4}, {4, 10}, {0, 2}}));
  EXPECT_FALSE(PieceFits(layout, tokens, {{0, 3}, {3, 10}, {0, 2}}));
  EXPECT_FALSE(PieceFits(layout, tokens, {{0, 3}, {4, 11}, {0, 2}}));
  EXPECT_FALSE(PieceFits(layout, tokens, {{0, 3}, {4, 10}, {0, 3}}));
  EXPECT_FALSE(PieceFits(layout, tokens, {{2, 2}, {4, 10}, {0, 2}}));
}

class KvPiecesRandomTest : public testing::TestWithParam<uint64_t> {
 protected:
  IndexRange Draw(uint32_t end) {
    const auto a = static_cast<uint32_t>(random_() % end);
    const auto b = static_cast<uint32_t>(random_() % end);
    return {std::min(a, b), std::max(a, b) + 1};
  }
  std::mt19937_64 random_{GetParam()};
};
INSTANTIATE_TEST_SUITE_P(Seeds, KvPiecesRandomTest, testing::Range<uint64_t>(0, 50));

// Method: walk the wire order row by row, as the layout's comment spells it, and compare.
TEST_P(KvPiecesRandomTest, SpansFollowTheWireOrderAndCountEveryByte) {
  const KvLayout layout = SmallLayout();
  const ArenaRig rig(layout, 8);
  std::vector<BlockId> blocks = Blocks({0, 1, 2, 3, 4, 5, 6, 7});
  std::shuffle(blocks.begin(), blocks.end(), random_);
  const KvPiece piece = {Draw(layout.layers), Draw(8 * layout.block_tokens), Draw(layout.kv_heads)};

  std::vector<const std::byte*> rows;
  for (uint32_t block = 0; block < 8; ++block) {
    for (uint32_t layer = piece.layers.begin; layer < piece.layers.end; ++layer) {
      for (const bool value : {false, true}) {
        for (uint32_t head = piece.heads.begin; head < piece.heads.end; ++head) {
          for (uint32_t row = 0; row < layout.block_tokens; ++row) {
            const uint32_t token = block * layout.block_tokens + row;
            if (token < piece.tokens.begin || token >= piece.tokens.end) continue;
            rows.push_back(rig.arena->RowData(blocks[block], layer, value, head, row));
          }
        }
      }
    }
  }
  std::vector<const std::byte*> in_spans;
  for (const MutableSpan& span : PieceSpans(*rig.arena, blocks, piece)) {
    ASSERT_EQ(span.size() % layout.row_bytes(), 0u);
    for (size_t at = 0; at < span.size(); at += layout.row_bytes()) {
      in_spans.push_back(span.data() + at);
    }
  }

  EXPECT_EQ(in_spans, rows);
  EXPECT_EQ(PieceBytes(layout, piece), rows.size() * layout.row_bytes());
}

TEST_P(KvPiecesRandomTest, SplitPiecesCoverThePushOnceWithinTheBound) {
  const KvLayout layout = SmallLayout();
  const KvPiece push = {Draw(layout.layers), Draw(100), Draw(layout.kv_heads)};
  const size_t unit = push.heads.count() * 2 * layout.head_bytes();
  const size_t bytes_max = unit * (1 + random_() % 20) + random_() % unit;

  const std::vector<KvPiece> pieces = SplitPush(layout, push, bytes_max);

  std::set<std::pair<uint32_t, uint32_t>> seen;
  for (const KvPiece& piece : pieces) {
    EXPECT_EQ(piece.heads, push.heads);
    EXPECT_LE(PieceBytes(layout, piece), bytes_max);
    for (uint32_t layer = piece.layers.begin; layer < piece.layers.end; ++layer) {
      for (uint32_t token = piece.tokens.begin; token < piece.tokens.end; ++token) {
        EXPECT_TRUE(seen.emplace(layer, token).second);
      }
    }
  }
  EXPECT_EQ(seen.size(), size_t{push.layers.count()} * push.tokens.count());
}

// Method: against a set of cells.
TEST_P(KvPiecesRandomTest, CoverageRefusesExactlyTheOverlaps) {
  const KvLayout layout = SmallLayout();
  KvCoverage coverage(layout, {0, 40});
  std::set<std::tuple<uint32_t, uint32_t, uint32_t>> taken;
  for (int i = 0; i < 100; ++i) {
    KvPiece piece = {Draw(layout.layers), Draw(40), Draw(layout.kv_heads)};
    piece.tokens.end = std::min(piece.tokens.end, piece.tokens.begin + 6);
    std::set<std::tuple<uint32_t, uint32_t, uint32_t>> cells;
    for (uint32_t layer = piece.layers.begin; layer < piece.layers.end; ++layer) {
      for (uint32_t head = piece.heads.begin; head < piece.heads.end; ++head) {
        for (uint32_t token = piece.tokens.begin; token < piece.tokens.end; ++token) {
          cells.emplace(layer, head, token);
        }
      }
    }
    const bool overlaps = std::any_of(cells.begin(), cells.end(),
                                      [&](const auto& cell) { return taken.count(cell) > 0; });

    EXPECT_EQ(KvCoverage::CellsOf(piece), cells.size());
    EXPECT_EQ(coverage.Claim(piece), !overlaps);
    if (!overlaps) taken.insert(cells.begin(), cells.end());
  }
  EXPECT_EQ(coverage.cells(), 3u * 2u * 40u);
}

TEST(KvPiecesTest, TheChecksumDependsOnBytesAndTheirOrderNotOnTheSplit) {
  std::vector<std::byte> bytes(100);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i);
  const MutableSpan all(bytes);
  const std::vector<MutableSpan> one = {all};
  const std::vector<MutableSpan> two = {all.first(33), all.subspan(33)};
  const std::vector<MutableSpan> swapped = {all.subspan(33), all.first(33)};

  EXPECT_EQ(ChecksumOf(one), ChecksumOf(two));
  EXPECT_NE(ChecksumOf(one), ChecksumOf(swapped));
}

}  // namespace
}  // namespace baton
