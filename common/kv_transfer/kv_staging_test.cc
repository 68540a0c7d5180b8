#include "common/kv_transfer/kv_staging.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <tuple>
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

  EXPECT_EQ(rig.staging->memory(), StagingMemory::kNone);
  EXPECT_EQ(rig.staging->bytes_total(), 0u);
  ASSERT_TRUE(piece.has_value());
  EXPECT_EQ(piece->wire[0].data(), rig.arena->BlockData(BlockId{3}));
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

// A layer of a block has 256 bytes, half of them on each GPU.
TEST(KvStagingTest, EachGpuHasABufferForItsHeads) {
  GuardedDevice first, second;
  Device* const both[] = {&first, &second};
  const auto arena = KvArena::Create(both, SmallLayout(), 8).value();
  const auto staging = KvStaging::Create(*arena, 1024, StagingMemory::kDevice).value();
  const KvPiece of_first = {{0, 3}, {0, 8}, {0, 1}};  // 768 bytes.
  const KvPiece of_second = {{0, 3}, {0, 8}, {1, 2}};
  EXPECT_EQ(staging->buffers().size(), 2u);
  EXPECT_EQ(staging->bytes_total(), 2048u);
  EXPECT_FALSE(staging->Takes({{0, 1}, {0, 4}, {0, 2}})) << "heads of both";
  EXPECT_FALSE(staging->Takes({{0, 3}, {0, 12}, {0, 1}})) << "1152 bytes";

  const auto a = staging->Take(Blocks({0, 1}), of_first);
  EXPECT_FALSE(staging->Take(Blocks({2, 3}), of_first).has_value());
  const auto b = staging->Take(Blocks({0, 1}), of_second);

  ASSERT_TRUE(a && b);
  EXPECT_EQ(staging->bytes_used(), 1536u);
  for (const StagedPiece& piece : {*a, *b}) ASSERT_TRUE(staging->Fetch(piece).ok());
  EXPECT_EQ(first.gathers(), 1u);
  EXPECT_EQ(second.gathers(), 1u);
  staging->Release(*b);
  EXPECT_TRUE(staging->Take(Blocks({2, 3}), of_second).has_value());
}

TEST(KvStagingTest, WhatIsOfNoBlocksTakesBuffersInTurn) {
  GuardedDevice first, second;
  Device* const both[] = {&first, &second};
  const auto arena = KvArena::Create(both, SmallLayout(), 8).value();
  const auto staging = KvStaging::Create(*arena, 1024, StagingMemory::kDevice).value();

  for (const uint32_t buffer : {0u, 1u, 0u}) EXPECT_EQ(staging->TakeBytes(256)->buffer, buffer);
}

TEST(KvStagingTest, ABufferOfOneGpuNeedsRoomForItsHeadsAlone) {
  KvLayout layout = SmallLayout();
  layout.head_dim = 16;  // A layer of a block: 512 bytes.
  GuardedDevice first, second;
  Device* const both[] = {&first, &second};
  const auto arena = KvArena::Create(both, layout, 8).value();

  EXPECT_TRUE(KvStaging::Create(*arena, 256, StagingMemory::kDevice).ok());
  EXPECT_FALSE(KvStaging::Create(*arena, 256, StagingMemory::kPinned).ok());
}

TEST(KvStagingTest, OnTheHostAllIsCheckedAndOnTheGpuTheBeginning) {
  ArenaRig host(SmallLayout(), 8), pinned(SmallLayout(), 8, Memory::kGuarded),
      reached(SmallLayout(), 8, Memory::kGuardedReached);

  EXPECT_EQ(host.staging->CheckedBytes(1 << 20), 1u << 20);
  EXPECT_EQ(pinned.staging->CheckedBytes(1 << 20), 1u << 20);
  EXPECT_EQ(reached.staging->CheckedBytes(1 << 20), KvStaging::kCheckedBytesOnDevice);
  EXPECT_EQ(reached.staging->CheckedBytes(256), 256u);
}

