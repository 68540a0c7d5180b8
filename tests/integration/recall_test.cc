// Goal: the KV cache arrives whole: what the demo model recalls in one process it recalls through a
// split cluster, word for word; and as much of it where prefill and decode have their heads on
// different numbers of devices. Method: the 200 unseen lists of deploy/demo_model/recall.jsonl,
// greedy, each way; the scores are printed.
#include <gtest/gtest.h>

#include <atomic>
#include <fstream>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "common/tokenizer/tokenizer.h"
#include "common/worker/engine_parts.h"
#include "decode_worker/local_runner.h"
#include "tests/support/cluster.h"
#include "tests/support/workload.h"

namespace baton {
namespace {

constexpr char kModel[] = "deploy/demo_model/model";
constexpr char kLists[] = "deploy/demo_model/recall.jsonl";
constexpr int kClients = 8;
constexpr uint32_t kAnswerTokens = 24;

struct Question {
  v1::GenerateRequest request;
  std::string answer;
};

std::vector<Question> ReadQuestions(const Tokenizer& tokenizer) {
  std::vector<Question> questions;
  std::ifstream file(kLists);
  for (std::string line; std::getline(file, line);) {
    const nlohmann::json json = nlohmann::json::parse(line);
    Question question;
    question.answer = json.at("answer");
    const std::vector<TokenId> ids = tokenizer.Encode(json.at("prompt"), true).value();
    question.request.mutable_prompt_ids()->mutable_ids()->Assign(ids.begin(), ids.end());
    question.request.mutable_sampling()->set_temperature(0);
    question.request.set_max_tokens(kAnswerTokens);
    questions.push_back(std::move(question));
  }
  return questions;
}

bool IsRight(const std::string& text, const std::string& answer) {
  const size_t start = text.find_first_not_of(" \n");
  return start != std::string::npos && text.compare(start, answer.size(), answer) == 0;
}

// By question.
using Streams = std::vector<std::vector<TokenId>>;

Streams AskOneProcess(const std::vector<Question>& questions) {
  auto parts = EngineParts::Create({.model = kModel, .threads = 2, .kv_memory_bytes = 64 << 20});
  EXPECT_TRUE(parts.ok()) << parts.status();
  LocalRunner runner(&*parts);
  Streams streams;
  for (const Question& question : questions) {
    const LocalResult result =
        runner.Run(WorkOf(question.request, parts->model->config().eos_token_ids, 1));
    EXPECT_TRUE(result.status.ok()) << result.status;
    streams.emplace_back();
    for (const v1::Token& token : result.tokens) streams.back().push_back(token.id());
  }
  return streams;
}

Streams AskSplitCluster(const std::vector<Question>& questions, const std::string& prefill_flag,
                        const std::string& decode_flag) {
  const auto cluster = Cluster::Start({.model = kModel,
                                       .prefill = 1,
                                       .decode = 1,
                                       .worker_flags = {"--kv_memory=64MiB", prefill_flag},
                                       .decode_flags = {decode_flag},
                                       .router_flags = {"--mixed_numerics"}});
  EXPECT_TRUE(cluster.ok()) << cluster.status();
  Streams streams(questions.size());
  std::atomic<size_t> next{0};
  std::vector<std::thread> clients;
  for (int i = 0; i < kClients; ++i) {
    clients.emplace_back([&] {
      for (size_t q; (q = next.fetch_add(1)) < questions.size();) {
        const Answer answer = (*cluster)->Generate(questions[q].request);
        EXPECT_TRUE(answer.status.ok()) << answer.status;
        streams[q] = answer.tokens;
      }
    });
  }
  for (std::thread& client : clients) client.join();
  return streams;
}

class RecallTest : public testing::Test {
 protected:
  RecallTest()
      : tokenizer_(Tokenizer::Load(kModel).value()), questions_(ReadQuestions(*tokenizer_)) {}

  int CountRight(const Streams& streams) const {
    int right = 0;
    for (size_t q = 0; q < streams.size(); ++q) {
      right += IsRight(tokenizer_->Decode(streams[q], true), questions_[q].answer) ? 1 : 0;
    }
    return right;
  }

  const std::unique_ptr<Tokenizer> tokenizer_;
  const std::vector<Question> questions_;
};

TEST_F(RecallTest, SplitClusterRecallsWhatOneProcessRecalls) {
  ASSERT_EQ(questions_.size(), 200u);

  const Streams alone = AskOneProcess(questions_);
  const Streams split = AskSplitCluster(questions_, "--tp=1", "--tp=1");

  std::cout << "recall: " << CountRight(alone) << " of 200 in one process, " << CountRight(split)
            << " of 200 through the split cluster\n";
  for (size_t q = 0; q < questions_.size(); ++q) EXPECT_EQ(split[q], alone[q]) << "list " << q;
}

// Sums are rounded elsewhere, which now and then tips a close choice.
TEST_F(RecallTest, WorkersWithOtherNumbersOfDevicesRecallAsMuch) {
  const int alone = CountRight(AskOneProcess(questions_));

  const int from_two = CountRight(AskSplitCluster(questions_, "--tp=2", "--tp=1"));
  const int to_two = CountRight(AskSplitCluster(questions_, "--tp=1", "--tp=2"));

  std::cout << "recall: " << alone << " of 200 in one process, " << from_two
            << " of 200 from two devices to one, " << to_two << " of 200 from one to two\n";
  EXPECT_NEAR(from_two, alone, 4);
  EXPECT_NEAR(to_two, alone, 4);
}

}  // namespace
}  // namespace baton
