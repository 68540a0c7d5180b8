// Goal: a whole cluster on one GPU, a prefill and a decode worker as two processes, gives what the
// CPU gives: in float32 the same tokens but where two are nearly as likely, and in bfloat16, as a
// user would run it, a memory as good. Method: the demo model's lists; see recall_test.
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/device/device.h"
#include "common/device/testing/required_gpus.h"
#include "common/tokenizer/tokenizer.h"
#include "common/worker/engine_parts.h"
#include "decode_worker/local_runner.h"
#include "tests/support/cluster.h"
#include "tests/support/metrics_page.h"
#include "tests/support/recall.h"
#include "tests/support/ucx_with_cuda.h"
#include "tests/support/workload.h"

namespace baton {
namespace {

// Of a hundred.
constexpr size_t kStreamsThatMayDiffer = 2;
constexpr size_t kAnswersThatMayBeLost = 3;

// BATON_CUDA_TEST_QUESTIONS, for GPUs that are emulated, or all 200.
size_t QuestionCount() {
  const char* const count = std::getenv("BATON_CUDA_TEST_QUESTIONS");
  return count == nullptr ? 200 : static_cast<size_t>(std::atoi(count));
}

// Rounded down: of few questions none.
int Share(size_t of_a_hundred) { return static_cast<int>(of_a_hundred * QuestionCount() / 100); }

struct Score {
  int right = 0;
  int same = 0;  // Streams that are equal to the CPU's.
};

// The questions, and what one process on the CPU answers.
struct Oracle {
  std::vector<RecallQuestion> questions;
  std::vector<std::vector<TokenId>> answers;
  int right = 0;
};

Oracle AskTheCpu() {
  Oracle oracle;
  const auto tokenizer = Tokenizer::Load(kDemoModel).value();
  oracle.questions = ReadRecallQuestions(*tokenizer);
  oracle.questions.resize(QuestionCount());
  auto parts =
      EngineParts::Create({.model = kDemoModel, .threads = 4, .kv_memory_bytes = 64 << 20}).value();
  LocalRunner runner(&parts);
  for (const RecallQuestion& question : oracle.questions) {
    const LocalResult result =
        runner.Run(WorkOf(question.request, parts.model->config().eos_token_ids, 1));
    std::vector<TokenId>& ids = oracle.answers.emplace_back();
    for (const v1::Token& token : result.tokens) ids.push_back(token.id());
    oracle.right += IsRecalled(tokenizer->Decode(ids, true), question.answer) ? 1 : 0;
  }
  return oracle;
}

class ClusterCudaTest : public testing::Test {
 protected:
  void SetUp() override { SKIP_WITHOUT_GPUS(1, OpenDevice("cuda").status()); }

  static const Oracle& Cpu() {
    static const Oracle oracle = AskTheCpu();
    return oracle;
  }

  // The GPU has done most steps without waiting for the host.
  static void ExpectStepsAhead(Process& worker) {
    const auto address = worker.WaitForLine("metrics on ", std::chrono::seconds(10));
    ASSERT_TRUE(address.ok()) << address.status();
    const absl::StatusOr<MetricsPage> page = ReadMetrics(*address);
    ASSERT_TRUE(page.ok()) << page.status();
    const auto steps = [&page](const std::string& start) {
      return page->at(absl::StrCat("baton_engine_steps_total{start=\"", start, "\"}"));
    };
    EXPECT_GT(steps("ahead"), steps("waited"));
  }

  static void ExpectStaging(const Process& worker, const std::string& staging) {
    std::ifstream file(worker.log());
    const std::string log(std::istreambuf_iterator<char>(file), {});
    EXPECT_NE(log.find(" staging=" + staging + " "), std::string::npos) << log;
  }

