// Whole agents, over real UCX between two threads of this process.
#include "common/kv_transfer/transfer_agent.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <numeric>
#include <optional>
#include <string>
#include <thread>

#include "absl/synchronization/mutex.h"
#include "common/base/bounded_queue.h"
#include "common/kv_transfer/testing/handoff_rig.h"
#include "common/transport/testing/peer_process.h"

namespace baton {
namespace {

constexpr absl::Duration kWait = absl::Seconds(30);

// An agent and what it has said so far.
class AgentRig {
 public:
  explicit AgentRig(const KvLayout& layout, uint32_t block_count,
                    const TransferOptions& options = {}, Memory memory = Memory::kHost)
      : memory_(layout, block_count, memory),
        agent_(TransferAgent::Create(options, *memory_.arena, [this](TransferEvent event) {
                 ASSERT_TRUE(queue_.TryPush(std::move(event)));
               }).value()) {}

  ArenaRig& memory() { return memory_; }
  TransferAgent& agent() { return *agent_; }
  const std::vector<TransferEvent>& seen() const { return seen_; }

  // The next event of this kind, waiting for it; events of other kinds stay in seen().
  template <typename Event>
  std::optional<Event> Next() {
    const absl::Time end = absl::Now() + kWait;
    while (true) {
      for (; next_ < seen_.size(); ++next_) {
        if (const auto* event = std::get_if<Event>(&seen_[next_])) {
          ++next_;
          return *event;
        }
      }
      if (absl::Now() > end) return std::nullopt;
      for (TransferEvent& event : queue_.WaitAll(end - absl::Now())) {
        seen_.push_back(std::move(event));
      }
    }
  }
  template <typename Event>
  size_t Count() {
    for (TransferEvent& event : queue_.TakeAll()) seen_.push_back(std::move(event));
    return static_cast<size_t>(std::count_if(seen_.begin(), seen_.end(), [](const auto& event) {
      return std::holds_alternative<Event>(event);
    }));
  }
  void Destroy() { agent_.reset(); }

