#include "common/kv_transfer/prober.h"

#include <gtest/gtest.h>

#include "common/kv_transfer/testing/handoff_rig.h"
#include "common/transport/testing/inproc_transport.h"

namespace baton {
namespace {

// By where KV is staged.
class ProberTest : public testing::TestWithParam<Memory> {
 protected:
  ProberTest()
      : a_(network_.Open("a")),
        b_(network_.Open("b")),
        prober_(*a_, options_, *staging_a_.staging, log_.Sink(), [this] { return now_; }) {
    network_.CopyWith(GuardedDevice::CopyAnywhere, /*eager_bytes_max=*/0);
    a_->OnPeerLost([this](PeerId peer, const absl::Status& s) { prober_.OnPeerLost(peer, s); });
  }
  ~ProberTest() override {
    b_.reset();
    a_.reset();
  }

  void Settle() {
    for (int i = 0; i < 20; ++i) {
      now_ += std::chrono::milliseconds(1);
      a_->Poll();
      if (b_) b_->Poll();
    }
  }

  const ProberOptions options_ = {.bytes = 100'000};
  Instant now_ = Instant() + std::chrono::hours(1);
  InprocNetwork network_;
  EventLog log_;
  ArenaRig staging_a_{SmallLayout(), 1, GetParam(), 1 << 20};
  ArenaRig staging_b_{SmallLayout(), 1, GetParam(), 1 << 20};
  std::unique_ptr<Transport> a_, b_;
  Prober prober_;
};

INSTANTIATE_TEST_SUITE_P(Memories, ProberTest,
                         testing::Values(Memory::kHost, Memory::kGuarded, Memory::kGuardedReached),
                         [](const auto& test) { return MemoryName(test.param); });

TEST_P(ProberTest, ReportsLatencyAndBandwidth) {
  EventLog other_log;
  Prober other(*b_, options_, *staging_b_.staging, other_log.Sink(), [this] { return now_; });

  prober_.Probe(ProbeId{1}, b_->address(), now_);
  Settle();

  ASSERT_EQ(log_.Count<ProbeFinished>(), 1u);
  const ProbeFinished result = log_.Of<ProbeFinished>()[0];
  ASSERT_TRUE(result.status.ok()) << result.status;
  EXPECT_GT(result.round_trip_ms, 0);
  EXPECT_GT(result.bytes_per_second, 0);
  EXPECT_EQ(prober_.next_deadline(), kNever);
  EXPECT_TRUE(other_log.all().empty());
  EXPECT_EQ(staging_a_.staging->bytes_used() + staging_b_.staging->bytes_used(), 0u);
  b_.reset();  // Before `other`.
}

TEST_P(ProberTest, ProbesItself) {
  prober_.Probe(ProbeId{1}, a_->address(), now_);
  Settle();

  ASSERT_EQ(log_.Count<ProbeFinished>(), 1u);
  EXPECT_TRUE(log_.Of<ProbeFinished>()[0].status.ok());
}

TEST_P(ProberTest, NoAnswerFailsAtTheDeadline) {
  prober_.Probe(ProbeId{1}, b_->address(), now_);  // Nobody takes probes there.
  Settle();
  EXPECT_TRUE(log_.all().empty());

  prober_.Tick(now_ + options_.deadline);

  ASSERT_EQ(log_.Count<ProbeFinished>(), 1u);
  EXPECT_EQ(log_.Of<ProbeFinished>()[0].status.code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_P(ProberTest, ALostPeerAndABadAddressFailAtOnce) {
  prober_.Probe(ProbeId{1}, "garbage", now_);
  EXPECT_EQ(log_.Count<ProbeFinished>(), 1u);

  prober_.Probe(ProbeId{2}, b_->address(), now_);
  b_.reset();
  Settle();

  ASSERT_EQ(log_.Count<ProbeFinished>(), 2u);
  EXPECT_FALSE(log_.Of<ProbeFinished>()[1].status.ok());
}

TEST_P(ProberTest, TooManyProbesAreRefused) {
  for (uint64_t i = 0; i < Prober::kProbesMax; ++i) {
    prober_.Probe(ProbeId{i}, b_->address(), now_);
  }
  EXPECT_TRUE(log_.all().empty());

  prober_.Probe(ProbeId{1000}, b_->address(), now_);

  ASSERT_EQ(log_.Count<ProbeFinished>(), 1u);
  EXPECT_EQ(log_.Of<ProbeFinished>()[0].status.code(), absl::StatusCode::kResourceExhausted);
  prober_.FailAll(absl::UnavailableError("stopping"));
  EXPECT_EQ(log_.Count<ProbeFinished>(), 1 + Prober::kProbesMax);
}

// Goal: with no room for a probe in staging it is still answered, through memory of the host.
TEST_P(ProberTest, WhereStagingIsFullProbesGoOn) {
  if (GetParam() != Memory::kGuardedReached) GTEST_SKIP() << "not staged";
  EventLog other_log;
  Prober other(*b_, options_, *staging_b_.staging, other_log.Sink(), [this] { return now_; });
  const StagedPiece all = staging_b_.staging->TakeBytes(1 << 20).value();

  prober_.Probe(ProbeId{1}, b_->address(), now_);
  Settle();

  ASSERT_EQ(log_.Count<ProbeFinished>(), 1u);
  EXPECT_TRUE(log_.Of<ProbeFinished>()[0].status.ok());
  staging_b_.staging->Release(all);
  b_.reset();  // Before `other`.
}

// Goal: probes show whether KV would arrive. Method: a device that copies no more.
TEST_P(ProberTest, ADeviceThatFailsFailsProbes) {
  if (GetParam() != Memory::kGuardedReached) GTEST_SKIP() << "not staged";
  EventLog other_log;
  Prober other(*b_, options_, *staging_b_.staging, other_log.Sink(), [this] { return now_; });
  static_cast<GuardedDevice&>(*staging_a_.device).FailBatches(absl::UnavailableError("lost"));

  prober_.Probe(ProbeId{1}, b_->address(), now_);
  Settle();

  ASSERT_EQ(log_.Count<ProbeFinished>(), 1u);
  EXPECT_EQ(log_.Of<ProbeFinished>()[0].status, absl::UnavailableError("lost"));
  b_.reset();  // Before `other`.
}

}  // namespace
}  // namespace baton
