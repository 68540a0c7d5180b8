#include "common/kv_transfer/prober.h"

#include <gtest/gtest.h>

#include "common/kv_transfer/testing/handoff_rig.h"
#include "common/transport/inproc_transport.h"

namespace baton {
namespace {

class ProberTest : public testing::Test {
 protected:
  ProberTest()
      : a_(network_.Open("a")),
        b_(network_.Open("b")),
        prober_(*a_, options_, log_.Sink(), [this] { return now_; }) {
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
  std::unique_ptr<Transport> a_, b_;
  Prober prober_;
};

TEST_F(ProberTest, ReportsLatencyAndBandwidth) {
  EventLog other_log;
  Prober other(*b_, options_, other_log.Sink(), [this] { return now_; });

  prober_.Probe(ProbeId{1}, b_->address(), now_);
  Settle();

  ASSERT_EQ(log_.Count<ProbeFinished>(), 1u);
  const ProbeFinished result = log_.Of<ProbeFinished>()[0];
  ASSERT_TRUE(result.status.ok()) << result.status;
  EXPECT_GT(result.round_trip_ms, 0);
  EXPECT_GT(result.bytes_per_second, 0);
  EXPECT_EQ(prober_.next_deadline(), kNever);
  EXPECT_TRUE(other_log.all().empty());
  b_.reset();  // Before `other`.
}

TEST_F(ProberTest, ProbesItself) {
  prober_.Probe(ProbeId{1}, a_->address(), now_);
  Settle();

  ASSERT_EQ(log_.Count<ProbeFinished>(), 1u);
  EXPECT_TRUE(log_.Of<ProbeFinished>()[0].status.ok());
}

TEST_F(ProberTest, NoAnswerFailsAtTheDeadline) {
  prober_.Probe(ProbeId{1}, b_->address(), now_);  // Nobody takes probes there.
  Settle();
  EXPECT_TRUE(log_.all().empty());

  prober_.Tick(now_ + options_.deadline);

  ASSERT_EQ(log_.Count<ProbeFinished>(), 1u);
  EXPECT_EQ(log_.Of<ProbeFinished>()[0].status.code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_F(ProberTest, ALostPeerAndABadAddressFailAtOnce) {
  prober_.Probe(ProbeId{1}, "garbage", now_);
  EXPECT_EQ(log_.Count<ProbeFinished>(), 1u);

  prober_.Probe(ProbeId{2}, b_->address(), now_);
  b_.reset();
  Settle();

  ASSERT_EQ(log_.Count<ProbeFinished>(), 2u);
  EXPECT_FALSE(log_.Of<ProbeFinished>()[1].status.ok());
}

TEST_F(ProberTest, TooManyProbesAreRefused) {
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

}  // namespace
}  // namespace baton
