#include "common/kv_transfer/kv_staging.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <vector>

#include "common/kv_transfer/kv_pieces.h"
#include "common/kv_transfer/testing/handoff_rig.h"

namespace baton {
namespace {

// One layer of one block: 256 bytes.
KvPiece Layers(uint32_t count) { return {{0, count}, {0, 4}, {0, 2}}; }

TEST(KvStagingTest, PiecesOfTheHostStayInTheirBlocks) {
  ArenaRig rig(SmallLayout(), 8);

  const std::optional<StagedPiece> piece = rig.staging->Take(Blocks({3}), Layers(3));

  EXPECT_FALSE(rig.staging->is_pinned());
  EXPECT_EQ(rig.staging->bytes_total(), 0u);
  ASSERT_TRUE(piece.has_value());
  EXPECT_EQ(piece->host[0].data(), rig.arena->BlockData(BlockId{3}));
  EXPECT_TRUE(rig.staging->Fetch(*piece).ok());
  EXPECT_TRUE(rig.staging->Store(*piece).ok());
  rig.staging->Release(*piece);
}

TEST(KvStagingTest, LessThanOneLayerOfABlockIsRefused) {
  GuardedDevice device;
  const auto arena = KvArena::Create(device, SmallLayout(), 8).value();

  EXPECT_TRUE(KvStaging::Create(*arena, 256).ok());
  EXPECT_EQ(KvStaging::Create(*arena, 255).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(KvStagingTest, NoMoreIsTakenThanThereIs) {
  ArenaRig rig(SmallLayout(), 8, Memory::kGuarded, 1024);
  const auto a = rig.staging->Take(Blocks({0}), Layers(3));
  const auto b = rig.staging->Take(Blocks({0}), Layers(1));
  ASSERT_TRUE(a && b);
  EXPECT_EQ(rig.staging->bytes_used(), 1024u);
  EXPECT_FALSE(rig.staging->Take(Blocks({0}), Layers(1)).has_value());

  rig.staging->Release(*a);

  const auto c = rig.staging->Take(Blocks({0}), Layers(2));
  EXPECT_TRUE(c.has_value());
  EXPECT_FALSE(rig.staging->Take(Blocks({0}), Layers(2)).has_value());
}

class KvStagingRandomTest : public testing::TestWithParam<uint64_t> {
 protected:
  uint32_t Draw(uint32_t end) { return static_cast<uint32_t>(random_() % end); }
  KvPiece DrawPiece() {
    const IndexRange layers = {Draw(2), 2 + Draw(2)};
    const uint32_t token = Draw(20);
    const uint32_t head = Draw(2);
    return {layers, {token, token + 1 + Draw(12)}, {head, head + 1 + Draw(2 - head)}};
  }
  std::mt19937_64 random_{GetParam()};
};
INSTANTIATE_TEST_SUITE_P(Seeds, KvStagingRandomTest, testing::Range<uint64_t>(0, 30));

// Method: pieces of all shapes, whole blocks and parts, out of one arena and into another.
TEST_P(KvStagingRandomTest, BytesPassThroughUnchangedAndTouchNothingElse) {
  ArenaRig p(SmallLayout(), 8, Memory::kGuarded), d(SmallLayout(), 8, Memory::kGuarded);
  p.FillRandomly(GetParam());
  d.Fill(std::byte{0xee});
  std::vector<std::byte> expected = d.Copy();
  const std::vector<std::byte> source = p.Copy();
  const std::vector<BlockId> from = Blocks({4, 0, 6, 1, 2, 7, 3, 5});
  const std::vector<BlockId> to = Blocks({1, 5, 6, 7, 0, 3, 2, 4});
  const KvPiece piece = DrawPiece();
  const auto out = p.staging->Take(from, piece).value();
  const auto in = d.staging->Take(to, piece).value();

  ASSERT_TRUE(p.staging->Fetch(out).ok());
  ASSERT_EQ(out.host[0].size(), in.host[0].size());
  std::memcpy(in.host[0].data(), out.host[0].data(), in.host[0].size());
  ASSERT_TRUE(d.staging->Store(in).ok());

  const auto sources = PieceSpans(*p.arena, from, piece), targets = PieceSpans(*d.arena, to, piece);
  std::vector<size_t> read, written;
  for (const MutableSpan& span : sources) {
    for (size_t i = 0; i < span.size(); ++i) {
      read.push_back(static_cast<size_t>(span.data() + i - p.arena->BlockData(BlockId{0})));
    }
  }
  for (const MutableSpan& span : targets) {
    for (size_t i = 0; i < span.size(); ++i) {
      written.push_back(static_cast<size_t>(span.data() + i - d.arena->BlockData(BlockId{0})));
    }
  }
  ASSERT_EQ(read.size(), written.size());
  for (size_t i = 0; i < read.size(); ++i) expected[written[i]] = source[read[i]];
  EXPECT_EQ(d.Copy(), expected);
}

// Goal: runs never overlap, and all of it comes back whole.
TEST_P(KvStagingRandomTest, RunsAreApartAndJoinAgain) {
  ArenaRig rig(SmallLayout(), 8, Memory::kGuarded, 8192);
  const std::vector<BlockId> blocks = Blocks({0, 1, 2, 3, 4, 5, 6, 7});
  std::vector<StagedPiece> taken;
  for (int i = 0; i < 300; ++i) {
    if (random_() % 3 != 0) {
      const auto piece = rig.staging->Take(blocks, DrawPiece());
      if (piece) taken.push_back(*piece);
    } else if (!taken.empty()) {
      const auto which = taken.begin() + Draw(static_cast<uint32_t>(taken.size()));
      rig.staging->Release(*which);
      taken.erase(which);
    }
    for (size_t a = 0; a < taken.size(); ++a) {
      for (size_t b = 0; b < a; ++b) {
        const MutableSpan &x = taken[a].host[0], &y = taken[b].host[0];
        ASSERT_TRUE(x.data() + x.size() <= y.data() || y.data() + y.size() <= x.data());
      }
    }
    ASSERT_LE(rig.staging->bytes_used(), 8192u);
  }
  for (const StagedPiece& piece : taken) rig.staging->Release(piece);

  EXPECT_EQ(rig.staging->bytes_used(), 0u);
  EXPECT_TRUE(rig.staging->Take(blocks, {{0, 3}, {0, 32}, {0, 2}}).has_value())
      << "6144 bytes in one run";
}

}  // namespace
}  // namespace baton
