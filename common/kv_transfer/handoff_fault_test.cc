// Real senders and receivers over a network that delays, reorders, hangs and breaks.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <random>
#include <set>
#include <tuple>
#include <vector>

#include "common/kv_transfer/kv_receiver.h"
#include "common/kv_transfer/kv_sender.h"
#include "common/kv_transfer/testing/handoff_rig.h"
#include "common/transport/testing/faulty_transport.h"
#include "common/transport/testing/inproc_transport.h"

namespace baton {
namespace {

constexpr uint32_t kBlockCount = 48;
constexpr int kSequences = 6;
constexpr uint32_t kEpochsMax = 4;
constexpr int kTicksMax = 20'000;
// Where memory is guarded: two or three messages at once, less than the window.
constexpr size_t kStagingBytes = 2048;

// One sequence: at P its source, at D a lease that is tried again, with fresh blocks, until it is
// filled or the tries are used up.
struct Sequence {
  LeaseId lease{};
  uint32_t held = 0, prompt = 0;
  std::vector<BlockId> source;
  uint32_t epoch = 0;
  LeaseGrant grant;      // Of the current epoch.
  bool settled = false;  // Nothing more is tried.
  bool filled = false;
  int acked = 0, ended = 0, released = 0, begun = 0;
  std::map<TransferId, int> ends, releases;
};

// The whole handoff in one thread: D's blocks, leases and quarantine as a decode worker would keep
// them, P's pushes as an engine would make them, drawn from the seed.
class HandoffWorld {
 public:
  HandoffWorld(uint64_t seed, const FaultOptions& faults, Memory memory)
      : random_(seed),
        network_(MakeFaultyDelivery(faults)),
        p_(SmallLayout(), kBlockCount, memory, kStagingBytes),
        d_(SmallLayout(), kBlockCount, memory, kStagingBytes),
        d_transport_(network_.Open("d")),
        p_transport_(network_.Open("p")),
        receiver_(
            *d_transport_, *d_.staging, {}, [this](TransferEvent event) { OnD(event); }, [] {}),
        sender_(*p_transport_, *p_.staging,
                {.in_flight_bytes_max = 3000,
                 .message_bytes_max = 700,
                 .transfer_deadline = std::chrono::seconds(3)},
                [this](TransferEvent event) { OnP(event); }) {
    network_.CopyWith(GuardedDevice::CopyAnywhere, /*eager_bytes_max=*/400);
    p_.FillRandomly(seed);
    d_.Fill(std::byte{0xee});
    shadow_ = d_.Copy();
    p_transport_->OnPeerLost(
        [this](PeerId peer, const absl::Status& status) { sender_.OnPeerLost(peer, status); });
    for (uint32_t i = 0; i < kBlockCount; ++i) free_.insert(BlockId{i});
  }
  ~HandoffWorld() {
    p_transport_.reset();
    d_transport_.reset();
  }

  void Run() {
    for (int i = 0; i < kSequences; ++i) Admit(i);
    for (int tick = 0; !AtRest(); ++tick) {
      ASSERT_LT(tick, kTicksMax) << "a handoff is stuck";
      now_ += std::chrono::milliseconds(1);
      Act();
      receiver_.Tick(now_);
      sender_.Tick(now_);
      d_transport_->Poll();
      p_transport_->Poll();
      CheckFreeBlocksAreUntouched();
    }
  }

  void CheckRest() {
    EXPECT_EQ(free_.size(), kBlockCount) << "blocks did not come home";
    EXPECT_EQ(receiver_.open_count(), 0u);
    EXPECT_EQ(receiver_.posted_count(), 0u);
    EXPECT_EQ(sender_.in_flight_bytes(), 0u);
    EXPECT_EQ(p_.staging->bytes_used() + d_.staging->bytes_used(), 0u);
    for (const Sequence& sequence : sequences_) {
      for (const auto& [id, count] : sequence.ends) EXPECT_EQ(count, 1);
      for (const auto& [id, count] : sequence.releases) EXPECT_EQ(count, 1);
      EXPECT_EQ(sequence.releases.size(), static_cast<size_t>(sequence.begun));
    }
  }
  int filled() const { return filled_; }

 private:
  void Admit(int index) {
    Sequence sequence;
    sequence.lease = LeaseId{static_cast<uint64_t>(index) + 1};
    sequence.prompt = 2 + static_cast<uint32_t>(random_() % 14);
    sequence.held = 4 * static_cast<uint32_t>(random_() % ((sequence.prompt + 3) / 4));
    for (uint32_t i = 0; i < SmallLayout().BlocksFor(sequence.prompt); ++i) {
      sequence.source.push_back(BlockId{static_cast<uint32_t>(random_() % kBlockCount)});
    }
    sequences_.push_back(std::move(sequence));
    Reopen(sequences_.back());
  }