  // What differs between the two workers.
  struct Pair {
    int prefill_gpus = 1;  // That the prefill worker computes on together.
    int decode_gpus = 1;
    std::string prefill_staging = "pinned";
    std::string decode_staging = "pinned";
  };
  Score AskTheGpu(const std::vector<std::string>& flags) { return AskTheGpu(flags, Pair()); }
  Score AskTheGpu(const std::vector<std::string>& flags, const Pair& pair) {
    std::vector<std::string> worker_flags = {"--device=cuda", "--kv_memory=256MiB",
                                             "--warm_up=false"};
    std::vector<std::string> router_flags;
    if (pair.prefill_gpus != pair.decode_gpus) router_flags.push_back("--mixed_numerics");
    worker_flags.insert(worker_flags.end(), flags.begin(), flags.end());
    const auto cluster = Cluster::Start(
        {.model = kDemoModel,
         .prefill = 1,
         .decode = 1,
         .worker_flags = worker_flags,
         // What does not arrive is not computed again.
         .decode_flags = {"--swap_memory=64MiB", "--local_prefill=never", "--metrics=127.0.0.1:0"},
         .router_flags = router_flags,
         .place = [&](const std::string& role, int /*index*/, std::vector<std::string>* command) {
           const bool prefill = role == "prefill";
           command->push_back("--kv_staging=" +
                              (prefill ? pair.prefill_staging : pair.decode_staging));
           command->push_back(
               absl::StrCat("--tp=", prefill ? pair.prefill_gpus : pair.decode_gpus));
           LoadUcxWithCuda(command);
         }});
    EXPECT_TRUE(cluster.ok()) << cluster.status();
    Score score;
    if (!cluster.ok()) return score;
    const Oracle& cpu = Cpu();
    const std::vector<Answer> answers = AskAll(**cluster, cpu.questions);
    for (size_t q = 0; q < answers.size(); ++q) {
      EXPECT_TRUE(answers[q].status.ok()) << answers[q].status;
      score.right += IsRecalled(answers[q].text, cpu.questions[q].answer) ? 1 : 0;
      score.same += answers[q].tokens == cpu.answers[q] ? 1 : 0;
    }
    EXPECT_TRUE((*cluster)->WaitUntil(Cluster::AtRest)) << "a block is lost";
    ExpectStepsAhead((*cluster)->decode(0));
    ExpectStaging((*cluster)->prefill(0), pair.prefill_staging);
    ExpectStaging((*cluster)->decode(0), pair.decode_staging);
    std::cout << "recall: " << cpu.right << " of " << answers.size() << " on the CPU, "
              << score.right << " on the GPU; " << score.same << " streams are equal\n";
    return score;
  }
};

// Of workers that have warmed up.
TEST_F(ClusterCudaTest, InFloat32TokensAreTheCpus) {
  const Score score = AskTheGpu({"--weights=f32", "--kv_dtype=f32", "--warm_up=true",
                                 "--sequences_max=16", "--chunk_tokens=64"});

  EXPECT_GE(score.same + Share(kStreamsThatMayDiffer), static_cast<int>(Cpu().questions.size()));
}

// Each of them sends the KV heads that it has to one.
TEST_F(ClusterCudaTest, TwoGpusPrefillForOne) {
  SKIP_WITHOUT_GPUS(2, OpenDevices("cuda", 2).status());
  const Score score = AskTheGpu({"--weights=f32", "--kv_dtype=f32"}, {.prefill_gpus = 2});

  EXPECT_GE(score.same + Share(kStreamsThatMayDiffer), static_cast<int>(Cpu().questions.size()));
}

// Neither of them waits for the host in most steps.
TEST_F(ClusterCudaTest, TwoGpusDecodeTogether) {
  SKIP_WITHOUT_GPUS(2, OpenDevices("cuda", 2).status());
  const Score score = AskTheGpu({"--weights=f32", "--kv_dtype=f32"}, {.decode_gpus = 2});

  EXPECT_GE(score.same + Share(kStreamsThatMayDiffer), static_cast<int>(Cpu().questions.size()));
}

// From one GPU to the other without the host; and where only one side can do that.
TEST_F(ClusterCudaTest, KvPassesThroughMemoryOfTheGpu) {
  if (!HasUcxWithCuda()) GTEST_SKIP() << "BATON_UCX_WITH_CUDA is not set";
  for (const Pair& pair : {Pair{.prefill_staging = "device", .decode_staging = "device"},
                           Pair{.prefill_staging = "device", .decode_staging = "pinned"},
                           Pair{.prefill_staging = "pinned", .decode_staging = "device"}}) {
    SCOPED_TRACE(pair.prefill_staging + " to " + pair.decode_staging);
    const Score score = AskTheGpu({"--weights=f32", "--kv_dtype=f32"}, pair);

    EXPECT_GE(score.same + Share(kStreamsThatMayDiffer), static_cast<int>(Cpu().questions.size()));
  }
}

// Each GPU of either side has its own buffers, and a message heads of one of them.
TEST_F(ClusterCudaTest, KvPassesThroughMemoryOfSeveralGpus) {
  if (!HasUcxWithCuda()) GTEST_SKIP() << "BATON_UCX_WITH_CUDA is not set";
  SKIP_WITHOUT_GPUS(2, OpenDevices("cuda", 2).status());
  for (const auto& [prefill, decode] : {std::pair(1, 2), std::pair(2, 1), std::pair(2, 2)}) {
    SCOPED_TRACE(absl::StrCat(prefill, " to ", decode));
    const Score score = AskTheGpu({"--weights=f32", "--kv_dtype=f32"},
                                  {prefill, decode, /*prefill_staging=*/"device",
                                   /*decode_staging=*/"device"});

    EXPECT_GE(score.same + Share(kStreamsThatMayDiffer), static_cast<int>(Cpu().questions.size()));
  }
}

TEST_F(ClusterCudaTest, InBfloat16ItRemembersAsWell) {
  const Score score = AskTheGpu({"--weights=bf16", "--kv_dtype=bf16"});

  EXPECT_GE(score.right + Share(kAnswersThatMayBeLost), Cpu().right);
}

TEST_F(ClusterCudaTest, WithInt8WeightsAndCacheItRemembersAsWell) {
  const Score score = AskTheGpu({"--weights=int8", "--kv_dtype=int8"});

  EXPECT_GE(score.right + Share(kAnswersThatMayBeLost), Cpu().right);
}

TEST_F(ClusterCudaTest, WithFp8WeightsAndCacheItRemembersAsWell) {
  const Score score = AskTheGpu({"--weights=fp8", "--kv_dtype=fp8"});

  EXPECT_GE(score.right + Share(kAnswersThatMayBeLost), Cpu().right);
}

}  // namespace
}  // namespace baton
