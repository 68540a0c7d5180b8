// D's side alone: the other side is scripted message by message.
#include "common/kv_transfer/kv_receiver.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>

#include "common/kv_transfer/testing/handoff_rig.h"
#include "common/transport/testing/inproc_transport.h"
#include "common/transport/testing/polling.h"

namespace baton {
namespace {

// Payloads stand still while `hung`.
class HangingDelivery final : public DeliveryPolicy {
 public:
  explicit HangingDelivery(const bool* hung) : hung_(hung) {}
  uint64_t HeaderDelay(const std::string&, const std::string&) override { return 0; }
  uint64_t PayloadDelay(const std::string&, const std::string&) override {
    return *hung_ ? kNeverDelivered : 0;
  }
  bool Breaks(const std::string&, const std::string&) override { return false; }

 private:
  const bool* const hung_;
};

class KvReceiverTest : public testing::TestWithParam<Memory> {
 protected:
  static constexpr uint32_t kHeld = 4, kPrompt = 10;

  explicit KvReceiverTest(size_t staging_bytes = 1 << 16)
      : arena_(SmallLayout(), 8, GetParam(), staging_bytes),
        d_(network_.Open("d")),
        p_(network_.Open("p")),
        receiver_(*d_, *arena_.staging, {}, log_.Sink(),
                  [this] {
                    ++catch_ups_;
                    if (catch_up_) catch_up_();
                  }),
        peer_(p_->Connect(d_->address()).value()) {
    network_.CopyWith(GuardedDevice::CopyAnywhere, /*eager_bytes_max=*/0);
    source_.FillRandomly(1);
    arena_.Fill(std::byte{0xee});
    p_->OnMessage(static_cast<MessageType>(HandoffType::kAck), [this](const IncomingMessage& m) {
      EXPECT_TRUE(DecodeAck(m.header).has_value());
      ++acks_;
      return std::nullopt;
    });
    p_->OnMessage(static_cast<MessageType>(HandoffType::kNak), [this](const IncomingMessage& m) {
      naks_.push_back(DecodeNak(m.header).value().reason);
      return std::nullopt;
    });
  }
  ~KvReceiverTest() override {
    p_.reset();
    d_.reset();
  }

  LeaseGrant Grant(uint32_t epoch = 1) {
    LeaseGrant grant;
    grant.lease = LeaseId{7};
    grant.nonce = {1, epoch};
    grant.epoch = Epoch{epoch};
    grant.blocks = epoch == 1 ? Blocks({3, 1, 6}) : Blocks({3, 2, 4});
    grant.held_tokens = kHeld;
    grant.prompt_tokens = kPrompt;
    return grant;
  }
  static EpochName Name(const LeaseGrant& grant, uint32_t rank = 0) {
    return {grant.lease, grant.nonce, grant.epoch, rank};
  }
  KvMessage Kv(const EpochName& name, const KvPiece& piece) {
    const std::vector<MutableSpan> spans = PieceSpans(*source_.arena, source_blocks_, piece);
    const uint64_t bytes = PieceBytes(source_.arena->layout(), piece);
    return {name, piece, bytes, bytes, ChecksumOf(spans)};
  }
  void SendKv(const KvMessage& message) { SendKv(message, message.piece); }
  void SendKv(const KvMessage& message, const KvPiece& payload) {
    const std::vector<MutableSpan> spans = PieceSpans(*source_.arena, source_blocks_, payload);
    Send(HandoffType::kKv, Encode(message), {spans.begin(), spans.end()});
  }
  void SendAll(const EpochName& name) {
    for (uint32_t layer = 0; layer < 3; ++layer) {
      SendKv(Kv(name, {{layer, layer + 1}, {kHeld, kPrompt}, {0, 2}}));
    }
  }
  CommitMessage Commit(const EpochName& name, uint64_t messages = 3) {
    const KvPiece all = {{0, 3}, {kHeld, kPrompt}, {0, 2}};
    return {name, 1, messages, PieceBytes(SmallLayout(), all), {42, 0, "lp"}};
  }
  void SendCommit(const CommitMessage& message) { Send(HandoffType::kCommit, Encode(message), {}); }
  void Send(HandoffType type, const std::vector<std::byte>& header,
            std::vector<ConstSpan> payload) {
    p_->Send(peer_, static_cast<MessageType>(type), header, std::move(payload),
             [this](const absl::Status&) { ++sent_; });
  }
  void Settle() {
    for (int i = 0; i < 20; ++i) {
      p_->Poll();
      d_->Poll();
    }
  }
  bool Arrived(const LeaseGrant& grant) {
    for (uint32_t token = kHeld; token < kPrompt; ++token) {
      if (!TokenIsEqual(*source_.arena, source_blocks_, *arena_.arena, grant.blocks, token)) {
        return false;
      }
    }
    return true;
  }

