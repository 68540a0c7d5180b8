// What the tests of faults share: a cluster of real processes whose streams are compared with those
// of one process.
#ifndef BATON_TESTS_INTEGRATION_TESTING_CLUSTER_STREAMS_H_
#define BATON_TESTS_INTEGRATION_TESTING_CLUSTER_STREAMS_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "common/model/testing/tiny_model.h"
#include "common/worker/engine_parts.h"
#include "decode_worker/local_runner.h"
#include "tests/support/cluster.h"
#include "tests/support/faults.h"
#include "tests/support/workload.h"

namespace baton {

inline constexpr int kStreams = 8;
// Long enough that every stream runs when the fault comes. The sanitizers slow a step down by much
// less than BATON_TEST_SLOWNESS.
inline constexpr uint32_t kStreamTokens = BATON_TEST_SLOWNESS > 1 ? 500 : 1500;
inline constexpr Duration kDeadline = std::chrono::seconds(60);

inline std::vector<v1::GenerateRequest> LongRequests() {
  std::vector<v1::GenerateRequest> requests = MakeWorkload(
      {.requests = kStreams, .seed = 7, .vocab = 256, .prompt_max = 60, .output_max = 1});
  for (v1::GenerateRequest& request : requests) {
    request.set_max_tokens(kStreamTokens);
    request.mutable_stopping()->set_ignore_eos(true);
  }
  return requests;
}

using Streams = std::vector<std::vector<TokenId>>;

class ClusterStreamsTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new TemporaryFolder;
    TinyModelOptions options;
    options.layers = 3;
    options.context_tokens = 2048;
    ASSERT_TRUE(WriteTinyModel(folder_->path(), options).ok());
    oracle_ = new Streams(Undisturbed(LongRequests()));
  }

  // What one process answers.
  static Streams Undisturbed(const std::vector<v1::GenerateRequest>& requests) {
    EngineParts parts =
        EngineParts::Create({.model = folder_->path(), .threads = 1, .kv_memory_bytes = 16 << 20})
            .value();
    LocalRunner runner(&parts);
    Streams streams;
    for (const v1::GenerateRequest& request : requests) {
      streams.emplace_back();
      for (const v1::Token& token : runner.Run(WorkOf(request, {}, 1)).tokens) {
        streams.back().push_back(token.id());
      }
    }
    return streams;
  }

  static void TearDownTestSuite() {
    delete oracle_;
    delete folder_;
  }

  void StartCluster(int prefill, int decode, std::vector<std::string> worker_flags = {},
                    std::vector<std::string> decode_flags = {},
                    std::vector<std::string> router_flags = {}) {
    StartCluster({.model = folder_->path(),
                  .prefill = prefill,
                  .decode = decode,
                  .worker_flags = std::move(worker_flags),
                  .decode_flags = std::move(decode_flags),
                  .router_flags = std::move(router_flags)});
  }
  void StartCluster(const ClusterOptions& options) {
    auto cluster = Cluster::Start(options);
    // Ends the test: without a cluster nothing in it makes sense.
    if (!cluster.ok()) throw std::runtime_error(cluster.status().ToString());
    cluster_ = *std::move(cluster);
  }

  int BusyDecode() { return baton::BusyDecode(*cluster_); }

  // Runs all requests at once and calls `happens` once every stream has given a few tokens.
  std::vector<Answer> RunWithFault(const std::function<void()>& happens) {
    return RunThrough(*cluster_, LongRequests(), kDeadline,
                      {.happens = happens, .streams = kStreams, .tokens = 5});
  }

  // A stream that ended well is the oracle's; one that did not is a prefix of it with a clear
  // status.
  static void ExpectTrueStreams(const std::vector<Answer>& answers) {
    for (size_t i = 0; i < answers.size(); ++i) {
      const std::vector<TokenId>& truth = (*oracle_)[i];
      const std::vector<TokenId>& tokens = answers[i].tokens;
      ASSERT_LE(tokens.size(), truth.size());
      EXPECT_TRUE(std::equal(tokens.begin(), tokens.end(), truth.begin())) << "stream " << i;
      if (answers[i].status.ok()) {
        EXPECT_EQ(tokens.size(), truth.size()) << "stream " << i;
      } else {
        EXPECT_EQ(answers[i].status.code(), absl::StatusCode::kUnavailable) << answers[i].status;
        EXPECT_FALSE(answers[i].status.message().empty());
      }
    }
  }

  static size_t OkCount(const std::vector<Answer>& answers) {
    size_t count = 0;
    for (const Answer& answer : answers) count += answer.status.ok() ? 1 : 0;
    return count;
  }

  void ExpectServesAndRests() {
    v1::GenerateRequest request = LongRequests()[0];
    request.set_max_tokens(20);
    const Answer answer = cluster_->Generate(request);
    ASSERT_TRUE(answer.status.ok()) << answer.status;
    EXPECT_TRUE(std::equal(answer.tokens.begin(), answer.tokens.end(), (*oracle_)[0].begin()));
    EXPECT_TRUE(cluster_->WaitUntil(Cluster::AtRest)) << cluster_->Status()->DebugString();
  }

  inline static TemporaryFolder* folder_ = nullptr;
  inline static Streams* oracle_ = nullptr;
  std::unique_ptr<Cluster> cluster_;
};

}  // namespace baton

#endif  // BATON_TESTS_INTEGRATION_TESTING_CLUSTER_STREAMS_H_
