// Goal: where a prompt is computed and what it shares a batch with never changes a token.
// Method: the same seeded requests through one process without a network and through clusters of
// real processes over UCX, all at once; the streams are compared with ==.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <compare>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/model/testing/tiny_model.h"
#include "common/worker/engine_parts.h"
#include "decode_worker/local_runner.h"
#include "tests/support/cluster.h"
#include "tests/support/workload.h"

namespace baton {
namespace {

constexpr int kClients = 8;

enum class ModelKind { kLlama, kMistral, kGemma2, kQwen2Moe, kGpt2 };

TinyModelOptions ModelOptionsOf(ModelKind kind) {
  TinyModelOptions options;
  options.layers = 3;
  switch (kind) {
    case ModelKind::kLlama:
      break;
    case ModelKind::kMistral:  // Decode workers give back what is behind the window.
      options.architecture = "MistralForCausalLM";
      options.sliding_window = 20;
      break;
    case ModelKind::kGemma2:  // The first and the third layer have a window.
      options.architecture = "Gemma2ForCausalLM";
      options.sliding_window = 20;
      break;
    case ModelKind::kQwen2Moe:  // Which tokens share an expert depends on the batch.
      options.architecture = "Qwen2MoeForCausalLM";
      options.experts = 6;
      break;
    case ModelKind::kGpt2:
      options.architecture = "GPT2LMHeadModel";
      break;
  }
  return options;
}

// What a process computes with, and in which forms: two processes that agree in these agree in
// every token.
struct Numerics {
  ModelKind model = ModelKind::kLlama;
  uint32_t tensor_parallelism = 1;
  std::string weights = {};  // Empty: as stored.
  std::string kv_dtype = {};

