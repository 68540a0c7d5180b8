#include "tests/support/recall.h"

#include <atomic>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

namespace baton {
namespace {

constexpr char kLists[] = "deploy/demo_model/recall.jsonl";
constexpr int kClients = 8;
constexpr uint32_t kAnswerTokens = 24;

}  // namespace

std::vector<RecallQuestion> ReadRecallQuestions(const Tokenizer& tokenizer) {
  std::vector<RecallQuestion> questions;
  std::ifstream file(kLists);
  for (std::string line; std::getline(file, line);) {
    const nlohmann::json json = nlohmann::json::parse(line);
    RecallQuestion question;
    question.answer = json.at("answer");
    const std::vector<TokenId> ids = tokenizer.Encode(json.at("prompt"), true).value();
    question.request.mutable_prompt_ids()->mutable_ids()->Assign(ids.begin(), ids.end());
    question.request.mutable_sampling()->set_temperature(0);
    question.request.set_max_tokens(kAnswerTokens);
    questions.push_back(std::move(question));
  }
  return questions;
}

bool IsRecalled(const std::string& text, const std::string& answer) {
  const size_t start = text.find_first_not_of(" \n");
  return start != std::string::npos && text.compare(start, answer.size(), answer) == 0;
}

std::vector<Answer> AskAll(Cluster& cluster, const std::vector<RecallQuestion>& questions) {
  std::vector<Answer> answers(questions.size());
  std::atomic<size_t> next{0};
  std::vector<std::thread> clients;
  for (int i = 0; i < kClients; ++i) {
    clients.emplace_back([&] {
      for (size_t q; (q = next.fetch_add(1)) < questions.size();) {
        answers[q] = cluster.Generate(questions[q].request);
      }
    });
  }
  for (std::thread& client : clients) client.join();
  return answers;
}

}  // namespace baton
