// The demo model's test of memory: lists that it has not seen, and a question about each.
#ifndef BATON_TESTS_SUPPORT_RECALL_H_
#define BATON_TESTS_SUPPORT_RECALL_H_

#include <string>
#include <vector>

#include "common/tokenizer/tokenizer.h"
#include "proto/inference.pb.h"
#include "tests/support/cluster.h"

namespace baton {

inline constexpr char kDemoModel[] = "deploy/demo_model/model";

struct RecallQuestion {
  v1::GenerateRequest request;  // Greedy.
  std::string answer;
};

// The 200 of deploy/demo_model/recall.jsonl.
std::vector<RecallQuestion> ReadRecallQuestions(const Tokenizer& tokenizer);

// Whether the text begins with the answer.
bool IsRecalled(const std::string& text, const std::string& answer);

// Asks all of them, eight at a time.
std::vector<Answer> AskAll(Cluster& cluster, const std::vector<RecallQuestion>& questions);

}  // namespace baton

#endif  // BATON_TESTS_SUPPORT_RECALL_H_
