#include "router/pair_table.h"

#include <gtest/gtest.h>

namespace baton {
namespace {

using std::chrono::milliseconds;

class PairTableTest : public testing::Test {
 protected:
  PairTableTest() {
    p = Add(v1::ROLE_PREFILL);
    d = Add(v1::ROLE_DECODE);
  }
  WorkerId Add(v1::Role role) {
    const WorkerId id = workers.Add("worker", role);
    v1::WorkerHello hello;
    hello.set_role(role);
    hello.set_incarnation(Raw(id));
    workers.Up(id, hello);
    return id;
  }

  WorkerTable workers{ClusterPolicy{}};
  PairTable pairs{PairOptions{.probes_per_worker_max = 2,
                              .probe_timeout = milliseconds(1000),
                              .backoff_min = milliseconds(100),
                              .backoff_max = milliseconds(300)}};
  Instant now{std::chrono::seconds(100)};
  WorkerId p{}, d{};
};

TEST_F(PairTableTest, NewPairIsProbedOnceAndThenHealthy) {
  const auto orders = pairs.Due(workers, now);
  ASSERT_EQ(orders.size(), 1u);
  EXPECT_EQ(orders[0].prefill, p);
  EXPECT_EQ(orders[0].decode, d);
  EXPECT_EQ(pairs.state(p, d), PairState::kProbing);
  EXPECT_TRUE(pairs.Due(workers, now).empty());

  pairs.ProbeAnswered(p, orders[0].probe, true, "", 1e9, now);

  EXPECT_EQ(pairs.state(p, d), PairState::kHealthy);
  EXPECT_TRUE(pairs.Due(workers, now).empty());
}

TEST_F(PairTableTest, FailuresBackOffAndAreProbedAgain) {
  for (const int backoff_ms : {100, 200, 300, 300}) {
    pairs.Failed(p, d, "no path", now);
    EXPECT_EQ(pairs.state(p, d), PairState::kDown);
    now += milliseconds(backoff_ms - 1);
    EXPECT_TRUE(pairs.Due(workers, now).empty()) << backoff_ms;
    now += milliseconds(1);
    const auto orders = pairs.Due(workers, now);
    ASSERT_EQ(orders.size(), 1u) << backoff_ms;
  }
}

TEST_F(PairTableTest, SaysWhenToLookAgain) {
  EXPECT_LE(pairs.next_due(), now) << "nobody has looked yet";
  auto orders = pairs.Due(workers, now);
  EXPECT_EQ(pairs.next_due(), now + milliseconds(1000)) << "the probe's time is over";
  pairs.ProbeAnswered(p, orders[0].probe, true, "", 0, now);
  EXPECT_LE(pairs.next_due(), now) << "another one may be in line";
  pairs.Due(workers, now);
  EXPECT_EQ(pairs.next_due(), kNever);

  pairs.Succeeded(p, d);
  EXPECT_EQ(pairs.next_due(), kNever) << "nothing is new";
  pairs.Failed(p, d, "no path", now);
  EXPECT_EQ(pairs.next_due(), now + milliseconds(100));
  pairs.Due(workers, now);
  EXPECT_EQ(pairs.next_due(), now + milliseconds(100));
}

TEST_F(PairTableTest, SuccessStartsTheBackoffOver) {
  pairs.Failed(p, d, "no path", now);
  pairs.Failed(p, d, "no path", now);
  pairs.Succeeded(p, d);
  pairs.Failed(p, d, "no path", now);

  EXPECT_EQ(pairs.Due(workers, now + milliseconds(100)).size(), 1u);
}

TEST_F(PairTableTest, OneCauseThatFailsManyTransfersIsOneFailure) {
  for (int i = 0; i < 7; ++i) pairs.Failed(p, d, "no path", now);

  EXPECT_EQ(pairs.Due(workers, now + milliseconds(100)).size(), 1u);
  EXPECT_EQ(pairs.state(p, d), PairState::kProbing);
  EXPECT_TRUE(pairs.broken(p, d)) << "until a probe says otherwise";
  pairs.Succeeded(p, d);
  EXPECT_FALSE(pairs.broken(p, d));
}

TEST_F(PairTableTest, UnansweredProbeFails) {
  pairs.Due(workers, now);
  pairs.Due(workers, now + milliseconds(1000));

  EXPECT_EQ(pairs.state(p, d), PairState::kDown);
}

TEST_F(PairTableTest, LateOrForeignAnswersAreIgnored) {
  const auto orders = pairs.Due(workers, now);
  pairs.ProbeAnswered(p, orders[0].probe + 1, true, "", 0, now);
  pairs.ProbeAnswered(d, orders[0].probe, true, "", 0, now);
  EXPECT_EQ(pairs.state(p, d), PairState::kProbing);
  pairs.Forget(p);
  pairs.ProbeAnswered(p, orders[0].probe, true, "", 0, now);

  EXPECT_EQ(pairs.state(p, d), PairState::kUnknown);
}

TEST_F(PairTableTest, OnlyAFewProbesOfAWorkerAtATime) {
  Add(v1::ROLE_DECODE);
  Add(v1::ROLE_DECODE);
  const auto first = pairs.Due(workers, now);
  EXPECT_EQ(first.size(), 2u);
  EXPECT_TRUE(pairs.Due(workers, now).empty());
  pairs.ProbeAnswered(p, first[0].probe, true, "", 0, now);

  EXPECT_EQ(pairs.Due(workers, now).size(), 1u);
}

TEST_F(PairTableTest, NoMoreProbesToADecodeWorkerThanItAnswersAtOnce) {
  Add(v1::ROLE_PREFILL);
  Add(v1::ROLE_PREFILL);

  EXPECT_EQ(pairs.Due(workers, now).size(), 2u);
  EXPECT_TRUE(pairs.Due(workers, now).empty());
}

// A worker whose network swallows everything must not keep the others from being probed.
TEST_F(PairTableTest, PathsThatSwallowProbesHoldUpTheirOwnWorkerOnly) {
  std::vector<WorkerId> prefills = {Add(v1::ROLE_PREFILL), Add(v1::ROLE_PREFILL)};
  std::vector<WorkerId> decodes = {d};
  while (decodes.size() < 16) decodes.push_back(Add(v1::ROLE_DECODE));

  for (int tick = 0; tick < 8; ++tick, now += milliseconds(20)) {
    for (const PairTable::ProbeOrder& order : pairs.Due(workers, now)) {
      if (order.prefill != p) pairs.ProbeAnswered(order.prefill, order.probe, true, "", 0, now);
    }
  }

  for (const WorkerId prefill : prefills) {
    for (const WorkerId decode : decodes) {
      EXPECT_EQ(pairs.state(prefill, decode), PairState::kHealthy)
          << Raw(prefill) << " to " << Raw(decode);
    }
  }
}

TEST_F(PairTableTest, PairsThatWereNeverProbedGoFirstThenTheLongestDue) {
  const WorkerId d2 = Add(v1::ROLE_DECODE);
  const WorkerId d3 = Add(v1::ROLE_DECODE);
  const WorkerId d4 = Add(v1::ROLE_DECODE);
  const auto decodes = [](const std::vector<PairTable::ProbeOrder>& orders) {
    std::vector<WorkerId> ids;
    for (const PairTable::ProbeOrder& order : orders) ids.push_back(order.decode);
    return ids;
  };
  pairs.Failed(p, d, "no path", now + milliseconds(10));
  pairs.Failed(p, d2, "no path", now);
  now += milliseconds(500);

  auto orders = pairs.Due(workers, now);
  EXPECT_EQ(decodes(orders), (std::vector<WorkerId>{d3, d4}));
  pairs.ProbeAnswered(p, orders[0].probe, true, "", 0, now);
  EXPECT_EQ(decodes(pairs.Due(workers, now)), std::vector<WorkerId>{d2});
  pairs.ProbeAnswered(p, orders[1].probe, true, "", 0, now);

  EXPECT_EQ(decodes(pairs.Due(workers, now)), std::vector<WorkerId>{d});
}

}  // namespace
}  // namespace baton
