// Goal: what is not a death does no harm either: processes that hang for a while, a router that is
// gone, too much work, clients that leave.
// Method: real processes over UCX with streams running, compared with one process.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>

#include <atomic>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "tests/integration/testing/cluster_streams.h"

namespace baton {
namespace {

using std::chrono::seconds;

constexpr auto kBriefly = std::chrono::milliseconds(700);
// Longer than the silence that breaks a session.
constexpr auto kForLong = seconds(5);

class FaultTest : public ClusterStreamsTest {
 protected:
  // The process does nothing for so long, and then goes on as if nothing had been.
  static void Freeze(
      const Process& process, Duration duration, const std::function<void()>& meanwhile = [] {}) {
    process.Signal(SIGSTOP);
    siginfo_t stopped = {};  // On a busy machine it takes a while until all its threads have.
    EXPECT_EQ(waitid(P_PID, static_cast<id_t>(process.pid()), &stopped, WSTOPPED | WNOWAIT), 0);
    meanwhile();
    absl::Notification().WaitForNotificationWithTimeout(absl::FromChrono(duration));
    process.Signal(SIGCONT);
  }
  void ExpectReady(int workers) {
    EXPECT_TRUE(cluster_->WaitUntil([workers](const v1::GetClusterResponse& status) {
      return Cluster::ReadyCount(status) == workers;
    })) << cluster_->Status()->DebugString();
  }
};

// Parameter: how long a process is frozen.
class FreezeTest : public FaultTest, public testing::WithParamInterface<Duration> {};

TEST_P(FreezeTest, DecodeWorker) {
  StartCluster(1, 2);

  const std::vector<Answer> answers =
      RunWithFault([this] { Freeze(cluster_->decode(BusyDecode()), GetParam()); });

  ExpectTrueStreams(answers);
  EXPECT_EQ(OkCount(answers), answers.size());
  if (GetParam() == Duration(kForLong)) {
    EXPECT_GT(Retries(answers), 0u);
  }
  ExpectReady(3);
  ExpectServesAndRests();
}

TEST_P(FreezeTest, PrefillWorker) {
  StartCluster(1, 1, {}, {"--local_prefill=never"});
  Answer asked_meanwhile;

  const std::vector<Answer> answers = RunWithFault([this, &asked_meanwhile] {
    std::thread client;
    Freeze(cluster_->prefill(0), GetParam(), [&] {
      client = std::thread([&] { asked_meanwhile = cluster_->Generate(LongRequests()[0]); });
    });
    client.join();
  });

  ExpectTrueStreams(answers);
  EXPECT_EQ(OkCount(answers), answers.size());
  EXPECT_TRUE(asked_meanwhile.status.ok()) << asked_meanwhile.status;
  EXPECT_EQ(asked_meanwhile.tokens, (*oracle_)[0]);
  EXPECT_EQ(asked_meanwhile.finished.prefill_worker(), cluster_->prefill_address(0));
  EXPECT_GT(asked_meanwhile.finished.timings().first_token_ms(), ToMilliseconds(GetParam()) / 2);
  ExpectReady(2);
  ExpectServesAndRests();
}

TEST_P(FreezeTest, Router) {
  StartCluster(1, 1);

  const std::vector<Answer> answers =
      RunWithFault([this] { Freeze(cluster_->router(), GetParam()); });

  ExpectTrueStreams(answers);
  EXPECT_EQ(OkCount(answers), answers.size());
  ExpectReady(2);
  ExpectServesAndRests();
}

INSTANTIATE_TEST_SUITE_P(Durations, FreezeTest, testing::Values(Duration(kBriefly), kForLong),
                         [](const auto& duration) {
                           return std::string(duration.param == kForLong ? "ForLong" : "Briefly");
                         });

// The call breaks; what its client sends again, with what it got, goes on where it broke off.
TEST_F(FaultTest, KilledRoutersStreamsContinueAtTheNextOne) {
  StartCluster(1, 1);

  const std::vector<Answer> first = RunWithFault([this] { cluster_->router().Signal(SIGKILL); });

  ASSERT_TRUE(cluster_->RestartRouter().ok());
  ExpectReady(2);
  std::vector<v1::GenerateRequest> requests = LongRequests();
  for (size_t i = 0; i < first.size(); ++i) {
    EXPECT_EQ(first[i].status.code(), absl::StatusCode::kUnavailable) << first[i].status;
    requests[i].mutable_sampling()->set_seed(first[i].started.seed());
    requests[i].mutable_generated_ids()->Assign(first[i].tokens.begin(), first[i].tokens.end());
    const Answer rest = cluster_->Generate(requests[i]);
    ASSERT_TRUE(rest.status.ok()) << rest.status;
    std::vector<TokenId> whole = first[i].tokens;
    whole.insert(whole.end(), rest.tokens.begin(), rest.tokens.end());
    EXPECT_EQ(whole, (*oracle_)[i]) << "stream " << i;
  }
  ExpectServesAndRests();
}

// Whether preempted sequences find a swap space.
class FullPoolTest : public FaultTest, public testing::WithParamInterface<bool> {};

TEST_P(FullPoolTest, EveryStreamComesToItsTrueEnd) {
  // A few of the streams fill it.
  StartCluster(1, 1, {},
               {absl::StrCat("--kv_memory=", kStreamTokens, "KiB"),
                GetParam() ? "--swap_memory=8MiB" : "--swap_memory=0"});

  const std::vector<Answer> answers = RunWithFault([this] {
    // Otherwise nothing is shown.
    EXPECT_TRUE(cluster_->WaitUntil([](const v1::GetClusterResponse& status) {
      const auto& workers = status.workers();
      return std::any_of(workers.begin(), workers.end(), [](const v1::WorkerStatus& worker) {
        return GetParam() ? worker.load().swap_blocks_used() > 0
                          : worker.load().sequences_waiting() > 0;
      });
    }));
  });

  ExpectTrueStreams(answers);
  EXPECT_EQ(OkCount(answers), answers.size());
  ExpectServesAndRests();
}

INSTANTIATE_TEST_SUITE_P(Swap, FullPoolTest, testing::Bool(), [](const auto& swap) {
  return std::string(swap.param ? "WithSwapSpace" : "WithoutSwapSpace");
});

// Goal: what is beyond the queue is refused at once and says when to come back; what was taken is
// served.
TEST_F(FaultTest, TenTimesTheLoad) {
  constexpr int kTaken = 8;  // In the queue; two run.
  StartCluster(1, 1, {}, {"--sequences_max=2"}, {absl::StrCat("--queue_requests=", kTaken)});
  std::vector<v1::GenerateRequest> requests = LongRequests();
  for (v1::GenerateRequest& request : requests) request.set_max_tokens(kStreamTokens / 10);
  std::atomic<int> refused = 0, served = 0, wrong = 0;
  std::vector<std::thread> clients;

  for (int i = 0; i < 10 * kTaken; ++i) {
    clients.emplace_back([&, i] {
      const size_t which = static_cast<size_t>(i) % requests.size();
      const Answer answer = cluster_->Generate(requests[which]);
      const std::vector<TokenId>& truth = (*oracle_)[which];
      const bool all_there = answer.tokens.size() == requests[which].max_tokens() &&
                             std::equal(answer.tokens.begin(), answer.tokens.end(), truth.begin());
      if (answer.status.ok() && all_there) {
        ++served;
      } else if (absl::IsResourceExhausted(answer.status) && answer.tokens.empty() &&
                 answer.retry_after_ms.value_or(0) > 0) {
        ++refused;
      } else {
        ++wrong;
      }
    });
  }
  for (std::thread& client : clients) client.join();

  EXPECT_EQ(wrong, 0);
  EXPECT_GE(served, kTaken);
  EXPECT_GT(refused, 0);
  ExpectServesAndRests();
}

TEST_F(FaultTest, ClientsThatLeaveAtAnyPointLeaveNothingBehind) {
  StartCluster(1, 1);
  const std::vector<v1::GenerateRequest> requests = LongRequests();
  std::vector<std::thread> clients;

  for (uint32_t i = 0; i < 6 * kStreams; ++i) {
    clients.emplace_back([&, i] {
      std::mt19937 random(i);
      // Some leave before they have got anything.
      size_t left = random() % 60;
      const Duration patience =
          random() % 4 == 0 ? Duration(std::chrono::milliseconds(random() % 50)) : kDeadline;
      cluster_->Generate(requests[i % requests.size()], patience,
                         [&left](const v1::Delta&) { return left-- > 0; });
    });
  }
  for (std::thread& client : clients) client.join();

  ExpectServesAndRests();
}

}  // namespace
}  // namespace baton
