// Goal: KV passes between workers whatever the number of devices that each of them has its heads
// on. Method: real senders and receivers; what has landed is compared head by head, and what was
// not sent is as it was.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <utility>
#include <vector>

#include "common/kv_transfer/kv_pieces.h"
#include "common/kv_transfer/kv_receiver.h"
#include "common/kv_transfer/kv_sender.h"
#include "common/kv_transfer/testing/handoff_rig.h"
#include "common/transport/testing/inproc_transport.h"

namespace baton {
namespace {

constexpr KvLayout kLayout = {
    .layers = 3, .kv_heads = 4, .head_dim = 8, .block_tokens = 4, .dtype = DType::kBF16};
constexpr uint32_t kBlockCount = 12;
constexpr uint32_t kHeld = 4;
constexpr uint32_t kPrompt = 18;

// Room for one message of PassAll, and not for two.
constexpr size_t kStagingBytes = 1280;

// An arena with a shard on each of several devices.
struct ShardedRig {
  explicit ShardedRig(uint32_t shards, Memory memory = Memory::kHost,
                      size_t staging_bytes = kStagingBytes) {
    std::vector<Device*> borrowed;
    for (uint32_t i = 0; i < shards; ++i) {
      devices.push_back(memory == Memory::kHost ? MakeHostDevice()
                                                : std::make_unique<GuardedDevice>());
      borrowed.push_back(devices.back().get());
    }
    arena = KvArena::Create(borrowed, kLayout, kBlockCount).value();
    staging = KvStaging::Create(*arena, staging_bytes, StagingOf(memory)).value();
  }

  // Of guarded devices all together.
  uint64_t copies(uint64_t (GuardedDevice::*count)() const) const {
    uint64_t sum = 0;
    for (const auto& device : devices) sum += (dynamic_cast<GuardedDevice&>(*device).*count)();
    return sum;
  }
  size_t shard_bytes() const { return arena->shard_layout().block_bytes() * kBlockCount; }
  void FillRandomly(uint64_t seed) {
    std::mt19937_64 random(seed);
    Write([&] { return static_cast<std::byte>(random()); });
  }
  void Fill(std::byte value) {
    Write([value] { return value; });
  }
  template <typename NextByte>
  void Write(NextByte next) {
    std::vector<std::byte> data(shard_bytes());
    for (uint32_t shard = 0; shard < arena->shard_count(); ++shard) {
      std::generate(data.begin(), data.end(), next);
      BATON_CHECK_OK(devices[shard]->CopyFromHost(arena->BlockData(BlockId{0}, shard), data.data(),
                                                  data.size()));
    }
  }
  // Bytes that differ from `value`.
  size_t CountOthers(std::byte value) const {
    std::vector<std::byte> data(shard_bytes());
    size_t count = 0;
    for (uint32_t shard = 0; shard < arena->shard_count(); ++shard) {
      BATON_CHECK_OK(devices[shard]->CopyToHost(data.data(), arena->BlockData(BlockId{0}, shard),
                                                data.size()));
      count += data.size() - static_cast<size_t>(std::count(data.begin(), data.end(), value));
    }
    return count;
  }

  std::vector<std::unique_ptr<Device>> devices;
  std::unique_ptr<KvArena> arena;
  std::unique_ptr<KvStaging> staging;
};

struct TestCase {
  uint32_t prefill;  // Devices of each side.
  uint32_t decode;
  Memory prefill_memory;
  Memory decode_memory;
};

class ShardedHandoffTest : public testing::TestWithParam<TestCase> {
 protected:
  ShardedHandoffTest() {
    p_.FillRandomly(1);
    d_.Fill(std::byte{0});
    if (GetParam().prefill_memory == Memory::kGuardedReached ||
        GetParam().decode_memory == Memory::kGuardedReached) {
      network_.CopyWith(GuardedDevice::CopyAnywhere, /*eager_bytes_max=*/200);
    }
  }

