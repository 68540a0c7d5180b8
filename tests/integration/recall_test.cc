// Goal: the KV cache arrives whole: what the demo model recalls in one process it recalls through a
// split cluster, word for word. Method: the 200 unseen lists of deploy/demo_model/recall.jsonl,
// greedy, both ways; the score is printed.
#include <gtest/gtest.h>

#include <atomic>
#include <fstream>
#include <iostream>
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

TEST(RecallTest, SplitClusterRecallsWhatOneProcessRecalls) {
  const auto tokenizer = Tokenizer::Load(kModel);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const std::vector<Question> questions = ReadQuestions(**tokenizer);
  ASSERT_EQ(questions.size(), 200u);

  auto parts = EngineParts::Create({.model = kModel, .threads = 2, .kv_memory_bytes = 64 << 20});
  ASSERT_TRUE(parts.ok()) << parts.status();
  LocalRunner runner(&*parts);
  std::vector<std::vector<TokenId>> expected;
  int right_alone = 0;
  for (const Question& question : questions) {
    const LocalResult result =
        runner.Run(WorkOf(question.request, parts->model->config().eos_token_ids, 1));
    ASSERT_TRUE(result.status.ok()) << result.status;
    expected.emplace_back();
    for (const v1::Token& token : result.tokens) expected.back().push_back(token.id());
    right_alone += IsRight((*tokenizer)->Decode(expected.back(), true), question.answer) ? 1 : 0;
  }

  const auto cluster = Cluster::Start({.model = kModel,
                                       .prefill = 1,
                                       .decode = 1,
                                       .worker_flags = {"--kv_memory=64MiB"},
                                       .decode_flags = {},
                                       .router_flags = {}});
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  std::vector<Answer> answers(questions.size());
  std::atomic<size_t> next{0};
  std::vector<std::thread> clients;
  for (int i = 0; i < kClients; ++i) {
    clients.emplace_back([&] {
      for (size_t q; (q = next.fetch_add(1)) < questions.size();) {
        answers[q] = (*cluster)->Generate(questions[q].request);
      }
    });
  }
  for (std::thread& client : clients) client.join();

  int right_split = 0;
  for (size_t q = 0; q < questions.size(); ++q) {
    ASSERT_TRUE(answers[q].status.ok()) << answers[q].status;
    EXPECT_EQ(answers[q].tokens, expected[q]) << "list " << q;
    right_split += IsRight(answers[q].text, questions[q].answer) ? 1 : 0;
  }
  std::cout << "recall: " << right_alone << " of 200 in one process, " << right_split
            << " of 200 through the split cluster\n";
  EXPECT_EQ(right_split, right_alone);
}

}  // namespace
}  // namespace baton