  auto operator<=>(const Numerics&) const = default;
};

// A model in its folder, and what one process gives with it.
struct OracleModel {
  TemporaryFolder folder;
  std::vector<std::vector<TokenId>> streams;
};

const std::vector<v1::GenerateRequest>& Requests() {
  static const auto* const requests = new std::vector<v1::GenerateRequest>(MakeWorkload({}));
  return *requests;
}

// One process, one thread, one request at a time.
void RunOracle(OracleModel* oracle, const Numerics& numerics) {
  EngineOptions options = {.model = oracle->folder.path(),
                           .tensor_parallelism = numerics.tensor_parallelism,
                           .weights = numerics.weights,
                           .threads = 1,
                           .kv_memory_bytes = 16 << 20};
  if (!numerics.kv_dtype.empty()) options.kv_dtype = ParseDType(numerics.kv_dtype).value();
  EngineParts parts = EngineParts::Create(options).value();
  LocalRunner runner(&parts);
  for (const v1::GenerateRequest& request : Requests()) {
    const LocalResult result = runner.Run(
        WorkOf(request, parts.model->config().eos_token_ids, oracle->streams.size() + 1));
    EXPECT_TRUE(result.status.ok()) << result.status;
    oracle->streams.emplace_back();
    for (const v1::Token& token : result.tokens) oracle->streams.back().push_back(token.id());
  }
}

// Made when it is first asked for.
const OracleModel& Oracle(const Numerics& numerics) {
  static auto* const oracles = new std::map<Numerics, std::unique_ptr<OracleModel>>();
  std::unique_ptr<OracleModel>& oracle = (*oracles)[numerics];
  if (oracle == nullptr) {
    oracle = std::make_unique<OracleModel>();
    EXPECT_TRUE(WriteTinyModel(oracle->folder.path(), ModelOptionsOf(numerics.model)).ok());
    RunOracle(oracle.get(), numerics);
  }
  return *oracle;
}

struct Deployment {
  std::string name;
  int prefill;
  int decode;
  std::vector<std::string> worker_flags;
  Numerics numerics = {};  // Of all workers, and of the process they are compared with.
};

class EqualityTest : public testing::TestWithParam<Deployment> {};

TEST_P(EqualityTest, StreamsEqualTheSingleProcess) {
  const Deployment& deployment = GetParam();
  const Numerics& numerics = deployment.numerics;
  const OracleModel& oracle = Oracle(numerics);
  std::vector<std::string> worker_flags = deployment.worker_flags;
  worker_flags.push_back(absl::StrCat("--tp=", numerics.tensor_parallelism));
  worker_flags.push_back(absl::StrCat("--weights=", numerics.weights));
  worker_flags.push_back(absl::StrCat("--kv_dtype=", numerics.kv_dtype));
  const auto cluster = Cluster::Start({.model = oracle.folder.path(),
                                       .prefill = deployment.prefill,
                                       .decode = deployment.decode,
                                       .worker_flags = worker_flags,
                                       .decode_flags = {},
                                       .router_flags = {}});
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  const size_t count = Requests().size();
  std::vector<Answer> answers(count);
  std::atomic<size_t> next{0};
  std::vector<std::thread> clients;
  for (int i = 0; i < kClients; ++i) {
    clients.emplace_back([&] {
      for (size_t r; (r = next.fetch_add(1)) < count;) {
        answers[r] = (*cluster)->Generate(Requests()[r]);
      }
    });
  }
  for (std::thread& client : clients) client.join();

  for (size_t r = 0; r < count; ++r) {
    ASSERT_TRUE(answers[r].status.ok()) << "request " << r << ": " << answers[r].status;
    EXPECT_EQ(answers[r].tokens, oracle.streams[r]) << "request " << r;
    EXPECT_EQ(answers[r].finished.decode_worker().empty(),
              Requests()[r].max_tokens() == 1 && deployment.prefill > 0);
  }
  EXPECT_TRUE((*cluster)->WaitUntil(Cluster::AtRest)) << (*cluster)->Status()->DebugString();
}

INSTANTIATE_TEST_SUITE_P(
    Deployments, EqualityTest,
    testing::Values(Deployment{"Colocated", 0, 1, {}}, Deployment{"Split", 1, 1, {}},
                    Deployment{"TwoAndTwo", 2, 2, {}},
                    Deployment{"SplitChunk16", 1, 1, {"--chunk_tokens=16"}},
                    Deployment{"SplitChunk64Threads2", 1, 1, {"--chunk_tokens=64", "--threads=2"}},
                    Deployment{"SplitWindow", 1, 1, {"--chunk_tokens=16"}, {ModelKind::kMistral}},
                    Deployment{"ColocatedWindow", 0, 1, {"--threads=2"}, {ModelKind::kMistral}},
                    Deployment{"SplitGemma2", 1, 1, {"--chunk_tokens=16"}, {ModelKind::kGemma2}},
                    Deployment{"SplitExperts", 1, 1, {"--chunk_tokens=16"}, {ModelKind::kQwen2Moe}},
                    Deployment{"ColocatedExperts", 0, 1, {"--threads=2"}, {ModelKind::kQwen2Moe}},
                    Deployment{"SplitGpt2", 1, 1, {"--chunk_tokens=16"}, {ModelKind::kGpt2}},
                    Deployment{"SplitTp2", 1, 1, {"--chunk_tokens=16"}, {ModelKind::kLlama, 2}},
                    Deployment{"SplitTp2Experts", 1, 1, {}, {ModelKind::kQwen2Moe, 2}},
                    Deployment{"ColocatedTp4Gpt2", 0, 1, {}, {ModelKind::kGpt2, 4}},
                    Deployment{"SplitInt8", 1, 1, {}, {.weights = "int8", .kv_dtype = "int8"}},
                    Deployment{"SplitFp8", 1, 1, {}, {.weights = "fp8", .kv_dtype = "fp8"}},
                    Deployment{"SplitF16Cache", 1, 1, {}, {.kv_dtype = "f16"}}),
    [](const testing::TestParamInfo<Deployment>& param) { return param.param.name; });

}  // namespace
}  // namespace baton