  // Passes tokens [kHeld, kPrompt) from P's blocks to D's, in messages of about two layers of a
  // block.
  void PassAll(uint32_t shard_heads) {
    std::unique_ptr<Transport> d_transport = network_.Open("d");
    std::unique_ptr<Transport> p_transport = network_.Open("p");
    KvReceiver receiver(*d_transport, *d_.staging, {}, d_log_.Sink(), [] {});
    KvSender sender(*p_transport, *p_.staging,
                    {.message_bytes_max = 2 * kLayout.layer_bytes() + 100}, p_log_.Sink());
    LeaseGrant grant;
    grant.lease = LeaseId{1};
    grant.epoch = Epoch{1};
    grant.nonce = {1, 2};
    grant.held_tokens = kHeld;
    grant.prompt_tokens = kPrompt;
    grant.blocks = target_;
    Ticket ticket = TicketFor(grant, kLayout, d_transport->address());
    ticket.shard_heads = shard_heads;
    Instant now = Instant() + std::chrono::hours(1);

    receiver.Open(grant);
    sender.Begin(TransferId{1}, ticket, source_, {}, now);
    for (const IndexRange& tokens : {IndexRange{0, 9}, IndexRange{9, kPrompt}}) {
      for (uint32_t layer = 0; layer < kLayout.layers; ++layer) {
        sender.Push(TransferId{1}, {layer, layer + 1}, tokens, now);
      }
    }
    sender.Commit(TransferId{1}, {}, now);
    for (int tick = 0; tick < 1000 && p_log_.Count<TransferReleased>() == 0; ++tick) {
      now += std::chrono::milliseconds(1);
      receiver.Tick(now);
      sender.Tick(now);
      d_transport->Poll();
      p_transport->Poll();
    }
    messages_ = sender.counters().messages;
    d_transport.reset();
    p_transport.reset();
  }

