// P's side alone: the other side is scripted.
#include "common/kv_transfer/kv_sender.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "common/kv_transfer/kv_pieces.h"
#include "common/kv_transfer/testing/handoff_rig.h"
#include "common/transport/testing/inproc_transport.h"

namespace baton {
namespace {

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

class KvSenderTest : public testing::TestWithParam<Memory> {
 protected:
  explicit KvSenderTest(const KvSenderOptions& options = {}, size_t staging_bytes = 1 << 16)
      : arena_(SmallLayout(), 8, GetParam(), staging_bytes),
        d_(network_.Open("d")),
        p_(network_.Open("p")),
        sender_(*p_, *arena_.staging, options, log_.Sink()) {
    network_.CopyWith(GuardedDevice::CopyAnywhere, /*eager_bytes_max=*/0);
    arena_.FillRandomly(1);
    p_->OnPeerLost([this](PeerId peer, const absl::Status& s) { sender_.OnPeerLost(peer, s); });
    Listen();
  }
  ~KvSenderTest() override {
    d_.reset();
    p_.reset();
  }

  void Listen() {
    d_->OnMessage(Type(HandoffType::kKv),
                  [this](const IncomingMessage& m) -> std::optional<Landing> {
                    from_ = m.from;
                    kv_.push_back(DecodeKv(m.header).value());
                    payload_bytes_ += m.payload_bytes;
                    auto bytes = std::make_shared<std::vector<std::byte>>(m.payload_bytes);
                    return Landing{{MutableSpan(*bytes)}, [bytes](const absl::Status&) {}};
                  });
    d_->OnMessage(Type(HandoffType::kCommit), [this](const IncomingMessage& m) {
      from_ = m.from;
      commits_.push_back(DecodeCommit(m.header).value());
      return std::nullopt;
    });
    d_->OnMessage(Type(HandoffType::kAbort), [this](const IncomingMessage& m) {
      aborts_.push_back(DecodeAbort(m.header).value());
      return std::nullopt;
    });
  }
  static MessageType Type(HandoffType type) { return static_cast<MessageType>(type); }
  Ticket TicketOf(uint64_t lease) {
    LeaseGrant grant;
    grant.lease = LeaseId{lease};
    grant.nonce = {lease, 1};
    grant.epoch = Epoch{1};
    grant.held_tokens = 4;
    grant.prompt_tokens = 18;
    return TicketFor(grant, SmallLayout(), d_->address());
  }
  static EpochName NameOf(const Ticket& ticket) {
    return {ticket.lease, ticket.nonce, ticket.epoch, 0};
  }
  void Begin(uint64_t id) {
    sender_.Begin(TransferId{id}, TicketOf(id), Blocks({4, 2, 7, 1, 3}), {}, start_);
  }
  void PushAll(uint64_t id) {
    for (uint32_t layer = 0; layer < 3; ++layer) {
      sender_.Push(TransferId{id}, {layer, layer + 1}, {0, 18}, start_);
    }
  }
  void Answer(HandoffType type, const std::vector<std::byte>& header) {
    d_->Send(from_, Type(type), header, {}, [](const absl::Status&) {});
  }
  void Settle() {
    for (int i = 0; i < 20; ++i) {
      p_->Poll();
      if (d_) d_->Poll();
    }
  }

