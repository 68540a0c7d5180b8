// The router's thread and its queue, with workers behind real sessions.
#include "router/router_loop.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "absl/synchronization/notification.h"
#include "router/fake_worker.h"

namespace baton {
namespace {

class RouterLoopTest : public testing::Test {
 protected:
  static RouterLoopOptions SmallOptions() {
    RouterLoopOptions options;
    options.session.router_incarnation = Incarnation{7};
    options.session.backoff_max = std::chrono::milliseconds(200);
    options.tick = std::chrono::milliseconds(5);
    options.streams_max = 4;
    options.workers_max = 2;
    return options;
  }
  // Holds the router's thread until Release.
  void Hold() {
    absl::Notification held;
    ASSERT_TRUE(loop_
                    .Query([this, &held](const RouterCore&) {
                      held.Notify();
                      release_.WaitForNotification();
                    })
                    .ok());
    held.WaitForNotification();
  }
  void Release() { release_.Notify(); }
  // The only worker's state; empty if there is none, or the thread does not answer in time.
  std::string StateOfTheWorker() {
    std::string state;
    absl::Notification asked;
    const Instant end = Now() + std::chrono::seconds(20);
    absl::Status status = absl::ResourceExhaustedError("not asked yet");
    while (absl::IsResourceExhausted(status) && Now() < end) {
      status = loop_.Query([&](const RouterCore& core) {
        const v1::GetClusterResponse cluster = core.Cluster();
        if (cluster.workers_size() == 1) state = cluster.workers(0).state();
        asked.Notify();
      });
    }
    if (status.ok()) asked.WaitForNotification();
    return state;
  }

  MetricsRegistry registry_;
  RouterMetrics metrics_{&registry_};
  absl::Notification release_;
  RouterLoop loop_{SmallOptions(), &metrics_};
};

TEST_F(RouterLoopTest, QueriesBeyondTheLimitAreRefusedAndTheOthersAnswered) {
  Hold();
  std::atomic<int> answered = 0;

  int accepted = 0;
  absl::Status refusal;
  for (int i = 0; i < 1000 && refusal.ok(); ++i) {
    refusal = loop_.Query([&answered](const RouterCore&) { ++answered; });
    if (refusal.ok()) ++accepted;
  }
  Release();

  EXPECT_EQ(refusal.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(StateOfTheWorker(), "") << "queries are taken again";
  EXPECT_EQ(answered, accepted);
}

TEST_F(RouterLoopTest, WorkerThatComesUpInAFloodOfLesserThingsIsNotForgotten) {
  // Goal: queries and cancels leave room for a session that begins. Method: the router's thread is
  // held, the queue is filled with them, and the worker comes up meanwhile.
  std::string address;
  {
    FakeWorker early({.incarnation = 1});
    address = early.address();
  }
  loop_.SetWorkers(v1::ROLE_DECODE, {address});
  EXPECT_EQ(StateOfTheWorker(), "connecting");
  Hold();
  for (int i = 0; i < 1000; ++i) {
    loop_.Cancel(RequestId{1});
    (void)loop_.Query([](const RouterCore&) {});
  }

  FakeWorker worker({.listen = address, .incarnation = 2});
  EXPECT_TRUE(worker.Await([](const FakeWorker::Seen& seen) { return seen.sessions == 1; }));
  Release();

  const Instant end = Now() + std::chrono::seconds(20);
  while (StateOfTheWorker() != "ready" && Now() < end) {
  }
  EXPECT_EQ(StateOfTheWorker(), "ready");
  EXPECT_EQ(worker.seen().sessions, 1) << "the first session holds";
}

}  // namespace
}  // namespace baton
