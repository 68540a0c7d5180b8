// Goal: where a prompt is computed and what it shares a batch with never changes a token.
// Method: the same seeded requests through one process without a network and through clusters of
// real processes over UCX, all at once; the streams are compared with ==.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
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

const std::string& ModelFolder() {
  static const TemporaryFolder folder;
  static const bool written = [] {
    TinyModelOptions options;
    options.layers = 3;
    return WriteTinyModel(folder.path(), options).ok();
  }();
  EXPECT_TRUE(written);
  return folder.path();
}

const std::vector<v1::GenerateRequest>& Requests() {
  static const auto* const requests = new std::vector<v1::GenerateRequest>(MakeWorkload({}));
  return *requests;
}

// One process, one thread, one request at a time.
const std::vector<std::vector<TokenId>>& Oracle() {
  static const auto* const streams = [] {
    auto* all = new std::vector<std::vector<TokenId>>();
    EngineParts parts =
        EngineParts::Create({.model = ModelFolder(), .threads = 1, .kv_memory_bytes = 16 << 20})
            .value();
    LocalRunner runner(&parts);
    for (const v1::GenerateRequest& request : Requests()) {
      const LocalResult result =
          runner.Run(WorkOf(request, parts.model->config().eos_token_ids, all->size() + 1));
      EXPECT_TRUE(result.status.ok()) << result.status;
      all->emplace_back();
      for (const v1::Token& token : result.tokens) all->back().push_back(token.id());
    }
    return all;
  }();
  return *streams;
}

struct Deployment {
  std::string name;
  int prefill;
  int decode;
  std::vector<std::string> worker_flags;
};

class EqualityTest : public testing::TestWithParam<Deployment> {};

TEST_P(EqualityTest, StreamsEqualTheSingleProcess) {
  const Deployment& deployment = GetParam();
  const auto cluster = Cluster::Start({.model = ModelFolder(),
                                       .prefill = deployment.prefill,
                                       .decode = deployment.decode,
                                       .worker_flags = deployment.worker_flags,
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
    EXPECT_EQ(answers[r].tokens, Oracle()[r]) << "request " << r;
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
                    Deployment{"SplitChunk64Threads2", 1, 1, {"--chunk_tokens=64", "--threads=2"}}),
    [](const testing::TestParamInfo<Deployment>& param) { return param.param.name; });

}  // namespace
}  // namespace baton