  // A new epoch takes fresh blocks at once; those of the last one wait for its quiescence.
  void Reopen(Sequence& sequence) {
    const uint32_t needed = SmallLayout().BlocksFor(sequence.prompt);
    if (sequence.epoch == kEpochsMax || free_.size() < needed) {
      sequence.settled = true;
      return;
    }
    LeaseGrant grant;
    grant.lease = sequence.lease;
    grant.epoch = Epoch{++sequence.epoch};
    grant.nonce = {random_(), random_()};
    grant.held_tokens = sequence.held;
    grant.prompt_tokens = sequence.prompt;
    for (uint32_t i = 0; i < needed; ++i) {
      const auto pick = std::next(free_.begin(), static_cast<int>(random_() % free_.size()));
      grant.blocks.push_back(*pick);
      free_.erase(pick);
    }
    sequence.grant = grant;
    held_by_[{grant.lease, grant.epoch}] = grant.blocks;
    receiver_.Open(grant);
    Push(sequence);
  }

  // Layer by layer and chunk by chunk, in any order.
  void Push(Sequence& sequence) {
    const TransferId id{++last_transfer_};
    owner_[id] = static_cast<size_t>(&sequence - sequences_.data());
    ++sequence.begun;
    Ticket ticket = TicketFor(sequence.grant, SmallLayout(), d_transport_->address());
    sender_.Begin(id, ticket, sequence.source, {}, now_);
    std::vector<std::pair<uint32_t, IndexRange>> pushes;
    const auto cut = static_cast<uint32_t>(random_() % (sequence.prompt + 1));
    for (uint32_t layer = 0; layer < 3; ++layer) {
      pushes.push_back({layer, {0, cut}});
      pushes.push_back({layer, {cut, sequence.prompt}});
    }
    std::shuffle(pushes.begin(), pushes.end(), random_);
    for (const auto& [layer, tokens] : pushes) {
      sender_.Push(id, {layer, layer + 1}, tokens, now_);
    }
    if (random_() % 8 == 0) return sender_.Abort(id, now_);
    CommittedToken token;
    token.token = static_cast<TokenId>(Raw(sequence.lease));
    sender_.Commit(id, token, now_);
  }

  // What a router would do to a lease now and then: give it up or ask for a new attempt.
  void Act() {
    for (Sequence& sequence : sequences_) {
      if (sequence.settled || random_() % 400 != 0) continue;
      Retire(sequence);
      if (random_() % 2 == 0) {
        sequence.settled = true;
      } else {
        Reopen(sequence);
      }
    }
    std::vector<std::pair<size_t, bool>> due;
    due.swap(due_);
    for (const auto& [index, again] : due) {
      Sequence& sequence = sequences_[index];
      if (sequence.settled) continue;
      Retire(sequence);
      if (again) {
        Reopen(sequence);
      } else {
        sequence.settled = true;
      }
    }
  }
  void Retire(Sequence& sequence) { receiver_.Retire(sequence.lease, sequence.grant.epoch, now_); }

  Sequence* Current(LeaseId lease, Epoch epoch) {
    Sequence& sequence = sequences_[Raw(lease) - 1];
    return sequence.grant.epoch == epoch && !sequence.settled ? &sequence : nullptr;
  }

  void OnD(const TransferEvent& event) {
    if (const auto* filled = std::get_if<LeaseFilled>(&event)) {
      Sequence* sequence = Current(filled->lease, filled->epoch);
      ASSERT_NE(sequence, nullptr);
      EXPECT_FALSE(sequence->filled);
      EXPECT_EQ(filled->first_token.token, static_cast<TokenId>(Raw(filled->lease)));
      sequence->filled = true;
      ++filled_;
      for (uint32_t token = sequence->held; token < sequence->prompt; ++token) {
        EXPECT_TRUE(
            TokenIsEqual(*p_.arena, sequence->source, *d_.arena, sequence->grant.blocks, token));
      }
      due_.push_back({Raw(filled->lease) - 1, false});
    } else if (const auto* failed = std::get_if<LeaseFailed>(&event)) {
      EXPECT_TRUE(failed->retryable) << failed->status;
      if (Current(failed->lease, failed->epoch)) due_.push_back({Raw(failed->lease) - 1, true});
    } else if (const auto* aborted = std::get_if<LeaseAborted>(&event)) {
      if (Current(aborted->lease, aborted->epoch)) due_.push_back({Raw(aborted->lease) - 1, true});
    } else if (const auto* quiesced = std::get_if<LeaseQuiesced>(&event)) {
      const auto found = held_by_.find({quiesced->lease, quiesced->epoch});
      ASSERT_NE(found, held_by_.end()) << "quiesced twice";
      for (const BlockId block : found->second) {
        EXPECT_TRUE(free_.insert(block).second);
        // What is in it now must stay until somebody takes it.
        BATON_CHECK_OK(d_.device->CopyToHost(Shadow(block), d_.arena->BlockData(block),
                                             SmallLayout().block_bytes()));
      }
      held_by_.erase(found);
    }
  }

