// Goal: a GPU that is lost costs time but no request and no token, and its worker says what
// happened and takes no more; a worker that cannot have the memory it needs says so before anybody
// relies on it. Method: real processes on emulated GPUs, which fail when the test wants it; what
// comes out is compared with what an undisturbed GPU gives.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/model/testing/tiny_model.h"
#include "common/worker/engine_parts.h"
#include "decode_worker/local_runner.h"
#include "tests/support/cluster.h"
#include "tests/support/metrics_page.h"
#include "tests/support/workload.h"

namespace baton {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

constexpr int kStreams = 6;
constexpr uint32_t kStreamTokens = 60;
constexpr int kRoundsMax = 5;
constexpr Duration kDeadline = std::chrono::seconds(60);
constexpr uint64_t kMiB = uint64_t{1} << 20;

// What tokens depend on. Blocks of 4 KiB; a stream ends with at most 8 of them.
const std::vector<std::string>& GpuFlags() {
  static const auto* const flags =
      new std::vector<std::string>{"--device=cuda", "--weights=f32", "--kv_dtype=f32"};
  return *flags;
}

std::vector<v1::GenerateRequest> Requests() {
  std::vector<v1::GenerateRequest> requests = MakeWorkload(
      {.requests = kStreams, .seed = 9, .vocab = 256, .prompt_max = 60, .output_max = 1});
  for (v1::GenerateRequest& request : requests) {
    request.set_max_tokens(kStreamTokens);
    request.mutable_sampling()->set_temperature(0);
    request.mutable_stopping()->set_ignore_eos(true);
  }
  return requests;
}

std::string ReadFile(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

class GpuFailuresTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    model_ = new TemporaryFolder;
    ASSERT_TRUE(WriteTinyModel(model_->path(), {}).ok());
    expected_ = new std::vector<std::vector<TokenId>>;
    EngineParts parts = EngineParts::Create({.model = model_->path(),
                                             .device = "cuda",
                                             .weights = "f32",
                                             .kv_dtype = DType::kF32,
                                             .threads = 1,
                                             .kv_memory_bytes = 1 << 20})
                            .value();
    LocalRunner runner(&parts);
    for (const v1::GenerateRequest& request : Requests()) {
      std::vector<TokenId>& ids = expected_->emplace_back();
      for (const v1::Token& token : runner.Run(WorkOf(request, {}, 1)).tokens) {
        ids.push_back(token.id());
      }
    }
  }
  static void TearDownTestSuite() {
    delete expected_;
    delete model_;
  }

  // Every worker's GPU can be lost.
  void StartCluster(int prefill, int decode, const std::vector<std::string>& prefill_flags = {},
                    const std::vector<std::string>& decode_flags = {"--swap_memory=1MiB"},
                    const std::vector<std::string>& router_flags = {}) {
    absl::StatusOr<std::unique_ptr<Cluster>> cluster = Cluster::Start(
        {.model = model_->path(),
         .prefill = prefill,
         .decode = decode,
         .worker_flags = GpuFlags(),
         .decode_flags = decode_flags,
         .router_flags = router_flags,
         .place = [this, prefill_flags](const std::string& role, int index,
                                        std::vector<std::string>* command) {
           const std::string when =
               absl::StrCat("BATON_EMULATED_GPU_FAILS_WHEN=", File(role, index));
           command->insert(command->begin(), {"env", when});
           if (role == "decode") return;
           command->insert(command->end(), prefill_flags.begin(), prefill_flags.end());
         }});
    ASSERT_TRUE(cluster.ok()) << cluster.status();
    cluster_ = *std::move(cluster);
  }

  std::string File(const std::string& role, int index) const {
    return absl::StrCat(files_.path(), "/", role, index);
  }
  // After so many operations more.
  void LoseGpu(const std::string& role, int index, int operations = 0) const {
    const std::string file = File(role, index);
    std::ofstream(file + ".new") << operations;
    ASSERT_EQ(std::rename((file + ".new").c_str(), file.c_str()), 0);
  }

  // Runs all requests at once, and `fault` when each has given a few tokens.
  std::vector<Answer> RunAll(const std::function<void()>& fault = nullptr) {
    const std::vector<v1::GenerateRequest> requests = Requests();
    std::vector<Answer> answers(requests.size());
    absl::Mutex mutex;
    size_t under_way = 0;
    std::vector<std::thread> clients;
    for (size_t i = 0; i < requests.size(); ++i) {
      clients.emplace_back([&, i] {
        bool counted = false;
        answers[i] = cluster_->Generate(requests[i], kDeadline, [&](const v1::Delta&) {
          if (!std::exchange(counted, true)) {
            const absl::MutexLock lock(&mutex);
            ++under_way;
          }
          return true;
        });
      });
    }
    if (fault != nullptr) {
      const absl::MutexLock lock(&mutex);
      const auto all = [&] { return under_way == requests.size(); };
      EXPECT_TRUE(mutex.AwaitWithTimeout(absl::Condition(&all), absl::Seconds(30)));
      fault();
    }
    for (std::thread& client : clients) client.join();
    return answers;
  }

