// Goal: the KV cache arrives whole: what the demo model recalls in one process it recalls through a
// split cluster, word for word. Method: the 200 unseen lists of deploy/demo_model/recall.jsonl,
// greedy, both ways; the score is printed.
#include "tests/support/recall.h"

#include <gtest/gtest.h>

#include <iostream>
#include <string>
#include <vector>

#include "common/tokenizer/tokenizer.h"
#include "common/worker/engine_parts.h"
#include "decode_worker/local_runner.h"
#include "tests/support/cluster.h"
#include "tests/support/workload.h"

namespace baton {
namespace {

TEST(RecallTest, SplitClusterRecallsWhatOneProcessRecalls) {
  const auto tokenizer = Tokenizer::Load(kDemoModel);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const std::vector<RecallQuestion> questions = ReadRecallQuestions(**tokenizer);
  ASSERT_EQ(questions.size(), 200u);

  auto parts =
      EngineParts::Create({.model = kDemoModel, .threads = 2, .kv_memory_bytes = 64 << 20});
  ASSERT_TRUE(parts.ok()) << parts.status();
  LocalRunner runner(&*parts);
  std::vector<std::vector<TokenId>> expected;
  int right_alone = 0;
  for (const RecallQuestion& question : questions) {
    const LocalResult result =
        runner.Run(WorkOf(question.request, parts->model->config().eos_token_ids, 1));
    ASSERT_TRUE(result.status.ok()) << result.status;
    expected.emplace_back();
    for (const v1::Token& token : result.tokens) expected.back().push_back(token.id());
    right_alone += IsRecalled((*tokenizer)->Decode(expected.back(), true), question.answer) ? 1 : 0;
  }

  const auto cluster = Cluster::Start({.model = kDemoModel,
                                       .prefill = 1,
                                       .decode = 1,
                                       .worker_flags = {"--kv_memory=64MiB"},
                                       .decode_flags = {},
                                       .router_flags = {}});
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  const std::vector<Answer> answers = AskAll(**cluster, questions);

  int right_split = 0;
  for (size_t q = 0; q < questions.size(); ++q) {
    ASSERT_TRUE(answers[q].status.ok()) << answers[q].status;
    EXPECT_EQ(answers[q].tokens, expected[q]) << "list " << q;
    right_split += IsRecalled(answers[q].text, questions[q].answer) ? 1 : 0;
  }
  std::cout << "recall: " << right_alone << " of 200 in one process, " << right_split
            << " of 200 through the split cluster\n";
  EXPECT_EQ(right_split, right_alone);
}

}  // namespace
}  // namespace baton