  void OnP(const TransferEvent& event) {
    if (const auto* acked = std::get_if<TransferAcked>(&event)) {
      Sequence& sequence = sequences_[owner_.at(acked->id)];
      ++sequence.ends[acked->id];
      EXPECT_EQ(sequence.releases.count(acked->id), 0u);
      EXPECT_TRUE(sequence.filled);
    } else if (const auto* failed = std::get_if<TransferFailed>(&event)) {
      Sequence& sequence = sequences_[owner_.at(failed->id)];
      EXPECT_TRUE(failed->retryable) << failed->status;
      ++sequence.ends[failed->id];
      EXPECT_EQ(sequence.releases.count(failed->id), 0u);
      lost_.push_back(failed->id);
    } else if (const auto* released = std::get_if<TransferReleased>(&event)) {
      ++sequences_[owner_.at(released->id)].releases[released->id];
    }
  }

  bool AtRest() {
    // A push that failed at P alone is learnt by D's side from the router: tried again, or not.
    for (const TransferId id : std::exchange(lost_, {})) {
      Sequence& sequence = sequences_[owner_.at(id)];
      if (!sequence.settled && !sequence.filled && owner_.rbegin()->first != TransferId{}) {
        due_.push_back({owner_.at(id), true});
      }
    }
    std::sort(due_.begin(), due_.end());
    due_.erase(std::unique(due_.begin(), due_.end(),
                           [](const auto& a, const auto& b) { return a.first == b.first; }),
               due_.end());
    const bool settled = std::all_of(sequences_.begin(), sequences_.end(),
                                     [](const Sequence& s) { return s.settled; });
    return settled && due_.empty() && sender_.open_count() == 0 && receiver_.open_count() == 0;
  }

  std::byte* Shadow(BlockId block) {
    return shadow_.data() + Raw(block) * SmallLayout().block_bytes();
  }
  void CheckFreeBlocksAreUntouched() {
    const std::vector<std::byte> blocks = d_.Copy();
    for (const BlockId block : free_) {
      const std::byte* data = blocks.data() + Raw(block) * SmallLayout().block_bytes();
      ASSERT_EQ(std::memcmp(Shadow(block), data, SmallLayout().block_bytes()), 0)
          << "something landed in free block " << Raw(block);
    }
  }

  std::mt19937_64 random_;
  InprocNetwork network_;
  ArenaRig p_, d_;
  std::vector<std::byte> shadow_;  // What free blocks of D hold.
  std::unique_ptr<Transport> d_transport_, p_transport_;
  KvReceiver receiver_;
  KvSender sender_;
  Instant now_ = Instant() + std::chrono::hours(1);
  std::vector<Sequence> sequences_ = [] {
    std::vector<Sequence> reserved;
    reserved.reserve(kSequences);  // Pointers into it are taken.
    return reserved;
  }();
  std::set<BlockId> free_;
  std::map<std::pair<LeaseId, Epoch>, std::vector<BlockId>> held_by_;
  std::map<TransferId, size_t> owner_;
  std::vector<TransferId> lost_;
  std::vector<std::pair<size_t, bool>> due_;  // Retire this sequence's epoch; and try again?
  uint64_t last_transfer_ = 0;
  int filled_ = 0;
};

class HandoffFaultTest : public testing::TestWithParam<std::tuple<Memory, uint64_t>> {
 protected:
  static void Run(Memory memory, uint64_t seed) {
    FaultOptions faults;
    faults.seed = seed;
    faults.never_fraction = seed % 3 == 0 ? 0.02 : 0;
    faults.break_fraction = seed % 4 == 0 ? 0.03 : 0;
    HandoffWorld world(seed, faults, memory);

    world.Run();

    world.CheckRest();
  }
};
INSTANTIATE_TEST_SUITE_P(Seeds, HandoffFaultTest,
                         testing::Combine(testing::Values(Memory::kHost, Memory::kGuarded,
                                                          Memory::kGuardedReached),
                                          testing::Range<uint64_t>(0, 300)));

// Goal: whatever the network does, every transfer ends once and is released once, blocks come home,
// filled leases hold the very bytes, and nothing lands in a block after its epoch has quiesced.
TEST_P(HandoffFaultTest, EndsOnceBringsBlocksHomeAndLandsNowhereElse) {
  Run(std::get<0>(GetParam()), std::get<1>(GetParam()));
}

TEST(HandoffCalmTest, WithoutFaultsMostLeasesAreFilled) {
  FaultOptions calm;
  calm.late_fraction = 0;
  for (const Memory memory : {Memory::kHost, Memory::kGuarded, Memory::kGuardedReached}) {
    int filled = 0;
    for (uint64_t seed = 0; seed < 20; ++seed) {
      HandoffWorld world(seed, calm, memory);
      world.Run();
      world.CheckRest();
      filled += world.filled();
    }
    EXPECT_GT(filled, 20 * kSequences * 3 / 4);
  }
}

}  // namespace
}  // namespace baton