  static void ExpectTrueStreams(const std::vector<Answer>& answers) {
    for (size_t i = 0; i < answers.size(); ++i) {
      EXPECT_TRUE(answers[i].status.ok()) << answers[i].status;
      EXPECT_EQ(answers[i].tokens, (*expected_)[i]) << "stream " << i;
    }
  }
  static uint32_t Retries(const std::vector<Answer>& answers) {
    uint32_t retries = 0;
    for (const Answer& answer : answers) retries += answer.finished.retries();
    return retries;
  }

  // All workers but those without a GPU are there and have nothing to do; those are out of it.
  void ExpectRest(int ready) {
    EXPECT_TRUE(cluster_->WaitUntil([ready](const v1::GetClusterResponse& status) {
      v1::GetClusterResponse rest = status;
      rest.clear_workers();
      for (const v1::WorkerStatus& worker : status.workers()) {
        if (worker.state() == "ready") *rest.add_workers() = worker;
      }
      return rest.workers_size() == ready && Cluster::AtRest(rest);
    })) << cluster_->Status()->DebugString();
  }

  static bool HasSaid(const Process& worker) {
    return ReadFile(worker.log()).find("the device is lost; start the worker again") !=
           std::string::npos;
  }

  // It says why, and can still be told to end.
  static void ExpectSaidAndEnds(Process& worker) {
    const std::string log = ReadFile(worker.log());
    EXPECT_TRUE(HasSaid(worker)) << worker.LogTail();
    EXPECT_THAT(log, HasSubstr("cuda:0 emulated GPU"));
    EXPECT_THAT(log, HasSubstr("cudaErrorIllegalAddress, an illegal memory access"));
    worker.Signal(SIGTERM);
    const absl::StatusOr<int> code = worker.Wait(std::chrono::seconds(20));
    ASSERT_TRUE(code.ok()) << code.status();
    EXPECT_EQ(*code, 0) << worker.LogTail();
  }

  inline static TemporaryFolder* model_ = nullptr;
  inline static std::vector<std::vector<TokenId>>* expected_ = nullptr;
  TemporaryFolder files_;
  std::unique_ptr<Cluster> cluster_;
};

// ---- A GPU that is lost ------------------------------------------------------------------------

TEST_F(GpuFailuresTest, AnotherDecodeWorkerGoesOnWithTheStreams) {
  StartCluster(1, 2);

  const std::vector<Answer> answers = RunAll([this] { LoseGpu("decode", 0); });

  ExpectTrueStreams(answers);
  EXPECT_GT(Retries(answers), 0u);
  ExpectRest(2);
  ExpectSaidAndEnds(cluster_->decode(0));
}

// It computes nothing before it has received something.
TEST_F(GpuFailuresTest, ADecodeWorkerThatOnlyReceivesSaysSoToo) {
  StartCluster(1, 2, {}, {"--swap_memory=0", "--local_prefill=never"});
  LoseGpu("decode", 0);

  for (int round = 0; round < kRoundsMax && !HasSaid(cluster_->decode(0)); ++round) {
    ExpectTrueStreams(RunAll());
  }

  ExpectRest(2);
  EXPECT_THAT(ReadFile(cluster_->decode(0).log()), HasSubstr("finishing copies"));
  ExpectSaidAndEnds(cluster_->decode(0));
}

struct Loss {
  std::string role;
  int operations = 0;
};

// From the first copy of somebody else's KV or of a step's inputs to the middle of the last step.
class LostGpuTest : public GpuFailuresTest, public testing::WithParamInterface<Loss> {};

TEST_P(LostGpuTest, CostsNoRequest) {
  const auto& [role, operations] = GetParam();
  StartCluster(2, 2, {"--chunk_tokens=16"});
  Process& worker = role == "decode" ? cluster_->decode(0) : cluster_->prefill(0);
  LoseGpu(role, 0, operations);

  // At first not all workers know the way to each other, and one may have nothing to do.
  for (int round = 0; round < kRoundsMax && !HasSaid(worker); ++round) {
    ExpectTrueStreams(RunAll());
  }

  ExpectRest(3);
  ExpectSaidAndEnds(worker);
}

std::vector<Loss> Losses() {
  std::vector<Loss> losses;
  for (const char* const role : {"prefill", "decode"}) {
    for (const int operations : {0, 1, 2, 3, 5, 20, 50, 200}) losses.push_back({role, operations});
  }
  return losses;
}

INSTANTIATE_TEST_SUITE_P(Operations, LostGpuTest, testing::ValuesIn(Losses()),
                         [](const auto& loss) {
                           return absl::StrCat(loss.param.role, "After", loss.param.operations);
                         });

}  // namespace
}  // namespace baton