  bool hung_ = false;
  InprocNetwork network_{std::make_unique<HangingDelivery>(&hung_)};
  ArenaRig arena_;
  EventLog log_;
  std::unique_ptr<Transport> d_, p_;
  KvSender sender_;
  PeerId from_{};
  std::vector<KvMessage> kv_;
  std::vector<CommitMessage> commits_;
  std::vector<AbortMessage> aborts_;
  size_t payload_bytes_ = 0;
  const Instant start_ = Instant() + std::chrono::hours(1);
};

const auto kMemories = testing::Values(Memory::kHost, Memory::kGuarded, Memory::kGuardedReached);
const auto kMemoryNames = [](const auto& test) { return MemoryName(test.param); };
INSTANTIATE_TEST_SUITE_P(Memories, KvSenderTest, kMemories, kMemoryNames);

TEST_P(KvSenderTest, HeldTokensAreNotSentAndTheCommitCountsTheRest) {
  Begin(1);
  PushAll(1);
  sender_.Commit(TransferId{1}, {42, 3, "lp"}, start_);
  Settle();

  ASSERT_EQ(kv_.size(), 3u);
  EXPECT_EQ(kv_[0].piece, (KvPiece{{0, 1}, {4, 18}, {0, 2}}));
  ASSERT_EQ(commits_.size(), 1u);
  EXPECT_EQ(commits_[0].message_count, 3u);
  EXPECT_EQ(commits_[0].byte_count, payload_bytes_);
  EXPECT_EQ(commits_[0].first_token, (CommittedToken{42, 3, "lp"}));
  EXPECT_EQ(commits_[0].name, NameOf(TicketOf(1)));
}

TEST_P(KvSenderTest, APushOfHeldTokensOnlySendsNothing) {
  Begin(1);
  sender_.Push(TransferId{1}, {0, 3}, {0, 4}, start_);
  Settle();

  EXPECT_TRUE(kv_.empty());
}

TEST_P(KvSenderTest, AnAcknowledgedTransferEndsAndIsReleasedOnce) {
  Begin(1);
  PushAll(1);
  sender_.Commit(TransferId{1}, {}, start_);
  Settle();
  for (int i = 0; i < 2; ++i) Answer(HandoffType::kAck, Encode(AckMessage{NameOf(TicketOf(1))}));
  sender_.Tick(start_ + std::chrono::milliseconds(5));
  Settle();

  ASSERT_EQ(log_.all().size(), 2u);
  ASSERT_TRUE(std::holds_alternative<TransferAcked>(log_.all()[0]));
  EXPECT_EQ(std::get<TransferAcked>(log_.all()[0]).bytes, payload_bytes_);
  EXPECT_EQ(std::get<TransferAcked>(log_.all()[0]).duration, std::chrono::milliseconds(5));
  EXPECT_TRUE(std::holds_alternative<TransferReleased>(log_.all()[1]));
  EXPECT_EQ(sender_.open_count(), 0u);
}

TEST_P(KvSenderTest, AnAcknowledgementBeforeTheCommitMeansNothing) {
  Begin(1);
  PushAll(1);
  Settle();
  Answer(HandoffType::kAck, Encode(AckMessage{NameOf(TicketOf(1))}));
  Settle();

  EXPECT_TRUE(log_.all().empty());
}

TEST_P(KvSenderTest, ANakFailsTheTransferAsItsReasonSays) {
  uint64_t id = 0;
  for (const NakReason reason : {NakReason::kChecksum, NakReason::kCountMismatch}) {
    Begin(++id);
    PushAll(id);
    Settle();
    Answer(HandoffType::kNak, Encode(NakMessage{NameOf(TicketOf(id)), reason}));
    Settle();
    ASSERT_EQ(log_.Count<TransferFailed>(), id);
    EXPECT_EQ(log_.Of<TransferFailed>().back().retryable, IsRetryable(reason));
    EXPECT_EQ(log_.Count<TransferReleased>(), id);
  }
}

TEST_P(KvSenderTest, AnAbortTellsTheOtherSideAndReleases) {
  Begin(1);
  PushAll(1);
  sender_.Abort(TransferId{1}, start_);
  sender_.Abort(TransferId{1}, start_);
  Settle();

  ASSERT_EQ(aborts_.size(), 1u);
  EXPECT_EQ(log_.all().size(), 1u);
  EXPECT_EQ(log_.Count<TransferReleased>(), 1u);
}

TEST_P(KvSenderTest, CommandsForAnEndedTransferAreIgnored) {
  Begin(1);
  sender_.Abort(TransferId{1}, start_);
  PushAll(1);
  sender_.Commit(TransferId{1}, {}, start_);
  Settle();

  EXPECT_TRUE(kv_.empty());
  EXPECT_TRUE(commits_.empty());
}

// Goal: blocks stay pinned while a send may read them, and not for ever.
TEST_P(KvSenderTest, AnAbortedTransferIsReleasedOnlyAfterItsSends) {
  hung_ = true;
  Begin(1);
  PushAll(1);
  Settle();
  sender_.Abort(TransferId{1}, start_);
  Settle();
  EXPECT_TRUE(log_.all().empty());
  EXPECT_EQ(sender_.next_deadline(), start_ + std::chrono::seconds(2));

  sender_.Tick(start_ + std::chrono::seconds(2));
  Settle();

  EXPECT_EQ(log_.Count<TransferReleased>(), 1u);
  EXPECT_EQ(sender_.counters().force_closes, 1u);
  EXPECT_EQ(sender_.in_flight_bytes(), 0u);
}

// One message at a time.
class KvSenderInLineTest : public KvSenderTest {
 protected:
  KvSenderInLineTest() : KvSenderTest(KvSenderOptions{.in_flight_bytes_max = 1}) {}
};
INSTANTIATE_TEST_SUITE_P(Memories, KvSenderInLineTest, kMemories, kMemoryNames);

TEST_P(KvSenderInLineTest, ATransferThatWaitsBehindOthersIsNotLate) {
  const Duration deadline = KvSenderOptions().transfer_deadline;
  Instant now = start_;
  for (const uint64_t id : {1, 2}) {
    Begin(id);
    PushAll(id);
  }
  // The first one's three messages take longer than the second one has.
  while (kv_.size() < 6) {
    ASSERT_LT(now, start_ + 100 * deadline);
    now += deadline * 2 / 3;
    sender_.Tick(now);
    for (int i = 0; i < 4; ++i) {  // One message or two.
      p_->Poll();
      d_->Poll();
    }
  }
  EXPECT_TRUE(log_.Of<TransferFailed>().empty());

  // If nobody reads, both are.
  Settle();
  hung_ = true;
  for (const uint64_t id : {3, 4}) {
    sender_.Begin(TransferId{id}, TicketOf(id), Blocks({4, 2, 7, 1, 3}), {}, now);
    sender_.Push(TransferId{id}, {0, 1}, {0, 18}, now);
  }
  Settle();
  sender_.Tick(now + deadline + deadline);
  EXPECT_EQ(log_.Of<TransferFailed>().size(), 2u);
  hung_ = false;
}

TEST_P(KvSenderTest, ATransferThatIsNotAnsweredFailsAtItsDeadline) {
  Begin(1);
  PushAll(1);
  sender_.Commit(TransferId{1}, {}, start_);
  Settle();
  sender_.Tick(start_ + KvSenderOptions().transfer_deadline - std::chrono::seconds(1));
  EXPECT_TRUE(log_.all().empty());

  sender_.Tick(start_ + KvSenderOptions().transfer_deadline);
  Settle();

  ASSERT_EQ(log_.Count<TransferFailed>(), 1u);
  EXPECT_EQ(log_.Of<TransferFailed>()[0].status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(log_.Count<TransferReleased>(), 1u);
  EXPECT_EQ(aborts_.size(), 1u);
}

TEST_P(KvSenderTest, ALostPeerFailsEveryTransferToItAndNoOther) {
  const auto other = network_.Open("other");
  other->OnMessage(Type(HandoffType::kKv), [](const IncomingMessage&) { return std::nullopt; });
  hung_ = true;
  for (const uint64_t id : {1, 2}) {
    Begin(id);
    PushAll(id);
  }
  Ticket elsewhere = TicketOf(3);
  elsewhere.address = other->address();
  sender_.Begin(TransferId{3}, elsewhere, Blocks({0, 1, 2, 3, 4}), {}, start_);
  Settle();

  d_.reset();
  Settle();

  ASSERT_EQ(log_.Count<TransferFailed>(), 2u);
  for (const TransferFailed& failed : log_.Of<TransferFailed>()) {
    EXPECT_TRUE(failed.retryable);
    EXPECT_EQ(failed.status.code(), absl::StatusCode::kUnavailable);
    EXPECT_NE(failed.id, TransferId{3});
  }
  EXPECT_EQ(log_.Count<TransferReleased>(), 2u);
  EXPECT_EQ(sender_.open_count(), 1u);
}

TEST_P(KvSenderTest, AnAddressThatIsNoneFailsTheTransfer) {
  Ticket ticket = TicketOf(1);
  ticket.address = "garbage";
  sender_.Begin(TransferId{1}, ticket, Blocks({0, 1, 2, 3, 4}), {}, start_);

  ASSERT_EQ(log_.Count<TransferFailed>(), 1u);
  EXPECT_FALSE(log_.Of<TransferFailed>()[0].retryable);
  EXPECT_EQ(log_.Count<TransferReleased>(), 1u);
}

TEST_P(KvSenderTest, ATicketThatDoesNotFitSaysWhy) {
  const KvArena& arena = *arena_.arena;
  const std::vector<BlockId> blocks = Blocks({0, 1, 2, 3, 4});
  EXPECT_TRUE(KvSender::CheckTicket(arena, TicketOf(1), blocks, {}).ok());
  Ticket other_layout = TicketOf(1);
  other_layout.layout_fingerprint ^= 1;
  EXPECT_FALSE(KvSender::CheckTicket(arena, other_layout, blocks, {}).ok());
  EXPECT_FALSE(KvSender::CheckTicket(arena, TicketOf(1), Blocks({0, 1, 2, 3}), {}).ok());
  EXPECT_FALSE(KvSender::CheckTicket(arena, TicketOf(1), Blocks({0, 1, 2, 3, 9}), {}).ok());
  EXPECT_FALSE(KvSender::CheckTicket(arena, TicketOf(1), blocks, {.rank = 1}).ok());
  EXPECT_FALSE(
      KvSender::CheckTicket(arena, TicketOf(1), blocks, {.head_begin = 1, .head_end = 3}).ok());
}

// One layer of one block is 256 bytes in this layout.
class KvSenderWindowTest : public KvSenderTest {
 protected:
  KvSenderWindowTest()
      : KvSenderTest(KvSenderOptions{.in_flight_bytes_max = 600, .message_bytes_max = 256}) {}
};

INSTANTIATE_TEST_SUITE_P(Memories, KvSenderWindowTest, kMemories, kMemoryNames);

TEST_P(KvSenderWindowTest, OnlySoManyBytesAreUnderWayAndTheCommitComesLast) {
  hung_ = true;
  Begin(1);
  PushAll(1);
  sender_.Commit(TransferId{1}, {}, start_);
  Settle();
  EXPECT_EQ(kv_.size(), 2u);
  EXPECT_LE(sender_.in_flight_bytes(), 600u);
  EXPECT_TRUE(commits_.empty());

  hung_ = false;
  sender_.Abort(TransferId{1}, start_);
  Begin(2);
  PushAll(2);
  sender_.Commit(TransferId{2}, {}, start_);
  sender_.Tick(start_ + std::chrono::seconds(2));  // Closes the hanging connection.
  Settle();
  ASSERT_EQ(log_.Count<TransferFailed>(), 1u);
  Begin(3);
  PushAll(3);
  sender_.Commit(TransferId{3}, {}, start_);
  kv_.clear();
  for (int i = 0; i < 10; ++i) Settle();

  EXPECT_EQ(kv_.size(), 3u * 4u) << "four blocks of three layers, one message each";
  ASSERT_EQ(commits_.size(), 1u);
  EXPECT_EQ(commits_[0].message_count, 12u);
  EXPECT_EQ(arena_.staging->bytes_used(), 0u);
}

// Of the decode worker's devices none waits until all of another one's heads are there.
TEST_P(KvSenderWindowTest, DevicesOfTheOtherSideTakeTurns) {
  Ticket ticket = TicketOf(1);
  ticket.shard_heads = 1;
  sender_.Begin(TransferId{1}, ticket, Blocks({4, 2, 7, 1, 3}), {}, start_);
  sender_.Push(TransferId{1}, {0, 3}, {0, 18}, start_);
  for (int i = 0; i < 10; ++i) Settle();

  ASSERT_GE(kv_.size(), 4u);
  for (uint32_t i = 0; i < kv_.size(); ++i) {
    EXPECT_EQ(kv_[i].piece.heads, (IndexRange{i % 2, i % 2 + 1})) << "message " << i;
  }
}

// Room for two messages of one layer of one block.
class KvSenderRoomTest : public KvSenderTest {
 protected:
  KvSenderRoomTest() : KvSenderTest(KvSenderOptions{.message_bytes_max = 256}, 512) {}
  size_t CommitsOf(uint64_t id) const {
    return static_cast<size_t>(
        std::count_if(commits_.begin(), commits_.end(),
                      [id](const CommitMessage& c) { return c.name.lease == LeaseId{id}; }));
  }
};
INSTANTIATE_TEST_SUITE_P(Memories, KvSenderRoomTest,
                         testing::Values(Memory::kGuarded, Memory::kGuardedReached), kMemoryNames);

TEST_P(KvSenderRoomTest, WhatFindsNoRoomWaitsInOrder) {
  hung_ = true;
  Begin(1);
  PushAll(1);
  sender_.Commit(TransferId{1}, {}, start_);
  Settle();
  ASSERT_EQ(kv_.size(), 2u);
  EXPECT_EQ(arena_.staging->bytes_used(), 512u);
  EXPECT_TRUE(commits_.empty());

  sender_.Abort(TransferId{1}, start_);
  Begin(2);
  PushAll(2);
  sender_.Commit(TransferId{2}, {}, start_);
  hung_ = false;
  sender_.Tick(start_ + std::chrono::seconds(2));  // Closes the hanging connection.
  Settle();
  Begin(3);
  PushAll(3);
  sender_.Commit(TransferId{3}, {}, start_);
  kv_.clear();
  for (int i = 0; i < 10; ++i) Settle();

  ASSERT_EQ(kv_.size(), 12u);
  for (size_t i = 1; i < kv_.size(); ++i) {
    EXPECT_LE(kv_[i - 1].piece.layers.begin, kv_[i].piece.layers.begin);
  }
  EXPECT_EQ(CommitsOf(3), 1u);
  EXPECT_EQ(arena_.staging->bytes_used(), 0u);
}

// Goal: a worker that takes much does not keep one that takes little from its turn.
TEST_P(KvSenderRoomTest, PeersTakeTurns) {
  const auto other = network_.Open("other");
  size_t others = 0;
  other->OnMessage(Type(HandoffType::kKv), [&](const IncomingMessage&) {
    ++others;
    return std::nullopt;
  });
  Begin(1);
  PushAll(1);
  Ticket elsewhere = TicketOf(2);
  elsewhere.address = other->address();
  sender_.Begin(TransferId{2}, elsewhere, Blocks({0, 1, 2, 3, 4}), {}, start_);
  PushAll(2);

  while (kv_.size() < 12 || others < 12) {
    const size_t before = kv_.size() + others;
    for (int i = 0; i < 8; ++i) {
      for (Transport* transport : {p_.get(), d_.get(), other.get()}) transport->Poll();
    }
    ASSERT_GT(kv_.size() + others, before) << "nothing moves";
    EXPECT_LE(kv_.size(), others + 4);
    EXPECT_LE(others, kv_.size() + 4);
  }
  sender_.Abort(TransferId{2}, start_);
  Settle();
}

class KvSenderBigRoomTest : public KvSenderTest {
 protected:
  KvSenderBigRoomTest() : KvSenderTest(KvSenderOptions{.message_bytes_max = 512}, 512) {}
};
INSTANTIATE_TEST_SUITE_P(Memories, KvSenderBigRoomTest,
                         testing::Values(Memory::kGuarded, Memory::kGuardedReached), kMemoryNames);

// Goal: a message that needs all the room is not overtaken for ever by those that need half.
TEST_P(KvSenderBigRoomTest, SmallMessagesDoNotOvertakeABigOneForEver) {
  const auto other = network_.Open("other");
  size_t others = 0;
  other->OnMessage(Type(HandoffType::kKv), [&](const IncomingMessage&) {
    ++others;
    return std::nullopt;
  });
  Begin(1);
  for (uint32_t layer = 0; layer < 3; ++layer) {
    for (uint32_t token = 4; token < 16; token += 4) {
      sender_.Push(TransferId{1}, {layer, layer + 1}, {token, token + 4}, start_);
    }
  }
  Ticket elsewhere = TicketOf(2);
  elsewhere.address = other->address();
  sender_.Begin(TransferId{2}, elsewhere, Blocks({0, 1, 2, 3, 4}), {}, start_);
  sender_.Push(TransferId{2}, {0, 2}, {4, 8}, start_);

  for (int i = 0; i < 20 && others == 0; ++i) {
    for (Transport* transport : {p_.get(), d_.get(), other.get()}) transport->Poll();
  }

  EXPECT_EQ(others, 1u);
  EXPECT_LE(kv_.size(), 4u) << "all nine, if they overtook";
  for (int i = 0; i < 10; ++i) Settle();
  EXPECT_EQ(kv_.size(), 9u);
}

TEST_P(KvSenderRoomTest, AnAbortLeavesTheLine) {
  const auto other = network_.Open("other");
  size_t others = 0;
  other->OnMessage(Type(HandoffType::kKv), [&](const IncomingMessage&) {
    ++others;
    return std::nullopt;
  });
  hung_ = true;
  Begin(1);
  PushAll(1);
  Ticket elsewhere = TicketOf(2);
  elsewhere.address = other->address();
  sender_.Begin(TransferId{2}, elsewhere, Blocks({0, 1, 2, 3, 4}), {}, start_);
  PushAll(2);
  Settle();
  EXPECT_EQ(others, 0u);

  sender_.Abort(TransferId{1}, start_);
  sender_.Tick(start_ + std::chrono::seconds(2));
  for (int i = 0; i < 50; ++i) {
    p_->Poll();
    other->Poll();
  }

  EXPECT_EQ(others, 12u);
  EXPECT_EQ(arena_.staging->bytes_used(), 0u);
}

TEST_P(KvSenderRoomTest, ADeviceThatCannotCopyFailsWhatWaitsOnce) {
  static_cast<GuardedDevice&>(*arena_.device).FailBatches(absl::UnavailableError("it fell off"));
  Begin(1);
  Begin(2);
  PushAll(1);
  PushAll(2);
  Settle();

  EXPECT_TRUE(kv_.empty());
  ASSERT_EQ(log_.Count<TransferFailed>(), 2u);
  EXPECT_EQ(log_.Of<TransferFailed>()[0].status.message(), "it fell off");
  EXPECT_EQ(log_.Count<TransferReleased>(), 2u);
  EXPECT_EQ(aborts_.size(), 2u) << "the other side is told";
  EXPECT_EQ(arena_.staging->bytes_used(), 0u);
  EXPECT_EQ(sender_.open_count(), 0u);
}

}  // namespace
}  // namespace baton
