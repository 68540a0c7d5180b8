// What `baton` takes and shows, without a network.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "router/cli/input.h"
#include "router/cli/output.h"

namespace baton::cli {
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

TEST(CliOutputTest, AnswerIsOneJsonObject) {
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

TEST(CliOutputTest, LogprobsOnlyWhenAsked) {
  const auto json = nlohmann::json::parse(AnswerJson(SomeAnswer(), /*with_logprobs=*/false));

  EXPECT_FALSE(json.contains("logprobs"));
}

TEST(CliOutputTest, TimingsSayWhereThePromptWasComputed) {
  EXPECT_THAT(TimingsTable(SomeAnswer()), HasSubstr("3 tokens, 0 cached, local"));
  EXPECT_THAT(TimingsTable(SomeAnswer()), HasSubstr("7.50 ms a token"));
}

TEST(CliOutputTest, StatusShowsWhyAWorkerIsNotUsed) {
  v1::GetClusterResponse cluster;
  v1::WorkerStatus* worker = cluster.add_workers();
  worker->set_address("10.0.0.1:7");
  worker->set_role(v1::ROLE_DECODE);
  worker->set_state("refused");
  worker->set_reason("another KV layout");
  worker->set_incarnation(255);
  worker->mutable_load()->set_blocks_total(64);
  const std::string table = ClusterTable(cluster, {});
  const auto json = nlohmann::json::parse(ClusterJson(cluster, {}));

  EXPECT_THAT(table, HasSubstr("10.0.0.1:7  decode  refused  64"));
  EXPECT_THAT(table, HasSubstr("another KV layout"));
  EXPECT_EQ(json["workers"][0]["reason"], "another KV layout");
  EXPECT_EQ(json["workers"][0]["incarnation"], "00000000000000ff");
  EXPECT_THAT(ClusterTable({}, {}), HasSubstr("no workers"));
}

TEST(CliInputTest, IdsAreNumbersBetweenCommas) {
  EXPECT_THAT(*ParseIds("1,2,30"), ElementsAre(1, 2, 30));
  EXPECT_THAT(*ParseIds("1, 2"), ElementsAre(1, 2));
  EXPECT_FALSE(ParseIds("1,,2").ok());
  EXPECT_FALSE(ParseIds("1,x").ok());
  EXPECT_FALSE(ParseIds("99999999999").ok());
}

TEST(CliInputTest, Utf8IsCheckedByTheStandard) {
  EXPECT_TRUE(CheckUtf8("it", "plain, grüße 漢字 🎉").ok());
  for (const char* bad : {"\x80", "\xc3", "\xc0\xaf", "\xe0\x80\x80", "\xed\xa0\x80",
                          "\xf5\x80\x80\x80", "\xf4\x90\x80\x80", "\xe6\xbc"}) {
    EXPECT_FALSE(CheckUtf8("it", std::string("ab") + bad).ok()) << bad;
  }
  EXPECT_THAT(std::string(CheckUtf8("the prompt", "ab\xff").message()),
              HasSubstr("the prompt is not UTF-8 at byte 2"));
}

}  // namespace
}  // namespace baton::cli