  ShardedRig p_{GetParam().prefill, GetParam().prefill_memory};
  ShardedRig d_{GetParam().decode, GetParam().decode_memory};
  InprocNetwork network_;
  EventLog d_log_;
  EventLog p_log_;
  const std::vector<BlockId> source_ = Blocks({7, 8, 2, 11, 0});
  const std::vector<BlockId> target_ = Blocks({3, 4, 5, 1, 9});
  uint64_t messages_ = 0;
};

std::vector<TestCase> TestCases() {
  std::vector<TestCase> cases;
  constexpr std::pair<Memory, Memory> kMemories[] = {
      {Memory::kHost, Memory::kHost},
      {Memory::kGuarded, Memory::kGuarded},
      {Memory::kGuardedReached, Memory::kGuardedReached},
      {Memory::kGuarded, Memory::kGuardedReached},
      {Memory::kGuardedReached, Memory::kGuarded},
  };
  for (const auto& [p_memory, d_memory] : kMemories) {
    for (const uint32_t prefill : {1, 2, 4}) {
      for (const uint32_t decode : {1, 2, 4}) {
        cases.push_back({prefill, decode, p_memory, d_memory});
      }
    }
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Degrees, ShardedHandoffTest, testing::ValuesIn(TestCases()),
                         [](const auto& test) {
                           return std::to_string(test.param.prefill) + "To" +
                                  std::to_string(test.param.decode) +
                                  MemoryName(test.param.prefill_memory) +
                                  MemoryName(test.param.decode_memory);
                         });

bool PieceIsEqual(const KvArena& a, const std::vector<BlockId>& blocks_a, const KvArena& b,
                  const std::vector<BlockId>& blocks_b, const KvPiece& piece) {
  for (uint32_t layer = piece.layers.begin; layer < piece.layers.end; ++layer) {
    for (uint32_t head = piece.heads.begin; head < piece.heads.end; ++head) {
      for (uint32_t token = piece.tokens.begin; token < piece.tokens.end; ++token) {
        const uint32_t block = token / kLayout.block_tokens;
        const uint32_t row = token % kLayout.block_tokens;
        for (const bool value : {false, true}) {
          if (RowOf(a, blocks_a[block], layer, value, head, row) !=
              RowOf(b, blocks_b[block], layer, value, head, row)) {
            return false;
          }
        }
      }
    }
  }
  return true;
}

TEST_P(ShardedHandoffTest, EveryHeadArrives) {
  PassAll(d_.arena->shard_layout().kv_heads);

  EXPECT_EQ(d_log_.Count<LeaseFilled>(), 1u);
  EXPECT_EQ(p_log_.Count<TransferAcked>(), 1u);
  for (uint32_t token = kHeld; token < kPrompt; ++token) {
    EXPECT_TRUE(TokenIsEqual(*p_.arena, source_, *d_.arena, target_, token)) << token;
  }
  EXPECT_LE(d_.CountOthers(std::byte{0}), (kPrompt - kHeld) * kLayout.token_bytes())
      << "something landed elsewhere";
  // To look at what is in memory of a GPU takes more of them.
  if (GetParam().prefill_memory == Memory::kGuarded) {
    EXPECT_EQ(p_.copies(&GuardedDevice::gathers), messages_);
  }
  if (GetParam().decode_memory == Memory::kGuarded) {
    EXPECT_EQ(d_.copies(&GuardedDevice::scatters), messages_);
  }
}

// A sender that does not know of D's devices. Through memory of the host its heads find theirs.
TEST_P(ShardedHandoffTest, HeadsOfSeveralDevicesInOneMessageAreRefusedIfTheyCannotBeStaged) {
  PassAll(/*shard_heads=*/0);

  const bool refused =
      GetParam().decode_memory == Memory::kGuardedReached && GetParam().decode > GetParam().prefill;
  EXPECT_EQ(d_log_.Count<LeaseFilled>(), refused ? 0u : 1u);
  EXPECT_EQ(d_log_.Count<LeaseFailed>(), refused ? 1u : 0u);
  EXPECT_EQ(p_log_.Count<TransferReleased>(), 1u);
  EXPECT_EQ(d_.staging->bytes_used(), 0u);
}

// Method: random pieces, out of one arena and into the other.
TEST_P(ShardedHandoffTest, BothSidesHaveOneWireOrder) {
  constexpr size_t kPlenty = size_t{1} << 16;
  ShardedRig p(GetParam().prefill, GetParam().prefill_memory, kPlenty);
  ShardedRig d(GetParam().decode, GetParam().decode_memory, kPlenty);
  p.FillRandomly(1);
  int passed = 0;
  std::mt19937 random(3);
  const auto draw = [&](uint32_t end) {
    const auto a = static_cast<uint32_t>(random() % end);
    const auto b = static_cast<uint32_t>(random() % end);
    return IndexRange{std::min(a, b), std::max(a, b) + 1};
  };
  for (int i = 0; i < 200 && passed < 50; ++i) {
    const KvPiece piece = {draw(kLayout.layers), draw(kPrompt), draw(kLayout.kv_heads)};
    if (!p.staging->Takes(piece) || !d.staging->Takes(piece)) continue;
    ++passed;
    d.Fill(std::byte{0});

    const StagedPiece out = p.staging->Take(source_, piece).value();
    const StagedPiece in = d.staging->Take(target_, piece).value();
    ASSERT_TRUE(p.staging->Fetch(out).ok());
    std::vector<std::byte> wire(PieceBytes(kLayout, piece));
    std::byte* next = wire.data();
    for (const MutableSpan& span : out.wire) {
      GuardedDevice::CopyAnywhere(next, span.data(), span.size());
      next += span.size();
    }
    ASSERT_EQ(next, wire.data() + wire.size());
    next = wire.data();
    for (const MutableSpan& span : in.wire) {
      GuardedDevice::CopyAnywhere(span.data(), next, span.size());
      next += span.size();
    }
    ASSERT_TRUE(d.staging->Store(in).ok());
    p.staging->Release(out);
    d.staging->Release(in);

    ASSERT_EQ(next, wire.data() + wire.size());
    EXPECT_TRUE(PieceIsEqual(*p.arena, source_, *d.arena, target_, piece));
    EXPECT_LE(d.CountOthers(std::byte{0}), wire.size()) << "something landed elsewhere";
  }
  EXPECT_GT(passed, 20);
}

TEST(ShardedPieceTest, HeadsOfOneShardAreOneRun) {
  const ShardedRig one(1);
  const ShardedRig two(2);
  const KvPiece layer = {{0, 1}, {0, 4}, {0, 4}};

  EXPECT_EQ(PieceSpans(*one.arena, Blocks({0}), layer).size(), 1u);
  EXPECT_EQ(PieceSpans(*two.arena, Blocks({0}), layer).size(), 2u * 2u);
}

}  // namespace
}  // namespace baton
