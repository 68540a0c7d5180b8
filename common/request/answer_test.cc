#include "common/request/answer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace baton {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

Answer SomeAnswer() {
  Answer answer;
  answer.started.set_request_id("abc");
  answer.started.set_seed(UINT64_MAX);
  answer.text = "he said \"hi\"\n";
  for (const int id : {5, 6}) {
    v1::Token token;
    token.set_id(id);
    token.set_logprob(-0.5f);
    v1::TokenLogprob* top = token.add_top_logprobs();
    top->set_token(id);
    top->set_logprob(-0.5f);
    answer.tokens.push_back(token);
  }
  answer.finished.set_reason(v1::FINISH_REASON_LENGTH);
  answer.finished.mutable_usage()->set_prompt_tokens(3);
  answer.finished.mutable_usage()->set_generated_tokens(2);
  answer.finished.mutable_timings()->set_decode_ms(7.5);
  answer.finished.set_decode_worker("d:1");
  return answer;
}

TEST(AnswerTest, AnswerIsOneJsonObject) {
  const auto json = nlohmann::json::parse(AnswerJson(SomeAnswer(), /*with_logprobs=*/true));

  EXPECT_EQ(json["request_id"], "abc");
  EXPECT_EQ(json["seed"].get<uint64_t>(), UINT64_MAX);
  EXPECT_THAT(json["ids"], ElementsAre(5, 6));
  EXPECT_EQ(json["text"], "he said \"hi\"\n");
  EXPECT_EQ(json["finish_reason"], "length");
  EXPECT_EQ(json["logprobs"][1]["logprob"], -0.5);
  EXPECT_EQ(json["logprobs"][1]["top"][0]["id"], 6);
  EXPECT_EQ(json["usage"]["generated_tokens"], 2);
  EXPECT_EQ(json["timings"]["decode_ms"], 7.5);
}

TEST(AnswerTest, LogprobsOnlyWhenAsked) {
  const auto json = nlohmann::json::parse(AnswerJson(SomeAnswer(), /*with_logprobs=*/false));

  EXPECT_FALSE(json.contains("logprobs"));
}

TEST(AnswerTest, TimingsSayWhereThePromptWasComputed) {
  EXPECT_THAT(TimingsTable(SomeAnswer()), HasSubstr("3 tokens, 0 cached, local"));
  EXPECT_THAT(TimingsTable(SomeAnswer()), HasSubstr("7.50 ms a token"));
}

}  // namespace
}  // namespace baton
