// Goal: the KV cache arrives whole: what the demo model recalls in one process it recalls through a
// split cluster, word for word; and as much of it where prefill and decode have their heads on
// different numbers of devices. Method: the 200 unseen lists of deploy/demo_model/recall.jsonl,
// greedy, each way; the scores are printed.
#include "tests/support/recall.h"

#include <gtest/gtest.h>

#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/tokenizer/tokenizer.h"
#include "common/worker/engine_parts.h"
#include "decode_worker/local_runner.h"
#include "tests/support/cluster.h"
#include "tests/support/workload.h"

namespace baton {
namespace {

// By question.
using Streams = std::vector<std::vector<TokenId>>;

class RecallTest : public testing::Test {
 protected:
  RecallTest()
      : tokenizer_(Tokenizer::Load(kDemoModel).value()),
        questions_(ReadRecallQuestions(*tokenizer_)) {}

  Streams AskOneProcess() {
    auto parts =
        EngineParts::Create({.model = kDemoModel, .threads = 2, .kv_memory_bytes = 64 << 20});
    EXPECT_TRUE(parts.ok()) << parts.status();
    LocalRunner runner(&*parts);
    Streams streams;
    for (const RecallQuestion& question : questions_) {
      const LocalResult result =
          runner.Run(WorkOf(question.request, parts->model->config().eos_token_ids, 1));
      EXPECT_TRUE(result.status.ok()) << result.status;
      streams.emplace_back();
      for (const v1::Token& token : result.tokens) streams.back().push_back(token.id());
    }
    return streams;
  }

  // With so many devices on each side.
  Streams AskSplitCluster(int prefill_devices, int decode_devices) {
    const auto cluster = Cluster::Start(
        {.model = kDemoModel,
         .prefill = 1,
         .decode = 1,
         .worker_flags = {"--kv_memory=64MiB", absl::StrCat("--tp=", prefill_devices)},
         .decode_flags = {absl::StrCat("--tp=", decode_devices)},
         .router_flags = {"--mixed_numerics"}});
    EXPECT_TRUE(cluster.ok()) << cluster.status();
    Streams streams;
    for (const Answer& answer : AskAll(**cluster, questions_)) {
      EXPECT_TRUE(answer.status.ok()) << answer.status;
      streams.push_back(answer.tokens);
    }
    return streams;
  }

  int CountRight(const Streams& streams) const {
    int right = 0;
    for (size_t q = 0; q < streams.size(); ++q) {
      right += IsRecalled(tokenizer_->Decode(streams[q], true), questions_[q].answer) ? 1 : 0;
    }
    return right;
  }

  const std::unique_ptr<Tokenizer> tokenizer_;
  const std::vector<RecallQuestion> questions_;
};

TEST_F(RecallTest, SplitClusterRecallsWhatOneProcessRecalls) {
  ASSERT_EQ(questions_.size(), 200u);

  const Streams alone = AskOneProcess();
  const Streams split = AskSplitCluster(1, 1);

  std::cout << "recall: " << CountRight(alone) << " of 200 in one process, " << CountRight(split)
            << " of 200 through the split cluster\n";
  for (size_t q = 0; q < questions_.size(); ++q) EXPECT_EQ(split[q], alone[q]) << "list " << q;
}

// Sums are rounded elsewhere, which now and then tips a close choice.
TEST_F(RecallTest, WorkersWithOtherNumbersOfDevicesRecallAsMuch) {
  const int alone = CountRight(AskOneProcess());

  const int from_two = CountRight(AskSplitCluster(2, 1));
  const int to_two = CountRight(AskSplitCluster(1, 2));

  std::cout << "recall: " << alone << " of 200 in one process, " << from_two
            << " of 200 from two devices to one, " << to_two << " of 200 from one to two\n";
  EXPECT_NEAR(from_two, alone, 4);
  EXPECT_NEAR(to_two, alone, 4);
}

}  // namespace
}  // namespace baton