 private:
  ArenaRig memory_;
  BoundedQueue<TransferEvent> queue_{1 << 16};
  std::vector<TransferEvent> seen_;
  size_t next_ = 0;
  std::unique_ptr<TransferAgent> agent_;
};

LeaseGrant GrantOf(uint64_t lease, uint32_t epoch, std::vector<BlockId> blocks, uint32_t held,
                   uint32_t prompt) {
  LeaseGrant grant;
  grant.lease = LeaseId{lease};
  grant.nonce = {lease, epoch};
  grant.epoch = Epoch{epoch};
  grant.blocks = std::move(blocks);
  grant.held_tokens = held;
  grant.prompt_tokens = prompt;
  return grant;
}

// Layer-wise and chunk-wise, as an engine pushes.
void PushAll(TransferAgent& agent, TransferId id, uint32_t layers, uint32_t tokens,
             uint32_t chunk) {
  for (uint32_t begin = 0; begin < tokens; begin += chunk) {
    for (uint32_t layer = 0; layer < layers; ++layer) {
      ASSERT_TRUE(
          agent.PushTransfer(id, {layer, layer + 1}, {begin, std::min(begin + chunk, tokens)})
              .ok());
    }
  }
}

// `eager_bytes_max`: everything by rendezvous, or everything copied. And where the blocks lie;
// guarded ones are staged through room for very few messages.
class TransferAgentTest : public testing::TestWithParam<std::tuple<size_t, Memory>> {
 protected:
  TransferOptions Options() const {
    TransferOptions options;
    options.eager_bytes_max = std::get<0>(GetParam());
    options.staging_bytes = 1024;
    return options;
  }
  Memory memory() const { return std::get<1>(GetParam()); }
};
INSTANTIATE_TEST_SUITE_P(Eager, TransferAgentTest,
                         testing::Combine(testing::Values(0, size_t{1} << 30),
                                          testing::Values(Memory::kHost, Memory::kGuarded)));

TEST_P(TransferAgentTest, MovesACacheWithPartialBlocksBehindAHeldPrefix) {
  AgentRig p(SmallLayout(), 16, Options(), memory()), d(SmallLayout(), 16, Options(), memory());
  p.memory().FillRandomly(1);
  d.memory().Fill(std::byte{0xee});
  const std::vector<std::byte> before = d.memory().Copy();
  const std::vector<BlockId> source = Blocks({9, 3, 4, 11, 0});
  const LeaseGrant grant = GrantOf(5, 1, Blocks({2, 15, 7, 8, 1}), 4, 19);

  ASSERT_TRUE(d.agent().OpenLease(grant).ok());
  ASSERT_TRUE(p.agent()
                  .BeginTransfer(TransferId{1},
                                 TicketFor(grant, SmallLayout(), d.agent().address()), source)
                  .ok());
  PushAll(p.agent(), TransferId{1}, 3, 19, 7);
  ASSERT_TRUE(p.agent().CommitTransfer(TransferId{1}, {42, 0, "log-probabilities"}).ok());

  const std::optional<LeaseFilled> filled = d.Next<LeaseFilled>();
  ASSERT_TRUE(filled.has_value());
  EXPECT_EQ(filled->first_token, (CommittedToken{42, 0, "log-probabilities"}));
  EXPECT_EQ(filled->bytes, SmallLayout().token_bytes() * 15);
  const std::optional<TransferAcked> acked = p.Next<TransferAcked>();
  ASSERT_TRUE(acked.has_value());
  EXPECT_EQ(acked->bytes, filled->bytes);
  ASSERT_TRUE(p.Next<TransferReleased>().has_value());
  for (uint32_t token = 4; token < 19; ++token) {
    EXPECT_TRUE(TokenIsEqual(*p.memory().arena, source, *d.memory().arena, grant.blocks, token))
        << token;
  }
  d.agent().RetireLease(LeaseId{5}, Epoch{1});
  ASSERT_TRUE(d.Next<LeaseQuiesced>().has_value());
  // Nothing but those rows has changed.
  const std::vector<std::byte> after = d.memory().Copy();
  const auto changed = static_cast<size_t>(
      std::inner_product(before.begin(), before.end(), after.begin(), size_t{0}, std::plus<>(),
                         [](std::byte a, std::byte b) { return size_t{a != b}; }));
  EXPECT_LE(changed, filled->bytes);
  const size_t held = 2 * SmallLayout().block_bytes();
  EXPECT_EQ(std::memcmp(after.data() + held, before.data() + held, SmallLayout().block_bytes()), 0)
      << "the held block was written";
}

TEST_P(TransferAgentTest, ManySequencesAtOnce) {
  constexpr uint32_t kSequences = 32;
  AgentRig p(SmallLayout(), 128, Options(), memory()), d(SmallLayout(), 128, Options(), memory());
  p.memory().FillRandomly(2);
  std::vector<LeaseGrant> grants;
  std::vector<std::vector<BlockId>> sources;
  for (uint32_t i = 0; i < kSequences; ++i) {
    const uint32_t prompt = 1 + i % 16;
    std::vector<BlockId> blocks, source;
    for (uint32_t b = 0; b < SmallLayout().BlocksFor(prompt); ++b) {
      blocks.push_back(BlockId{4 * i + b});
      source.push_back(BlockId{4 * (kSequences - 1 - i) + b});
    }
    grants.push_back(GrantOf(i + 1, 1, blocks, 0, prompt));
    sources.push_back(source);
    ASSERT_TRUE(d.agent().OpenLease(grants[i]).ok());
    const TransferId id{i + 1};
    ASSERT_TRUE(
        p.agent()
            .BeginTransfer(id, TicketFor(grants[i], SmallLayout(), d.agent().address()), source)
            .ok());
    PushAll(p.agent(), id, 3, prompt, 5);
    ASSERT_TRUE(p.agent().CommitTransfer(id, {static_cast<TokenId>(i), 0, ""}).ok());
  }

  for (uint32_t i = 0; i < kSequences; ++i) {
    const std::optional<LeaseFilled> filled = d.Next<LeaseFilled>();
    ASSERT_TRUE(filled.has_value());
    const size_t index = Raw(filled->lease) - 1;
    EXPECT_EQ(filled->first_token.token, static_cast<TokenId>(index));
    for (uint32_t token = 0; token < grants[index].prompt_tokens; ++token) {
      EXPECT_TRUE(TokenIsEqual(*p.memory().arena, sources[index], *d.memory().arena,
                               grants[index].blocks, token));
    }
    ASSERT_TRUE(p.Next<TransferReleased>().has_value());
  }
  EXPECT_EQ(p.Count<TransferAcked>(), kSequences);
  const TransferStats stats = d.agent().stats();
  EXPECT_EQ(stats.refused_malformed + stats.refused_unknown_lease + stats.refused_range, 0u);
}

TEST(TransferAgentUcxTest, AnUnknownLeaseFailsTheTransferAndCostsNothing) {
  AgentRig p(SmallLayout(), 8), d(SmallLayout(), 8);
  const LeaseGrant grant = GrantOf(1, 1, Blocks({0, 1}), 0, 8);
  ASSERT_TRUE(p.agent()
                  .BeginTransfer(TransferId{1},
                                 TicketFor(grant, SmallLayout(), d.agent().address()),
                                 Blocks({0, 1}))
                  .ok());
  PushAll(p.agent(), TransferId{1}, 3, 8, 8);
  ASSERT_TRUE(p.agent().CommitTransfer(TransferId{1}, {}).ok());

  const std::optional<TransferFailed> failed = p.Next<TransferFailed>();

  ASSERT_TRUE(failed.has_value());
  EXPECT_TRUE(failed->retryable);
  ASSERT_TRUE(p.Next<TransferReleased>().has_value());
  EXPECT_TRUE(d.seen().empty());
}

TEST(TransferAgentUcxTest, ALeaseIsRetiredAndOpenedAgainWhileItIsFilled) {
  AgentRig p(SmallLayout(), 8), d(SmallLayout(), 8);
  p.memory().FillRandomly(3);
  const std::vector<BlockId> source = Blocks({0, 1});
  for (uint32_t epoch = 1; epoch <= 20; ++epoch) {
    const LeaseGrant grant =
        GrantOf(1, epoch, epoch % 2 == 0 ? Blocks({2, 3}) : Blocks({4, 5}), 0, 8);
    ASSERT_TRUE(d.agent().OpenLease(grant).ok());
    const TransferId id{epoch};
    ASSERT_TRUE(p.agent()
                    .BeginTransfer(id, TicketFor(grant, SmallLayout(), d.agent().address()), source)
                    .ok());
    PushAll(p.agent(), id, 3, 8, 3);
    if (epoch < 20) {
      if (epoch % 3 == 0) p.agent().AbortTransfer(id);
      d.agent().RetireLease(LeaseId{1}, Epoch{epoch});
      const std::optional<LeaseQuiesced> quiesced = d.Next<LeaseQuiesced>();
      ASSERT_TRUE(quiesced.has_value());
      EXPECT_EQ(quiesced->epoch, Epoch{epoch});
      p.agent().AbortTransfer(id);
    } else {
      ASSERT_TRUE(p.agent().CommitTransfer(id, {7, 0, ""}).ok());
      const std::optional<LeaseFilled> filled = d.Next<LeaseFilled>();
      ASSERT_TRUE(filled.has_value());
      for (uint32_t token = 0; token < 8; ++token) {
        EXPECT_TRUE(
            TokenIsEqual(*p.memory().arena, source, *d.memory().arena, grant.blocks, token));
      }
    }
    ASSERT_TRUE(p.Next<TransferReleased>().has_value());
  }
}

LeaseGrant GrantOfOtherSide() { return GrantOf(1, 1, Blocks({0, 1}), 0, 8); }

// The other process: a decode worker's agent with one open lease.
int ServeUntilKilled(int pipe) {
  AgentRig d(SmallLayout(), 8);
  if (!d.agent().OpenLease(GrantOfOtherSide()).ok()) return 1;
  if (!WriteAddress(pipe, d.agent().address())) return 1;
  while (true) pause();  // Until it is killed, by the test or with it.
}

TEST(TransferAgentUcxTest, TheOtherSideGoingFailsTransfers) {
  AgentRig survivor_p(SmallLayout(), 8), survivor_d(SmallLayout(), 8);
  PeerProcess d;
  ASSERT_TRUE(survivor_p.agent()
                  .BeginTransfer(TransferId{1},
                                 TicketFor(GrantOfOtherSide(), SmallLayout(), d.address()),
                                 Blocks({0, 1}))
                  .ok());
  PushAll(survivor_p.agent(), TransferId{1}, 2, 8, 8);  // One layer is missing: it stays open.

  d.Kill();

  const std::optional<TransferFailed> failed = survivor_p.Next<TransferFailed>();
  ASSERT_TRUE(failed.has_value());
  EXPECT_TRUE(failed->retryable);
  EXPECT_EQ(failed->status.code(), absl::StatusCode::kUnavailable);
  ASSERT_TRUE(survivor_p.Next<TransferReleased>().has_value());
  ASSERT_TRUE(survivor_p.agent().Probe(ProbeId{1}, survivor_d.agent().address()).ok());
  const std::optional<ProbeFinished> probe = survivor_p.Next<ProbeFinished>();
  ASSERT_TRUE(probe.has_value());
  EXPECT_TRUE(probe->status.ok()) << probe->status;
}

TEST(TransferAgentUcxTest, SaysWhetherItStages) {
  AgentRig host(SmallLayout(), 4), guarded(SmallLayout(), 4, {}, Memory::kGuarded);

  EXPECT_STREQ(host.agent().staging(), "none");
  EXPECT_EQ(host.agent().staging_bytes(), 0u);
  EXPECT_STREQ(guarded.agent().staging(), "pinned");
  EXPECT_NE(guarded.agent().staging_reason().find("only host"), std::string::npos);
  EXPECT_EQ(guarded.agent().staging_bytes(), size_t{128} << 20);
  EXPECT_NE(host.agent().transport_memory().find("host"), std::string::npos);
}

TEST(TransferAgentUcxTest, TooLittleStagingIsRefusedAtStart) {
  ArenaRig guarded(SmallLayout(), 4, Memory::kGuarded);

  TransferOptions options;
  options.staging_bytes = 100;

  EXPECT_EQ(
      TransferAgent::Create(options, *guarded.arena, [](const TransferEvent&) {}).status().code(),
      absl::StatusCode::kInvalidArgument);
}

TEST(TransferAgentUcxTest, MemoryOfTheGpuIsNotReplacedIfItWasAskedFor) {
  ArenaRig guarded(SmallLayout(), 4, Memory::kGuarded);

  TransferOptions options;
  options.staging_memory = StagingMemory::kDevice;

  const absl::Status status =
      TransferAgent::Create(options, *guarded.arena, [](const TransferEvent&) {}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << status;
}

TEST(TransferAgentUcxTest, StoppingEndsOpenLeases) {
  AgentRig d(SmallLayout(), 8);
  ASSERT_TRUE(d.agent().OpenLease(GrantOf(1, 1, Blocks({0, 1}), 0, 8)).ok());

  d.Destroy();

  EXPECT_EQ(d.Count<LeaseQuiesced>(), 1u);
}

TEST(TransferAgentUcxTest, ProbesAnotherAndItself) {
  AgentRig a(SmallLayout(), 4), b(SmallLayout(), 4);
  uint64_t id = 0;
  for (const std::string& address : {b.agent().address(), a.agent().address()}) {
    ASSERT_TRUE(a.agent().Probe(ProbeId{++id}, address).ok());
    const std::optional<ProbeFinished> probe = a.Next<ProbeFinished>();
    ASSERT_TRUE(probe.has_value());
    EXPECT_TRUE(probe->status.ok()) << probe->status;
    EXPECT_GT(probe->bytes_per_second, 1e6);
    EXPECT_LT(probe->round_trip_ms, 1000);
  }
}

TEST(TransferAgentUcxTest, LimitsAreKeptAndGivenBack) {
  TransferOptions options;
  options.leases_max = 2;
  options.transfers_max = 1;
  AgentRig d(SmallLayout(), 8, options);
  ASSERT_TRUE(d.agent().OpenLease(GrantOf(1, 1, Blocks({0}), 0, 4)).ok());
  ASSERT_TRUE(d.agent().OpenLease(GrantOf(2, 1, Blocks({1}), 0, 4)).ok());
  EXPECT_EQ(d.agent().OpenLease(GrantOf(3, 1, Blocks({2}), 0, 4)).code(),
            absl::StatusCode::kResourceExhausted);
  d.agent().RetireLease(LeaseId{1}, Epoch{1});
  ASSERT_TRUE(d.Next<LeaseQuiesced>().has_value());
  EXPECT_TRUE(d.agent().OpenLease(GrantOf(3, 1, Blocks({2}), 0, 4)).ok());

  const Ticket ticket =
      TicketFor(GrantOf(2, 1, Blocks({1}), 0, 4), SmallLayout(), d.agent().address());
  ASSERT_TRUE(d.agent().BeginTransfer(TransferId{1}, ticket, Blocks({5})).ok());
  EXPECT_EQ(d.agent().BeginTransfer(TransferId{2}, ticket, Blocks({5})).code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(d.agent().CommitTransfer(TransferId{1}, {1, 0, std::string(513, 'x')}).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(TransferAgentUcxTest, StopDeliversWhatIsOutstandingAndIsIdempotent) {
  AgentRig d(SmallLayout(), 8);
  ASSERT_TRUE(d.agent().OpenLease(GrantOf(1, 1, Blocks({0}), 0, 4)).ok());
  const Ticket ticket =
      TicketFor(GrantOf(2, 1, Blocks({1}), 0, 4), SmallLayout(), d.agent().address());
  ASSERT_TRUE(d.agent().BeginTransfer(TransferId{1}, ticket, Blocks({5})).ok());
  ASSERT_TRUE(d.agent().Probe(ProbeId{1}, d.agent().address()).ok());

  d.agent().Stop();
  d.agent().Stop();

  EXPECT_EQ(d.Count<LeaseQuiesced>(), 1u);
  EXPECT_EQ(d.Count<TransferFailed>(), 1u);
  EXPECT_EQ(d.Count<TransferReleased>(), 1u);
  EXPECT_EQ(d.Count<ProbeFinished>(), 1u);
  EXPECT_EQ(d.agent().OpenLease(GrantOf(3, 1, Blocks({2}), 0, 4)).code(),
            absl::StatusCode::kUnavailable);
  d.agent().RetireLease(LeaseId{1}, Epoch{1});
}

// Goal: the agent is used from several threads at once. Method: each thread moves its own
// sequences, under the thread sanitizer.
TEST(TransferAgentUcxTest, SeveralThreadsPushAtOnce) {
  constexpr uint32_t kThreads = 4, kEach = 10;
  AgentRig p(SmallLayout(), kThreads * kEach), d(SmallLayout(), kThreads * kEach);
  p.memory().FillRandomly(4);
  std::vector<std::thread> threads;
  for (uint32_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (uint32_t i = 0; i < kEach; ++i) {
        const uint32_t n = t * kEach + i;
        const LeaseGrant grant = GrantOf(n + 1, 1, {BlockId{n}}, 0, 4);
        EXPECT_TRUE(d.agent().OpenLease(grant).ok());
        EXPECT_TRUE(p.agent()
                        .BeginTransfer(TransferId{n},
                                       TicketFor(grant, SmallLayout(), d.agent().address()),
                                       {BlockId{n}})
                        .ok());
        PushAll(p.agent(), TransferId{n}, 3, 4, 4);
        EXPECT_TRUE(p.agent().CommitTransfer(TransferId{n}, {}).ok());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();

  for (uint32_t n = 0; n < kThreads * kEach; ++n) {
    ASSERT_TRUE(d.Next<LeaseFilled>().has_value());
    ASSERT_TRUE(p.Next<TransferReleased>().has_value());
  }
  EXPECT_EQ(d.memory().Copy(), p.memory().Copy());
}

// Prints what a handoff costs on this machine; checks only that it works.
TEST(TransferAgentUcxTest, ReportsThroughputAndLatency) {
  const KvLayout layout = {
      .layers = 16, .kv_heads = 8, .head_dim = 128, .block_tokens = 16, .dtype = DType::kBF16};
  constexpr uint32_t kTokens = 1024;  // 64 MiB.
  const uint32_t blocks = layout.BlocksFor(kTokens);
  AgentRig p(layout, blocks), d(layout, blocks);
  p.memory().Fill(std::byte{0x42});
  std::vector<BlockId> all;
  for (uint32_t i = 0; i < blocks; ++i) all.push_back(BlockId{i});
  uint64_t id = 0;
  for (const uint32_t tokens : {16u, 16u, 16u, kTokens, kTokens}) {
    ++id;
    const LeaseGrant grant =
        GrantOf(id, 1, {all.begin(), all.begin() + layout.BlocksFor(tokens)}, 0, tokens);
    ASSERT_TRUE(d.agent().OpenLease(grant).ok());
    ASSERT_TRUE(
        p.agent()
            .BeginTransfer(TransferId{id}, TicketFor(grant, layout, d.agent().address()), all)
            .ok());
    PushAll(p.agent(), TransferId{id}, layout.layers, tokens, 256);
    ASSERT_TRUE(p.agent().CommitTransfer(TransferId{id}, {}).ok());
    const std::optional<TransferAcked> acked = p.Next<TransferAcked>();
    ASSERT_TRUE(acked.has_value());
    const double seconds = std::chrono::duration<double>(acked->duration).count();
    printf("%9.3f MiB in %8.3f ms: %8.1f MB/s\n", static_cast<double>(acked->bytes) / 1048576,
           seconds * 1e3, static_cast<double>(acked->bytes) / 1e6 / seconds);
    ASSERT_TRUE(d.Next<LeaseFilled>().has_value());
    d.agent().RetireLease(LeaseId{id}, Epoch{1});
    ASSERT_TRUE(d.Next<LeaseQuiesced>().has_value());
  }
  EXPECT_EQ(d.memory().Copy(), p.memory().Copy());
}

}  // namespace
}  // namespace baton

int main(int argc, char** argv) {
  if (const std::optional<int> pipe = baton::PeerPipe()) return baton::ServeUntilKilled(*pipe);
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
