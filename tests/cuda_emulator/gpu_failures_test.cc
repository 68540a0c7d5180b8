// Goal: a GPU that is lost costs time but no request and no token, and its worker says what
// happened and takes no more. Method: real processes on emulated GPUs, which fail when the test
// wants it; what comes out is compared with what an undisturbed GPU gives.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <memory>
#include <span>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/clock.h"
#include "common/device/device.h"
#include "common/model/testing/tiny_model.h"
#include "common/model/warm_up.h"
#include "common/rpc/channel.h"
#include "common/rpc/testing/unary_call.h"
#include "common/worker/engine_parts.h"
#include "decode_worker/local_runner.h"
#include "tests/support/cluster.h"
#include "tests/support/faults.h"
#include "tests/support/metrics_page.h"
#include "tests/support/workload.h"

namespace baton {
namespace {

using testing::ContainsRegex;
using testing::HasSubstr;

constexpr int kStreams = 6;
constexpr uint32_t kStreamTokens = 60;
constexpr int kRoundsMax = 5;  // Until a worker whose GPU is to be lost has had something to do.
constexpr unsigned kApartSecondsMax = 60;
constexpr Duration kDeadline = std::chrono::seconds(60);
constexpr uint64_t kMiB = uint64_t{1} << 20;

// What tokens depend on, and no steps before the first request. A block has 4 KiB.
const std::vector<std::string>& GpuFlags() {
  static const auto* const flags = new std::vector<std::string>{
      "--device=cuda", "--weights=f32", "--kv_dtype=f32", "--warm_up=false"};
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

EngineParts EngineHere(const std::string& model, uint32_t gpus = 1) {
  return EngineParts::Create({.model = model,
                              .device = "cuda",
                              .tensor_parallelism = gpus,
                              .weights = "f32",
                              .kv_dtype = DType::kF32,
                              .threads = 1,
                              .kv_memory_bytes = kMiB})
      .value();
}

// The model, and what a GPU that works answers.
class Undisturbed {
 public:
  Undisturbed() {
    EXPECT_TRUE(WriteTinyModel(model(), {}).ok());
    EngineParts parts = EngineHere(model());
    LocalRunner runner(&parts);
    for (const v1::GenerateRequest& request : Requests()) {
      std::vector<TokenId>& ids = streams_.emplace_back();
      for (const v1::Token& token : runner.Run(WorkOf(request, {}, 1)).tokens) {
        ids.push_back(token.id());
      }
    }
  }

  const std::string& model() const { return folder_.path(); }
  const std::vector<std::vector<TokenId>>& streams() const { return streams_; }

 private:
  TemporaryFolder folder_;
  std::vector<std::vector<TokenId>> streams_;
};

const Undisturbed& Truth() {
  static const Undisturbed truth;
  return truth;
}

class GpuFailuresTest : public testing::Test {
 protected:
  // Every worker's GPU can be lost.
  void StartCluster(int prefill, int decode, const std::vector<std::string>& prefill_flags = {},
                    const std::vector<std::string>& decode_flags = {"--swap_memory=1MiB"},
                    const std::vector<std::string>& router_flags = {}) {
    absl::StatusOr<std::unique_ptr<Cluster>> cluster = Cluster::Start(
        {.model = Truth().model(),
         .prefill = prefill,
         .decode = decode,
         .worker_flags = GpuFlags(),
         .decode_flags = decode_flags,
         .router_flags = router_flags,
         .place = [this, prefill_flags](const std::string& role, int index,
                                        std::vector<std::string>* command) {
           const std::string file = File(role, index);
           command->insert(command->begin(),
                           {"env", absl::StrCat("BATON_EMULATED_GPU_FAILS_WHEN=", file),
                            absl::StrCat("BATON_EMULATED_GPU_HANGS_WHILE=", file, ".hangs")});
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

  void LetGpuHang(const std::string& role, int index) const {
    std::ofstream(File(role, index) + ".hangs") << "";
  }
  void LetGpuGoOn(const std::string& role, int index) const {
    ASSERT_EQ(std::remove((File(role, index) + ".hangs").c_str()), 0);
  }

  // Runs all requests at once, and `happens` when `streams` of them have given a token.
  std::vector<Answer> RunAll(const std::function<void()>& happens = nullptr,
                             size_t streams = kStreams) {
    return RunThrough(*cluster_, Requests(), kDeadline,
                      {.happens = happens, .streams = streams, .tokens = 1});
  }

  static void ExpectTrueStreams(const std::vector<Answer>& answers) {
    for (size_t i = 0; i < answers.size(); ++i) {
      EXPECT_TRUE(answers[i].status.ok()) << answers[i].status;
      EXPECT_EQ(answers[i].tokens, Truth().streams()[i]) << "stream " << i;
    }
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
    return ReadFile(worker.log()).find("the device is lost") != std::string::npos;
  }

  // It says why and ends, so that whoever watches over it starts it again.
  static void ExpectSaidAndEnds(Process& worker) {
    const absl::StatusOr<int> code = worker.Wait(std::chrono::seconds(20));
    ASSERT_TRUE(code.ok()) << code.status();
    EXPECT_EQ(*code, 1) << worker.LogTail();
    constexpr char kReason[] =
        "cuda:[01] emulated GPU: .*cudaErrorIllegalAddress, an illegal memory access was "
        "encountered";
    const std::string log = ReadFile(worker.log());
    EXPECT_THAT(
        log, ContainsRegex(absl::StrCat("the device is lost reason=\"UNAVAILABLE: .*", kReason)));
    EXPECT_THAT(log, ContainsRegex(absl::StrCat("error: .*", kReason)));
  }

  TemporaryFolder files_;
  std::unique_ptr<Cluster> cluster_;
};

// ---- Every operation can be the first that is not done -----------------------------------------

// In a process of its own, whose GPU is lost after so many operations more. Returns what it exits
// with, or -1.
class LostHereTest : public GpuFailuresTest {
 protected:
  int RunAndLose(int operations, const std::function<int()>& body) const {
    LoseGpu("here", 0, operations);
    return RunApart(body);
  }
  // The same of a body that calls LoseGpu("here", 0, …) when it wants to.
  int RunApart(const std::function<int()>& body) const {
    const pid_t child = fork();
    if (child == 0) {
      alarm(kApartSecondsMax);
      setenv("BATON_EMULATED_GPU_FAILS_WHEN", File("here", 0).c_str(), 1);
      _exit(body());
    }
    int status = 0;
    EXPECT_EQ(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
};

TEST_F(LostHereTest, ACopyThatWasNotMadeIsAnError) {
  enum { kDone, kRefused };
  const std::unique_ptr<Device> gpu = OpenDevice("cuda").value();
  const DeviceMemory memory = gpu->Allocate(100).value();
  const DeviceMemory pinned = gpu->AllocatePinned(100).value();
  // Not to be copied in one go.
  const std::vector<std::span<std::byte>> pieces = {{memory.data() + 50, 20}, {memory.data(), 10}};
  const std::vector<std::span<const std::byte>> from(pieces.begin(), pieces.end());
  const auto result = [](const absl::Status& status) { return status.ok() ? kDone : kRefused; };
  const auto gather = [&] { return result(gpu->Gather(pinned.data(), from)); };
  const auto scatter = [&] { return result(gpu->Scatter(pieces, pinned.data())); };
  const auto to_host = [&] { return result(gpu->CopyToHost(pinned.data(), memory.data(), 100)); };
  const auto from_host = [&] {
    return result(gpu->CopyFromHost(memory.data(), pinned.data(), 100));
  };

  for (const int operations : {0, 1}) {
    EXPECT_EQ(RunAndLose(operations, gather), kRefused);
    EXPECT_EQ(RunAndLose(operations, scatter), kRefused);
  }
  EXPECT_EQ(RunAndLose(0, to_host), kRefused);
  EXPECT_EQ(RunAndLose(0, from_host), kRefused);
  EXPECT_EQ(RunAndLose(2, gather), kDone);
  EXPECT_EQ(RunAndLose(1, to_host), kDone);
}

// A prompt, a step that runs as it is, one that is recorded, and one that is replayed.
TEST_F(LostHereTest, NoTokenComesFromALostGpu) {
  enum { kAll, kPart, kUnclear, kWrong };
  EngineParts parts = EngineHere(Truth().model());
  LocalRunner runner(&parts);
  const std::vector<v1::GenerateRequest> requests = Requests();
  const auto shortest =
      std::min_element(requests.begin(), requests.end(), [](const auto& a, const auto& b) {
        return a.prompt_ids().ids_size() < b.prompt_ids().ids_size();
      });
  v1::GenerateRequest request = *shortest;
  request.set_max_tokens(4);
  const std::vector<TokenId>& expected =
      Truth().streams()[static_cast<size_t>(shortest - requests.begin())];
  const auto run = [&] {
    const LocalResult result = runner.Run(WorkOf(request, {}, 1));
    for (size_t i = 0; i < result.tokens.size(); ++i) {
      if (result.tokens[i].id() != expected[i]) return kWrong;
    }
    if (result.status.ok()) return result.tokens.size() == request.max_tokens() ? kAll : kWrong;
    const bool clear = absl::IsUnavailable(result.status) && !parts.model->Health().ok() &&
                       absl::StrContains(result.status.message(), "cuda:0 emulated GPU");
    return clear ? kPart : kUnclear;
  };

  int operations = 0;
  for (int code = kPart; code == kPart; operations += 3) {
    ASSERT_LT(operations, 10000);
    code = RunAndLose(operations, run);
    ASSERT_LT(code, kUnclear) << "after " << operations << " operations";
    ASSERT_GE(code, 0) << "after " << operations << " operations";
  }
  EXPECT_GT(operations, 100) << "hardly anything was tried";
}

// In a prompt, in steps that are started ahead, and with log-probabilities in steps that are not.
TEST_F(LostHereTest, OfTwoGpusNeitherWaitsForOneThatIsLost) {
  enum { kAll, kPart, kUnclear };
  const std::string& model = Truth().model();
  for (const bool logprobs : {false, true}) {
    v1::GenerateRequest request = Requests()[0];
    request.set_max_tokens(6);
    if (logprobs) request.mutable_sampling()->set_logprobs(1);
    int operations = 0;
    const auto run = [&] {
      EngineParts parts = EngineHere(model, /*gpus=*/2);
      LocalRunner runner(&parts);
      LoseGpu("here", 0, operations);
      const LocalResult result = runner.Run(WorkOf(request, {}, 1));
      if (result.status.ok()) return kAll;
      return absl::IsUnavailable(result.status) && !parts.model->Health().ok() ? kPart : kUnclear;
    };
    for (int code = kPart; code == kPart; operations += 41) {
      ASSERT_LT(operations, 10000);
      code = RunApart(run);
      ASSERT_LT(code, kUnclear) << "after " << operations << " operations";
      ASSERT_GE(code, 0) << "after " << operations << " operations";
      std::remove(File("here", 0).c_str());
    }
    EXPECT_GT(operations, 300) << "hardly anything was tried";
  }
}

TEST_F(LostHereTest, AWorkerDoesNotWarmUpOnALostGpu) {
  enum { kAll, kPart, kUnclear };
  EngineParts parts = EngineHere(Truth().model());
  const auto run = [&] {
    const auto steps = WarmUp(*parts.model, *parts.arena, {.chunk_tokens = 64, .sequences_max = 8});
    if (steps.ok()) return kAll;
    return absl::IsUnavailable(steps.status()) &&
                   absl::StrContains(steps.status().message(), "cuda:0 emulated GPU")
               ? kPart
               : kUnclear;
  };

  int operations = 0;
  for (int code = kPart; code == kPart; operations += 13) {
    ASSERT_LT(operations, 10000);
    code = RunAndLose(operations, run);
    ASSERT_LT(code, kUnclear) << "after " << operations << " operations";
    ASSERT_GE(code, 0) << "after " << operations << " operations";
  }
  EXPECT_GT(operations, 300) << "hardly anything was tried";
}

// It passes while a step is started, which is then of no use; the next request has its blocks.
TEST_F(LostHereTest, ADeadlineEndsARequestAndNotItsProcess) {
  EngineParts parts = EngineHere(Truth().model());
  LocalRunner runner(&parts);
  const v1::GenerateRequest request = Requests()[0];
  v1::Work late = WorkOf(request, {}, 1);
  late.set_deadline_ms(1000);
  Instant first{};  // Later than the deadline's beginning.
  const auto wait = [&first](const v1::Token& token) {
    if (token.index() == 0) first = Now();
    while (token.index() == 5 && Now() < first + std::chrono::seconds(1)) std::this_thread::yield();
    return true;
  };

  EXPECT_TRUE(absl::IsDeadlineExceeded(runner.Run(late, wait).status));

  std::vector<TokenId> ids;
  for (const v1::Token& token : runner.Run(WorkOf(request, {}, 2)).tokens)
    ids.push_back(token.id());
  EXPECT_EQ(ids, Truth().streams()[0]);
}

// ---- A GPU that is lost ------------------------------------------------------------------------

TEST_F(GpuFailuresTest, AnotherDecodeWorkerGoesOnWithTheStreams) {
  StartCluster(1, 2);

  int lost = 0;
  const std::vector<Answer> answers = RunAll([this, &lost] {
    lost = BusyDecode(*cluster_);
    LoseGpu("decode", lost);
  });

  ExpectTrueStreams(answers);
  EXPECT_GT(Retries(answers), 0u);
  ExpectRest(2);
  ExpectSaidAndEnds(cluster_->decode(lost));
}

// It computes nothing before it has received something. Of one GPU, or two.
class ReceivingTest : public GpuFailuresTest, public testing::WithParamInterface<int> {};

TEST_P(ReceivingTest, ADecodeWorkerThatOnlyReceivesSaysSoToo) {
  StartCluster(1, 2, {},
               {"--swap_memory=0", "--local_prefill=never", absl::StrCat("--tp=", GetParam())},
               {"--mixed_numerics"});
  LoseGpu("decode", 0);

  for (int round = 0; round < kRoundsMax && !HasSaid(cluster_->decode(0)); ++round) {
    ExpectTrueStreams(RunAll());
  }

  ExpectRest(2);
  EXPECT_THAT(ReadFile(cluster_->decode(0).log()), HasSubstr("finishing copies"));
  ExpectSaidAndEnds(cluster_->decode(0));
}

INSTANTIATE_TEST_SUITE_P(Gpus, ReceivingTest, testing::Values(1, 2));

struct Loss {
  std::string role;
  int operations = 0;
};

// In a prompt's first copies, in the middle of it, and later.
class LostGpuTest : public GpuFailuresTest, public testing::WithParamInterface<Loss> {};

TEST_P(LostGpuTest, CostsNoRequest) {
  const auto& [role, operations] = GetParam();
  StartCluster(2, 2, {"--chunk_tokens=16"});
  Process& worker = role == "decode" ? cluster_->decode(0) : cluster_->prefill(0);
  LoseGpu(role, 0, operations);

  for (int round = 0; round < kRoundsMax && !HasSaid(worker); ++round) {
    ExpectTrueStreams(RunAll());
  }

  ExpectRest(3);
  ExpectSaidAndEnds(worker);
}

std::vector<Loss> Losses() {
  std::vector<Loss> losses;
  for (const char* const role : {"prefill", "decode"}) {
    for (const int operations : {1, 20, 100}) losses.push_back({role, operations});
  }
  return losses;
}

INSTANTIATE_TEST_SUITE_P(Operations, LostGpuTest, testing::ValuesIn(Losses()),
                         [](const auto& loss) {
                           return absl::StrCat(loss.param.role, "After", loss.param.operations);
                         });

// The other one waits for it in the middle of a sum, and must come back.
TEST_F(GpuFailuresTest, OneOfTwoGpusThatPrefillTogetherIsLost) {
  StartCluster(2, 1, {"--tp=2", "--chunk_tokens=16"}, {"--swap_memory=1MiB"}, {"--mixed_numerics"});
  LoseGpu("prefill", 0, /*operations=*/100);

  for (int round = 0; round < kRoundsMax && !HasSaid(cluster_->prefill(0)); ++round) {
    ExpectTrueStreams(RunAll());
  }

  ExpectRest(2);
  ExpectSaidAndEnds(cluster_->prefill(0));
}

// In the prompts' first copies, and in steps of which the next one is in the queue already. Which
// of the two it is depends on the number.
class DecodeTogetherTest : public GpuFailuresTest, public testing::WithParamInterface<int> {};

TEST_P(DecodeTogetherTest, OneOfTwoGpusIsLost) {
  StartCluster(2, 2, {}, {"--tp=2", "--swap_memory=0"}, {"--mixed_numerics"});
  LoseGpu("decode", 0, GetParam());

  for (int round = 0; round < kRoundsMax && !HasSaid(cluster_->decode(0)); ++round) {
    ExpectTrueStreams(RunAll());
  }

  ExpectRest(3);
  ExpectSaidAndEnds(cluster_->decode(0));
}

INSTANTIATE_TEST_SUITE_P(Operations, DecodeTogetherTest, testing::Values(1, 200, 1001, 2002));

// ---- A GPU that hangs --------------------------------------------------------------------------

TEST_F(GpuFailuresTest, StreamsLeaveAGpuThatHangsAndComeToItAgain) {
  StartCluster(1, 2, {}, {"--engine_stall_seconds=1", "--swap_memory=1MiB"});
  // Health follows within a second.
  const auto expect_health = [this](int index, const std::string& health) {
    const auto channel = CreateChannel(cluster_->decode_address(index));
    EXPECT_TRUE(cluster_->WaitUntil([&](const v1::GetClusterResponse&) {
      return UnaryCall(channel, kHealthCheck, "").value() == health;
    }));
  };

  int hanging = 0;
  const std::vector<Answer> answers = RunAll([this, &hanging] {
    hanging = BusyDecode(*cluster_);
    LetGpuHang("decode", hanging);
  });

  ExpectTrueStreams(answers);
  EXPECT_GT(Retries(answers), 0u);
  ExpectRest(2);
  expect_health(hanging, kNotServing);

  LetGpuGoOn("decode", hanging);

  ExpectRest(3);
  expect_health(hanging, kServing);
  ExpectTrueStreams(RunAll());
}

TEST_F(GpuFailuresTest, AWorkerWhoseGpuHangsCanBeToldToEnd) {
  StartCluster(1, 1, {}, {"--drain_seconds=1", "--swap_memory=1MiB"});
  Process& worker = cluster_->decode(0);

  RunThrough(*cluster_, Requests(), std::chrono::seconds(5),
             {.happens =
                  [&] {
                    LetGpuHang("decode", 0);
                    worker.Signal(SIGTERM);
                  },
              .streams = kStreams,
              .tokens = 1});

  const absl::StatusOr<int> code = worker.Wait(std::chrono::seconds(40));
  ASSERT_TRUE(code.ok()) << code.status();
  EXPECT_EQ(*code, 1);
  EXPECT_THAT(ReadFile(worker.log()), HasSubstr("the engine hangs"));
}

// ---- Swap space --------------------------------------------------------------------------------

double Swaps(const std::string& metrics_address, const std::string& direction) {
  const absl::StatusOr<MetricsPage> page = ReadMetrics(metrics_address);
  EXPECT_TRUE(page.ok()) << page.status();
  return page.ok() ? page->at(absl::StrCat("baton_kv_swaps_total{direction=\"", direction, "\"}"))
                   : 0.0;
}

// A stream ends with up to 8 of the 10 blocks that decode workers have.
class SwapOnGpuTest : public GpuFailuresTest {
 protected:
  void StartCluster(int decode) {
    GpuFailuresTest::StartCluster(
        1, decode, {}, {"--kv_memory=40KiB", "--swap_memory=1MiB", "--metrics=127.0.0.1:0"});
    for (int i = 0; i < decode; ++i) {
      metrics_.push_back(cluster_->decode(i).WaitForLine("metrics on ", kDeadline).value());
    }
  }

  std::vector<std::string> metrics_;  // Of the decode workers.
};

TEST_F(SwapOnGpuTest, KvThatGaveWayComesBackFromTheHost) {
  StartCluster(1);

  ExpectTrueStreams(RunAll());

  ExpectRest(2);
  EXPECT_GT(Swaps(metrics_[0], "out"), 0);
  EXPECT_EQ(Swaps(metrics_[0], "in"), Swaps(metrics_[0], "out"));
}

// Little room elsewhere: the streams wait for it.
TEST_F(SwapOnGpuTest, WhatALostGpuHadSwappedIsComputedElsewhere) {
  StartCluster(2);

  int lost = 0;
  ExpectTrueStreams(RunAll(
      [this, &lost] {
        EXPECT_TRUE(cluster_->WaitUntil([this, &lost](const v1::GetClusterResponse&) {
          lost = Swaps(metrics_[0], "out") > 0 ? 0 : 1;
          return Swaps(metrics_[static_cast<size_t>(lost)], "out") > 0;
        }));
        LoseGpu("decode", lost);
      },
      /*streams=*/1));
  ExpectTrueStreams(RunAll());  // If those were over too soon.

  ExpectRest(2);
  ExpectSaidAndEnds(cluster_->decode(lost));
}

}  // namespace
}  // namespace baton