// Longer than what is brought to the host at once.
TEST(KvStagingTest, ChecksumsAreEqualWhereverThePieceIs) {
  const KvLayout layout = {
      .layers = 3, .kv_heads = 2, .head_dim = 64, .block_tokens = 256, .dtype = DType::kBF16};
  const KvPiece piece = {{0, 3}, {0, 8 * 256}, {0, 2}};
  const size_t bytes = PieceBytes(layout, piece);
  ASSERT_GT(bytes, size_t{2} << 20);
  for (const uint64_t checked : {uint64_t{1}, uint64_t{70000}, uint64_t{bytes / 2 - 1}, bytes}) {
    std::vector<uint64_t> checksums;
    for (const Memory memory : {Memory::kHost, Memory::kGuarded, Memory::kGuardedReached}) {
      ArenaRig rig(layout, 8, memory, size_t{8} << 20);
      rig.FillRandomly(3);
      const auto staged = rig.staging->Take(Blocks({4, 0, 6, 1, 2, 7, 3, 5}), piece).value();
      ASSERT_TRUE(rig.staging->Fetch(staged).ok());
      checksums.push_back(rig.staging->Checksum(staged, checked).value());
    }
    EXPECT_EQ(checksums[1], checksums[0]) << checked;
    EXPECT_EQ(checksums[2], checksums[0]) << checked;
  }
}

TEST(KvStagingTest, WhatCameThroughTheTransportsMemoryLands) {
  ArenaRig rig(SmallLayout(), 8, Memory::kGuardedReached);
  const std::vector<std::byte> payload(768, std::byte{0x5a});
  const auto staged = rig.staging->Take(Blocks({3}), Layers(3)).value();

  ASSERT_TRUE(rig.staging->Land(staged, payload).ok());
  ASSERT_TRUE(rig.staging->Store(staged).ok());

  const std::vector<std::byte> all = rig.Copy();
  EXPECT_EQ(std::count(all.begin(), all.end(), std::byte{0x5a}), 768);
}

class KvStagingRandomTest : public testing::TestWithParam<std::tuple<Memory, uint64_t>> {
 protected:
  static Memory memory() { return std::get<0>(GetParam()); }
  static uint64_t seed() { return std::get<1>(GetParam()); }
  uint32_t Draw(uint32_t end) { return static_cast<uint32_t>(random_() % end); }
  KvPiece DrawPiece() {
    const IndexRange layers = {Draw(2), 2 + Draw(2)};
    const uint32_t token = Draw(20);
    const uint32_t head = Draw(2);
    return {layers, {token, token + 1 + Draw(12)}, {head, head + 1 + Draw(2 - head)}};
  }
  std::mt19937_64 random_{seed()};
};
INSTANTIATE_TEST_SUITE_P(Seeds, KvStagingRandomTest,
                         testing::Combine(testing::Values(Memory::kGuarded,
                                                          Memory::kGuardedReached),
                                          testing::Range<uint64_t>(0, 30)));

// Method: pieces of all shapes, whole blocks and parts, out of one arena and into another.
TEST_P(KvStagingRandomTest, BytesPassThroughUnchangedAndTouchNothingElse) {
  ArenaRig p(SmallLayout(), 8, memory()), d(SmallLayout(), 8, memory());
  p.FillRandomly(seed());
  d.Fill(std::byte{0xee});
  std::vector<std::byte> expected = d.Copy();
  const std::vector<std::byte> source = p.Copy();
  const std::vector<BlockId> from = Blocks({4, 0, 6, 1, 2, 7, 3, 5});
  const std::vector<BlockId> to = Blocks({1, 5, 6, 7, 0, 3, 2, 4});
  const KvPiece piece = DrawPiece();
  const auto out = p.staging->Take(from, piece).value();
  const auto in = d.staging->Take(to, piece).value();

  ASSERT_TRUE(p.staging->Fetch(out).ok());
  ASSERT_EQ(out.wire[0].size(), in.wire[0].size());
  GuardedDevice::CopyAnywhere(in.wire[0].data(), out.wire[0].data(), in.wire[0].size());
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
  ArenaRig rig(SmallLayout(), 8, memory(), 8192);
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
        const MutableSpan &x = taken[a].wire[0], &y = taken[b].wire[0];
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