  bool hung_ = false;
  InprocNetwork network_{std::make_unique<HangingDelivery>(&hung_)};
  ArenaRig source_{SmallLayout(), 8}, arena_;
  const std::vector<BlockId> source_blocks_ = Blocks({0, 5, 2});
  EventLog log_;
  int catch_ups_ = 0, acks_ = 0, sent_ = 0;
  std::function<void()> catch_up_;
  std::vector<NakReason> naks_;
  std::unique_ptr<Transport> d_, p_;
  KvReceiver receiver_;
  PeerId peer_;
  const Instant start_ = Instant() + std::chrono::hours(1);
};

const auto kMemories = testing::Values(Memory::kHost, Memory::kGuarded, Memory::kGuardedReached);
const auto kMemoryNames = [](const auto& test) { return MemoryName(test.param); };
INSTANTIATE_TEST_SUITE_P(Memories, KvReceiverTest, kMemories, kMemoryNames);

TEST_P(KvReceiverTest, FullCoverageAndCommitFillTheLease) {
  receiver_.Open(Grant());
  SendAll(Name(Grant()));
  SendCommit(Commit(Name(Grant())));
  Settle();

  ASSERT_EQ(log_.Count<LeaseFilled>(), 1u);
  EXPECT_EQ(log_.Of<LeaseFilled>()[0].first_token, (CommittedToken{42, 0, "lp"}));
  EXPECT_EQ(acks_, 1);
  EXPECT_TRUE(Arrived(Grant()));
  // The held block, those of nobody, and the rows behind the prompt are as they were.
  const std::vector<std::byte> all = arena_.Copy();
  const size_t block_bytes = SmallLayout().block_bytes();
  const std::vector<std::byte> untouched(block_bytes, std::byte{0xee});
  for (const uint32_t block : {3u, 0u, 2u, 4u, 5u, 7u}) {
    EXPECT_EQ(std::memcmp(all.data() + block * block_bytes, untouched.data(), block_bytes), 0)
        << block;
  }
  const std::vector<std::byte> row(SmallLayout().row_bytes(), std::byte{0xee});
  EXPECT_EQ(RowOf(*arena_.arena, BlockId{6}, 0, false, 0, 2), row);
}

TEST_P(KvReceiverTest, ACommitThatOvertakesTheBytesWaitsForThem) {
  receiver_.Open(Grant());
  SendCommit(Commit(Name(Grant())));
  Settle();
  EXPECT_TRUE(log_.all().empty());

  SendAll(Name(Grant()));
  Settle();

  EXPECT_EQ(log_.Count<LeaseFilled>(), 1u);
}

TEST_P(KvReceiverTest, ARepeatedCommitIsAcknowledgedAgain) {
  receiver_.Open(Grant());
  SendAll(Name(Grant()));
  SendCommit(Commit(Name(Grant())));
  Settle();
  SendCommit(Commit(Name(Grant())));
  Settle();

  EXPECT_EQ(acks_, 2);
  EXPECT_EQ(log_.Count<LeaseFilled>(), 1u);
}

TEST_P(KvReceiverTest, AnUnknownLeaseIsRefusedAndAnswered) {
  SendAll(Name(Grant()));
  SendCommit(Commit(Name(Grant())));
  Settle();

  EXPECT_EQ(receiver_.counters().refused_unknown_lease, 4u);
  EXPECT_EQ(naks_, std::vector<NakReason>{NakReason::kUnknownLease});
  EXPECT_EQ(sent_, 4) << "a refused message still completes for its sender";
  EXPECT_EQ(receiver_.open_count(), 0u);
  EXPECT_EQ(arena_.Copy(), std::vector<std::byte>(arena_.bytes(), std::byte{0xee}));
}

TEST_P(KvReceiverTest, ALeaseOnItsWayIsFoundByCatchingUp) {
  catch_up_ = [this] {
    if (receiver_.open_count() == 0) receiver_.Open(Grant());
  };
  SendAll(Name(Grant()));
  SendCommit(Commit(Name(Grant())));
  Settle();

  EXPECT_EQ(log_.Count<LeaseFilled>(), 1u);
  EXPECT_EQ(catch_ups_, 1);
}

TEST_P(KvReceiverTest, AnotherNonceOrEpochIsStale) {
  receiver_.Open(Grant());
  EpochName other_nonce = Name(Grant());
  other_nonce.nonce.low ^= 1;
  EpochName other_epoch = Name(Grant());
  other_epoch.epoch = Epoch{9};
  SendKv(Kv(other_nonce, {{0, 1}, {kHeld, kPrompt}, {0, 2}}));
  SendKv(Kv(other_epoch, {{0, 1}, {kHeld, kPrompt}, {0, 2}}));
  SendCommit(Commit(other_nonce));
  Settle();

  EXPECT_EQ(receiver_.counters().refused_stale, 3u);
  EXPECT_EQ(naks_, std::vector<NakReason>{NakReason::kStale});
  EXPECT_TRUE(log_.all().empty());
}

TEST_P(KvReceiverTest, RowsOutsideTheLeaseAreRefused) {
  receiver_.Open(Grant());
  const EpochName name = Name(Grant());
  SendKv(Kv(name, {{0, 1}, {kHeld - 1, kPrompt}, {0, 2}}));  // Held: somebody may be reading it.
  SendKv(Kv(name, {{0, 1}, {kHeld, kPrompt + 1}, {0, 2}}));
  KvMessage wrong_layer = Kv(name, {{2, 3}, {kHeld, kPrompt}, {0, 2}});
  wrong_layer.piece.layers = {3, 4};
  SendKv(wrong_layer, {{2, 3}, {kHeld, kPrompt}, {0, 2}});
  KvMessage wrong_head = Kv(name, {{2, 3}, {kHeld, kPrompt}, {0, 2}});
  wrong_head.piece.heads = {1, 3};
  SendKv(wrong_head, {{2, 3}, {kHeld, kPrompt}, {0, 2}});
  Settle();

  EXPECT_EQ(receiver_.counters().refused_range, 4u);
  EXPECT_EQ(arena_.Copy(), std::vector<std::byte>(arena_.bytes(), std::byte{0xee}));
}

TEST_P(KvReceiverTest, OverlapsAndWrongSizesAreRefused) {
  receiver_.Open(Grant());
  const EpochName name = Name(Grant());
  SendKv(Kv(name, {{0, 2}, {kHeld, 8}, {0, 2}}));
  SendKv(Kv(name, {{1, 2}, {7, kPrompt}, {1, 2}}));  // Overlaps in one token of one head.
  KvMessage too_small = Kv(name, {{2, 3}, {kHeld, 8}, {0, 2}});
  SendKv(too_small, {{2, 3}, {kHeld, 7}, {0, 2}});
  Settle();

  EXPECT_EQ(receiver_.counters().refused_overlap, 1u);
  EXPECT_EQ(receiver_.counters().refused_size, 1u);
  EXPECT_EQ(receiver_.counters().messages, 1u);
}

TEST_P(KvReceiverTest, MalformedHeadersAreCountedAndChangeNothing) {
  receiver_.Open(Grant());
  for (const HandoffType type : {HandoffType::kKv, HandoffType::kCommit, HandoffType::kAbort}) {
    Send(type, std::vector<std::byte>(20, std::byte{1}), {});
  }
  Settle();

  EXPECT_EQ(receiver_.counters().refused_malformed, 3u);
  EXPECT_TRUE(log_.all().empty());
}

TEST_P(KvReceiverTest, RefusesAChecksumOfNothingOrOfTooMuch) {
  receiver_.Open(Grant());
  KvMessage unchecked = Kv(Name(Grant()), {{0, 1}, {kHeld, kPrompt}, {0, 2}});
  unchecked.checked_bytes = 0;
  KvMessage too_much = Kv(Name(Grant()), {{1, 2}, {kHeld, kPrompt}, {0, 2}});
  ++too_much.checked_bytes;
  SendKv(unchecked);
  SendKv(too_much);
  Settle();

  EXPECT_EQ(receiver_.counters().refused_size, 2u);
  EXPECT_EQ(receiver_.counters().messages, 0u);
}

// A sender whose bytes are on a GPU checks so many.
TEST_P(KvReceiverTest, ChecksNoMoreThanTheSender) {
  receiver_.Open(Grant());
  for (uint32_t layer = 0; layer < 3; ++layer) {
    KvMessage message = Kv(Name(Grant()), {{layer, layer + 1}, {kHeld, kPrompt}, {0, 2}});
    const auto spans = PieceSpans(*source_.arena, source_blocks_, message.piece);
    const MutableSpan ends[] = {spans.front().first(17), spans.back().last(17)};
    message.checked_bytes = 17;
    message.checksum = ChecksumOf(ends);
    SendKv(message);
  }
  SendCommit(Commit(Name(Grant())));
  Settle();

  EXPECT_EQ(receiver_.counters().checksum_mismatches, 0u);
  EXPECT_EQ(acks_, 1);
  EXPECT_TRUE(Arrived(Grant()));
}

TEST_P(KvReceiverTest, DamagedBytesFailTheEpoch) {
  receiver_.Open(Grant());
  KvMessage damaged = Kv(Name(Grant()), {{0, 3}, {kHeld, kPrompt}, {0, 2}});
  damaged.checksum ^= 1;
  SendKv(damaged);
  Settle();
  SendCommit(Commit(Name(Grant()), 1));
  Settle();

  ASSERT_EQ(log_.Count<LeaseFailed>(), 1u);
  EXPECT_TRUE(log_.Of<LeaseFailed>()[0].retryable);
  EXPECT_EQ(naks_, (std::vector<NakReason>{NakReason::kChecksum, NakReason::kChecksum}))
      << "once for the message, once for the commit that came too late";
  EXPECT_EQ(acks_, 0);
  EXPECT_EQ(receiver_.counters().checksum_mismatches, 1u);
}

TEST_P(KvReceiverTest, ACommitWithOtherCountsFailsTheEpoch) {
  receiver_.Open(Grant());
  SendAll(Name(Grant()));
  SendCommit(Commit(Name(Grant()), 4));
  Settle();

  EXPECT_EQ(naks_, std::vector<NakReason>{NakReason::kCountMismatch});
  ASSERT_EQ(log_.Count<LeaseFailed>(), 1u);
  EXPECT_FALSE(log_.Of<LeaseFailed>()[0].retryable);
}

TEST_P(KvReceiverTest, ACommitThatCannotBeCompletedFailsAtOnce) {
  receiver_.Open(Grant());
  SendKv(Kv(Name(Grant()), {{0, 1}, {kHeld, kPrompt}, {0, 2}}));
  SendKv(Kv(Name(Grant()), {{0, 1}, {kHeld, kPrompt}, {0, 2}}));
  SendCommit(Commit(Name(Grant()), 2));
  Settle();

  EXPECT_EQ(naks_, std::vector<NakReason>{NakReason::kIncomplete});
}

TEST_P(KvReceiverTest, TwoRanksFillALeaseTogether) {
  receiver_.Open(Grant());
  for (const uint32_t rank : {1u, 0u}) {
    const EpochName name = Name(Grant(), rank);
    SendKv(Kv(name, {{0, 3}, {kHeld, kPrompt}, {rank, rank + 1}}));
    CommitMessage commit = Commit(name, 1);
    commit.rank_count = 2;
    commit.byte_count /= 2;
    commit.first_token.token = static_cast<TokenId>(rank);
    SendCommit(commit);
    Settle();
    EXPECT_EQ(log_.Count<LeaseFilled>(), rank == 0 ? 1u : 0u);
  }

  EXPECT_EQ(acks_, 2);
  EXPECT_EQ(log_.Of<LeaseFilled>()[0].first_token.token, 0) << "rank 0 says the first token";
  EXPECT_TRUE(Arrived(Grant()));
}

TEST_P(KvReceiverTest, AnAbortEndsTheEpochButNotAFilledOne) {
  receiver_.Open(Grant());
  Send(HandoffType::kAbort, Encode(AbortMessage{Name(Grant())}), {});
  Settle();
  EXPECT_EQ(log_.Count<LeaseAborted>(), 1u);
  SendAll(Name(Grant()));
  Settle();
  EXPECT_EQ(receiver_.counters().refused_stale, 3u);

  receiver_.Retire(LeaseId{7}, Epoch{1}, start_);
  receiver_.Open(Grant(2));
  SendAll(Name(Grant(2)));
  SendCommit(Commit(Name(Grant(2))));
  Settle();
  Send(HandoffType::kAbort, Encode(AbortMessage{Name(Grant(2))}), {});
  Settle();

  EXPECT_EQ(log_.Count<LeaseFilled>(), 1u);
  EXPECT_EQ(log_.Count<LeaseAborted>(), 1u);
}

TEST_P(KvReceiverTest, RetiringAnIdleEpochQuiescesAtOnceAndForgetsIt) {
  receiver_.Open(Grant());
  receiver_.Retire(LeaseId{7}, Epoch{1}, start_);

  EXPECT_EQ(log_.Count<LeaseQuiesced>(), 1u);
  EXPECT_EQ(receiver_.open_count(), 0u);
  EXPECT_EQ(receiver_.next_deadline(), kNever);
}

// Goal: blocks of a retired epoch stay apart until the last posted receive is over, whatever the
// next epoch does meanwhile.
TEST_P(KvReceiverTest, ARetiredEpochQuiescesOnlyWhenItsReceivesAreOver) {
  receiver_.Open(Grant());
  hung_ = true;
  SendAll(Name(Grant()));
  Settle();
  EXPECT_EQ(receiver_.posted_count(), 3u);

  receiver_.Retire(LeaseId{7}, Epoch{1}, start_);
  hung_ = false;
  receiver_.Open(Grant(2));
  SendAll(Name(Grant(2)));
  SendCommit(Commit(Name(Grant(2))));
  Settle();

  EXPECT_EQ(log_.Count<LeaseFilled>(), 1u) << "the next epoch does not wait";
  EXPECT_EQ(log_.Count<LeaseQuiesced>(), 0u);
  EXPECT_EQ(receiver_.next_deadline(), start_ + std::chrono::seconds(2));
  receiver_.Tick(start_ + std::chrono::milliseconds(1999));
  Settle();
  EXPECT_EQ(log_.Count<LeaseQuiesced>(), 0u);

  receiver_.Tick(start_ + std::chrono::seconds(2));
  Settle();

  ASSERT_EQ(log_.Count<LeaseQuiesced>(), 1u);
  EXPECT_EQ(log_.Of<LeaseQuiesced>()[0].epoch, Epoch{1});
  EXPECT_EQ(receiver_.counters().force_closes, 1u);
  EXPECT_EQ(receiver_.posted_count(), 0u);
  EXPECT_TRUE(Arrived(Grant(2)));
}

TEST_P(KvReceiverTest, ARetiredEpochRefusesBytesAndCommits) {
  receiver_.Open(Grant());
  hung_ = true;
  SendKv(Kv(Name(Grant()), {{0, 1}, {kHeld, kPrompt}, {0, 2}}));
  Settle();
  receiver_.Retire(LeaseId{7}, Epoch{1}, start_);
  SendKv(Kv(Name(Grant()), {{1, 2}, {kHeld, kPrompt}, {0, 2}}));
  SendCommit(Commit(Name(Grant())));
  Settle();

  EXPECT_EQ(receiver_.posted_count(), 1u);
  EXPECT_EQ(naks_, std::vector<NakReason>{NakReason::kRetired});
}

TEST_P(KvReceiverTest, ALostPeerFailsTheEpochItWasFilling) {
  receiver_.Open(Grant());
  hung_ = true;
  SendAll(Name(Grant()));
  Settle();

  p_.reset();
  for (int i = 0; i < 10; ++i) d_->Poll();

  ASSERT_EQ(log_.Count<LeaseFailed>(), 1u);
  EXPECT_TRUE(log_.Of<LeaseFailed>()[0].retryable);
  EXPECT_EQ(receiver_.posted_count(), 0u);
  receiver_.Retire(LeaseId{7}, Epoch{1}, start_);
  EXPECT_EQ(log_.Count<LeaseQuiesced>(), 1u);
}

TEST_P(KvReceiverTest, AGrantThatDoesNotFitSaysWhy) {
  const KvArena& arena = *arena_.arena;
  EXPECT_TRUE(KvReceiver::CheckGrant(arena, Grant()).ok());
  LeaseGrant all_held = Grant();
  all_held.held_tokens = all_held.prompt_tokens;
  EXPECT_FALSE(KvReceiver::CheckGrant(arena, all_held).ok());
  LeaseGrant partial = Grant();
  partial.held_tokens = 5;
  EXPECT_FALSE(KvReceiver::CheckGrant(arena, partial).ok());
  LeaseGrant few = Grant();
  few.blocks.pop_back();
  EXPECT_FALSE(KvReceiver::CheckGrant(arena, few).ok());
  LeaseGrant beyond = Grant();
  beyond.blocks[1] = BlockId{8};
  EXPECT_FALSE(KvReceiver::CheckGrant(arena, beyond).ok());
}

// Room for one message of one layer of the whole lease at a time.
class KvReceiverRoomTest : public KvReceiverTest {
 protected:
  static constexpr size_t kRoom = 512;
  KvReceiverRoomTest() : KvReceiverTest(kRoom) {}
  GuardedDevice& device() { return static_cast<GuardedDevice&>(*arena_.device); }
};
INSTANTIATE_TEST_SUITE_P(Memories, KvReceiverRoomTest,
                         testing::Values(Memory::kGuarded, Memory::kGuardedReached), kMemoryNames);

TEST_P(KvReceiverRoomTest, WhatFindsNoRoomWaitsAndIsNotRefused) {
  receiver_.Open(Grant());
  hung_ = true;
  SendAll(Name(Grant()));
  SendCommit(Commit(Name(Grant())));
  Settle();
  EXPECT_EQ(receiver_.posted_count(), 1u);
  EXPECT_EQ(sent_, 1) << "only the commit: the others wait at their sender";
  EXPECT_EQ(arena_.staging->bytes_used(), kRoom);
  EXPECT_TRUE(log_.all().empty()) << "the epoch waits for them, too";

  // The connection goes; over the next one all goes well.
  hung_ = false;
  receiver_.Retire(LeaseId{7}, Epoch{1}, start_);
  receiver_.Tick(start_ + std::chrono::seconds(2));
  Settle();
  EXPECT_EQ(log_.Count<LeaseQuiesced>(), 1u);
  EXPECT_EQ(arena_.staging->bytes_used(), 0u);
  peer_ = p_->Connect(d_->address()).value();
  receiver_.Open(Grant(2));
  SendAll(Name(Grant(2)));
  SendCommit(Commit(Name(Grant(2))));
  Settle();

  EXPECT_EQ(log_.Count<LeaseFilled>(), 1u);
  EXPECT_TRUE(Arrived(Grant(2)));
  EXPECT_EQ(receiver_.counters().refused_size + receiver_.counters().refused_stale, 0u);
  EXPECT_EQ(arena_.staging->bytes_used(), 0u);
}

TEST_P(KvReceiverRoomTest, AWaitingMessageOfARetiredEpochIsRefused) {
  receiver_.Open(Grant());
  hung_ = true;
  SendAll(Name(Grant()));
  Settle();
  receiver_.Retire(LeaseId{7}, Epoch{1}, start_);
  Settle();

  EXPECT_EQ(receiver_.counters().refused_stale, 2u);
  EXPECT_EQ(sent_, 2) << "their sends are over";
  EXPECT_EQ(receiver_.posted_count(), 1u);
}

TEST_P(KvReceiverRoomTest, AMessageThatNeverFindsRoomIsRefused) {
  receiver_.Open(Grant());
  SendKv(Kv(Name(Grant()), {{0, 3}, {kHeld, kPrompt}, {0, 2}}));
  Settle();

  EXPECT_EQ(receiver_.counters().refused_size, 1u);
  EXPECT_EQ(sent_, 1);
}

// Goal: bytes that land after their epoch is over stay out of its blocks, which the next owner may
// have by the time they are looked at.
TEST_P(KvReceiverRoomTest, BytesThatComeTooLateAreNotCopied) {
  receiver_.Open(Grant());
  hung_ = true;
  SendKv(Kv(Name(Grant()), {{0, 1}, {kHeld, kPrompt}, {0, 2}}));
  d_->Poll();
  hung_ = false;
  Send(HandoffType::kAbort, Encode(AbortMessage{Name(Grant())}), {});
  receiver_.Retire(LeaseId{7}, Epoch{1}, start_);
  receiver_.Tick(start_ + std::chrono::seconds(2));
  Settle();

  EXPECT_EQ(log_.Count<LeaseQuiesced>(), 1u);
  EXPECT_EQ(device().scatters(), 0u);
  EXPECT_EQ(arena_.Copy(), std::vector<std::byte>(arena_.bytes(), std::byte{0xee}));
}

TEST_P(KvReceiverRoomTest, BytesThatLandWellAfterRetireAreNotCopiedEither) {
  receiver_.Open(Grant());
  SendKv(Kv(Name(Grant()), {{0, 1}, {kHeld, kPrompt}, {0, 2}}));
  while (receiver_.posted_count() == 0) d_->Poll();
  receiver_.Retire(LeaseId{7}, Epoch{1}, start_);
  EXPECT_EQ(log_.Count<LeaseQuiesced>(), 0u);
  Settle();

  EXPECT_EQ(log_.Count<LeaseQuiesced>(), 1u);
  EXPECT_EQ(receiver_.counters().force_closes, 0u);
  EXPECT_EQ(device().scatters(), 0u);
  EXPECT_EQ(arena_.staging->bytes_used(), 0u);
}

TEST_P(KvReceiverRoomTest, DamagedBytesNeverReachTheBlocks) {
  receiver_.Open(Grant());
  KvMessage damaged = Kv(Name(Grant()), {{0, 1}, {kHeld, kPrompt}, {0, 2}});
  damaged.checksum ^= 1;
  SendKv(damaged);
  Settle();

  EXPECT_EQ(log_.Count<LeaseFailed>(), 1u);
  EXPECT_EQ(device().scatters(), 0u);
  EXPECT_EQ(arena_.staging->bytes_used(), 0u);
}

TEST_P(KvReceiverRoomTest, ADeviceThatCannotCopyFailsTheEpoch) {
  receiver_.Open(Grant());
  device().FailBatches(absl::UnavailableError("it fell off"));
  SendKv(Kv(Name(Grant()), {{0, 1}, {kHeld, kPrompt}, {0, 2}}));
  Settle();

  ASSERT_EQ(log_.Count<LeaseFailed>(), 1u);
  EXPECT_EQ(log_.Of<LeaseFailed>()[0].status.message(), "it fell off");
  EXPECT_TRUE(log_.Of<LeaseFailed>()[0].retryable);
  EXPECT_EQ(naks_, std::vector<NakReason>{NakReason::kReceiveFailed});
  EXPECT_EQ(arena_.staging->bytes_used(), 0u);
}

}  // namespace
}  // namespace baton
