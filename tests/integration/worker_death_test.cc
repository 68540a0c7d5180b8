// Goal: kill -9 of any worker at any moment hangs nobody, leaks nothing and changes no token.
// Method: real processes over UCX with streams running; what ends well is compared with one
// process.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>

#include <algorithm>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "tests/integration/testing/cluster_streams.h"
#include "tests/support/metrics_page.h"

namespace baton {
namespace {

// Prompts that take seconds, a few tokens at a time. A step is mostly not computing, so sanitizers
// slow it down by less than BATON_TEST_SLOWNESS, and short prompts would be over before the fault
// comes.
constexpr uint32_t kPromptTokens = BATON_TEST_SLOWNESS > 1 ? 600 : 1800;
constexpr int kPrompts = 2 * kStreams;

std::vector<v1::GenerateRequest> LongPrompts() {
  std::vector<v1::GenerateRequest> requests =
      MakeWorkload({.requests = kPrompts, .seed = 8, .vocab = 256, .output_max = 10});
  for (v1::GenerateRequest& request : requests) {
    request.mutable_stopping()->set_ignore_eos(true);
    auto* ids = request.mutable_prompt_ids()->mutable_ids();
    const int given = ids->size();
    for (int i = given; i < static_cast<int>(kPromptTokens); ++i) {
      ids->Add((ids->Get(i % given) + i) % 256);
    }
  }
  return requests;
}

class WorkerDeathTest : public ClusterStreamsTest {};

TEST_F(WorkerDeathTest, PrefillWorkerDiesUnderRunningStreams) {
  StartCluster(1, 1);

  const std::vector<Answer> answers =
      RunWithFault([this] { cluster_->prefill(0).Signal(SIGKILL); });

  ExpectTrueStreams(answers);
  EXPECT_EQ(OkCount(answers), answers.size());
  ASSERT_TRUE(cluster_->RestartPrefill(0).ok());
  EXPECT_TRUE(cluster_->WaitUntil(
      [](const v1::GetClusterResponse& status) { return Cluster::ReadyCount(status) == 2; }));
  ExpectServesAndRests();
}

// Goal: leases that are half filled are filled again by another prefill worker, whether the first
// one died or hangs, and the blocks under its last receives come home.
class WorkerLossTest : public WorkerDeathTest, public testing::WithParamInterface<int> {};

TEST_P(WorkerLossTest, InTheMiddleOfPrompts) {
  StartCluster(2, 1, {"--chunk_tokens=2"});
  const std::vector<v1::GenerateRequest> requests = LongPrompts();
  const Streams expected = Undisturbed(requests);
  std::vector<Answer> answers(requests.size());
  std::vector<std::thread> clients;
  for (size_t i = 0; i < requests.size(); ++i) {
    clients.emplace_back([&, i] { answers[i] = cluster_->Generate(requests[i], kDeadline); });
  }
  EXPECT_TRUE(cluster_->WaitUntil([](const v1::GetClusterResponse& status) {
    const auto& workers = status.workers();
    return std::any_of(workers.begin(), workers.end(), [](const v1::WorkerStatus& worker) {
      return worker.load().blocks_receiving() > 0;
    });
  }));

  cluster_->prefill(0).Signal(GetParam());
  for (std::thread& client : clients) client.join();

  for (size_t i = 0; i < answers.size(); ++i) {
    EXPECT_TRUE(answers[i].status.ok()) << answers[i].status;
    EXPECT_EQ(answers[i].tokens, expected[i]) << "stream " << i;
  }
  EXPECT_GT(Retries(answers), 0u) << "the fault came too late to matter";
  if (GetParam() == SIGSTOP) {
    cluster_->prefill(0).Signal(SIGCONT);  // It finds its session and its leases gone.
  } else {
    ASSERT_TRUE(cluster_->RestartPrefill(0).ok());
  }
  EXPECT_TRUE(cluster_->WaitUntil(
      [](const v1::GetClusterResponse& status) { return Cluster::ReadyCount(status) == 3; }));
  ExpectServesAndRests();
}

INSTANTIATE_TEST_SUITE_P(Signals, WorkerLossTest, testing::Values(SIGKILL, SIGSTOP),
                         [](const auto& fault) {
                           return std::string(fault.param == SIGKILL ? "Killed" : "Stopped");
                         });

TEST_F(WorkerDeathTest, DecodeWorkerDiesAndAnotherContinuesItsStreams) {
  StartCluster(1, 2);

  int killed = 0;
  const std::vector<Answer> answers = RunWithFault([this, &killed] {
    killed = BusyDecode();
    cluster_->decode(killed).Signal(SIGKILL);
  });

  ExpectTrueStreams(answers);
  EXPECT_EQ(OkCount(answers), answers.size());
  EXPECT_GT(Retries(answers), 0u);
  ASSERT_TRUE(cluster_->RestartDecode(killed).ok());
  EXPECT_TRUE(cluster_->WaitUntil(
      [](const v1::GetClusterResponse& status) { return Cluster::ReadyCount(status) == 3; }));
  ExpectServesAndRests();
}

TEST_F(WorkerDeathTest, TheOnlyDecodeWorkerDiesAndComesBack) {
  StartCluster(1, 1);

  const std::vector<Answer> answers = RunWithFault([this] {
    cluster_->decode(0).Signal(SIGKILL);
    ASSERT_TRUE(cluster_->RestartDecode(0).ok());
  });

  ExpectTrueStreams(answers);
  EXPECT_EQ(OkCount(answers), answers.size());
  EXPECT_GE(Retries(answers), answers.size());
  EXPECT_TRUE(cluster_->WaitUntil(
      [](const v1::GetClusterResponse& status) { return Cluster::ReadyCount(status) == 2; }));
  ExpectServesAndRests();
}

TEST_F(WorkerDeathTest, ClientThatGoesAwayLeavesNothingBehind) {
  StartCluster(1, 1);
  const v1::GenerateRequest request = LongRequests()[0];
  int deltas = 0;

  const Answer answer =
      cluster_->Generate(request, kDeadline, [&deltas](const v1::Delta&) { return ++deltas < 3; });

  EXPECT_EQ(answer.status.code(), absl::StatusCode::kCancelled);
  ExpectServesAndRests();
}

TEST_F(WorkerDeathTest, DeadlineEndsAStreamEverywhere) {
  StartCluster(1, 1);

  const Answer answer = cluster_->Generate(LongRequests()[0], std::chrono::milliseconds(40));

  EXPECT_EQ(answer.status.code(), absl::StatusCode::kDeadlineExceeded) << answer.status;
  ExpectServesAndRests();
}

TEST_F(WorkerDeathTest, TerminatedDecodeWorkerFinishesItsStreams) {
  StartCluster(1, 1);

  const std::vector<Answer> answers = RunWithFault([this] { cluster_->decode(0).Signal(SIGTERM); });

  EXPECT_EQ(OkCount(answers), answers.size());
  ExpectTrueStreams(answers);
  EXPECT_EQ(cluster_->decode(0).Wait(std::chrono::seconds(20)).value_or(-1), 0);
}

// Goal: streams leave a worker that is told to go, with their KV, and nothing is computed twice.
class WorkerDrainTest : public WorkerDeathTest, public testing::WithParamInterface<bool> {
 protected:
  // By SIGTERM or by the router's word.
  void DrainDecode(int i) {
    if (GetParam()) return cluster_->decode(i).Signal(SIGTERM);
    grpc::ClientContext context;
    v1::DrainWorkerRequest request;
    request.set_address(cluster_->decode_address(i));
    v1::DrainWorkerResponse response;
    const grpc::Status status = cluster_->stub().DrainWorker(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    EXPECT_GT(response.requests(), 0u);
  }
};

TEST_P(WorkerDrainTest, StreamsMoveToAnotherWorker) {
  StartCluster(1, 2);

  int drained = 0;
  const std::vector<Answer> answers =
      RunWithFault([this, &drained] { DrainDecode(drained = BusyDecode()); });

  ExpectTrueStreams(answers);
  EXPECT_EQ(OkCount(answers), answers.size());
  std::set<std::string> last_workers;
  for (const Answer& answer : answers) last_workers.insert(answer.finished.decode_worker());
  EXPECT_EQ(last_workers.size(), 1u) << "not all of them moved";
  MetricsPage metrics = ReadMetrics(cluster_->router_metrics_address()).value();
  EXPECT_GT(metrics["baton_moves_total{result=\"done\"}"], 0);
  // On a machine that is too busy a session may break on the way; nothing else makes a retry.
  EXPECT_EQ(metrics["baton_retries_total{cause=\"decode_lost\"}"], Retries(answers));
  EXPECT_EQ(cluster_->decode(drained).Wait(std::chrono::seconds(20)).value_or(-1), 0);
  EXPECT_TRUE(cluster_->WaitUntil([](const v1::GetClusterResponse& status) {
    const auto& workers = status.workers();
    return std::any_of(workers.begin(), workers.end(), [](const v1::WorkerStatus& worker) {
      return worker.state() == "lost" && worker.drained();
    });
  }));
  const absl::Status restarted = cluster_->RestartDecode(drained);
  ASSERT_TRUE(restarted.ok()) << restarted;
  EXPECT_TRUE(cluster_->WaitUntil(
      [](const v1::GetClusterResponse& status) { return Cluster::ReadyCount(status) == 3; }));
  ExpectServesAndRests();
}

INSTANTIATE_TEST_SUITE_P(Causes, WorkerDrainTest, testing::Bool(), [](const auto& cause) {
  return std::string(cause.param ? "Terminated" : "ToldByTheRouter");
});

// The worker goes with its old router's streams, and the new router never meets it: what became of
// it nobody can say, and the command must say that.
TEST_F(WorkerDeathTest, DrainCommandOutlivesItsRouter) {
  StartCluster(1, 1);
  std::unique_ptr<Process> command;

  const std::vector<Answer> answers = RunWithFault([&] {
    command = Process::Start({BinaryFolder() + "/baton", "drain", cluster_->decode_address(0),
                              "--router", cluster_->router_address()},
                             cluster_->folder() + "/drain.log")
                  .value();
    EXPECT_TRUE(cluster_->WaitUntil([](const v1::GetClusterResponse& status) {
      const auto& workers = status.workers();
      return std::any_of(workers.begin(), workers.end(), [](const v1::WorkerStatus& worker) {
        return worker.state() == "draining";
      });
    }));
    cluster_->router().Signal(SIGKILL);
    EXPECT_TRUE(cluster_->router().Wait(kDeadline).ok());
    EXPECT_EQ(cluster_->decode(0).Wait(kDeadline).value_or(-1), 0);
    EXPECT_TRUE(cluster_->RestartRouter().ok());
  });

  ExpectTrueStreams(answers);
  EXPECT_EQ(command->Wait(kDeadline).value_or(-1), 1);
  EXPECT_THAT(command->LogTail(), testing::AllOf(testing::HasSubstr("goes on at other workers"),
                                                 testing::HasSubstr("see `baton status`")));
  ASSERT_TRUE(cluster_->RestartDecode(0).ok());
  ExpectServesAndRests();
}

// A worker that still loads has promised nothing: it goes at once.
TEST_F(WorkerDeathTest, WorkersThatLoadGoAtOnce) {
  const TemporaryFolder model;
  // Whoever opens it waits for somebody who writes.
  const std::string config = model.path() + "/config.json";
  ASSERT_EQ(mkfifo(config.c_str(), 0600), 0);
  for (const std::string role : {"prefill", "decode"}) {
    const std::string log = model.path() + "/" + role + ".log";
    auto worker = Process::Start(
        {BinaryFolder() + "/baton_" + role + "_worker", "--model", model.path()}, log);
    ASSERT_TRUE(worker.ok()) << worker.status();
    for (const Instant deadline = Now() + kDeadline;
         (*worker)->LogTail().find("loading model") == std::string::npos && Now() < deadline;) {
      absl::Notification().WaitForNotificationWithTimeout(absl::Milliseconds(10));
    }

    (*worker)->Signal(SIGTERM);

    EXPECT_EQ((*worker)->Wait(kDeadline).value_or(-1), 128 + SIGTERM) << (*worker)->LogTail();
    EXPECT_THAT((*worker)->LogTail(), testing::HasSubstr("loading model"));
  }
}

TEST_F(WorkerDeathTest, TerminatedRouterLetsItsStreamsFinish) {
  StartCluster(1, 1);

  const std::vector<Answer> answers = RunWithFault([this] { cluster_->router().Signal(SIGTERM); });

  EXPECT_EQ(OkCount(answers), answers.size());
  EXPECT_EQ(cluster_->router().Wait(std::chrono::seconds(20)).value_or(-1), 0);
}

}  // namespace
}  // namespace baton
