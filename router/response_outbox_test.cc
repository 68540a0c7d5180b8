#include "router/response_outbox.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace baton {
namespace {

v1::GenerateResponse DeltaOf(uint32_t index, const std::string& text) {
  v1::GenerateResponse response;
  v1::Delta& delta = *response.mutable_delta();
  delta.set_text(text);
  v1::Token* token = delta.add_tokens();
  token->set_index(index);
  token->set_id(static_cast<int32_t>(1000 + index));
  token->set_logprob(-0.5f * static_cast<float>(index));
  v1::TokenLogprob* other = token->add_top_logprobs();
  other->set_token(7);
  other->set_logprob(-2);
  return response;
}

TEST(ResponseOutboxTest, DeltasThatWaitBecomeOneWithAllTheirTokensAndText) {
  ResponseOutbox outbox;
  v1::GenerateResponse started;
  started.mutable_started()->set_seed(5);
  v1::GenerateResponse finished;
  finished.mutable_finished()->set_retries(2);
  v1::GenerateResponse rest;
  rest.mutable_delta()->set_text("!");

  outbox.Push(started);
  outbox.Push(DeltaOf(0, "Once "), 10);
  outbox.Push(DeltaOf(1, ""), 20);
  outbox.Push(DeltaOf(2, "upön"), 30);
  outbox.Push(rest, 3);
  outbox.Push(finished);

  ASSERT_EQ(outbox.size(), 3u);
  EXPECT_EQ(outbox.Pop().response.started().seed(), 5u);
  const ResponseOutbox::Message merged = outbox.Pop();
  v1::Delta expected;
  expected.set_text("Once upön!");
  for (uint32_t i = 0; i < 3; ++i) *expected.add_tokens() = DeltaOf(i, "").delta().tokens(0);
  EXPECT_EQ(merged.response.delta().SerializeAsString(), expected.SerializeAsString());
  EXPECT_EQ(merged.bytes, 63u);
  EXPECT_EQ(outbox.Pop().response.finished().retries(), 2u);
  EXPECT_TRUE(outbox.empty());
}

TEST(ResponseOutboxTest, MergedDeltasStayBelowTheLimitAndOneOfAnySizeIsTaken) {
  ResponseOutbox outbox;
  const std::string half(kMergedDeltaBytesMax / 2 - 100, 'x');

  outbox.Push(DeltaOf(0, half), 1);
  outbox.Push(DeltaOf(1, half), 1);
  outbox.Push(DeltaOf(2, half), 1);
  outbox.Push(DeltaOf(3, half + half + half), 1);

  ASSERT_EQ(outbox.size(), 3u);
  EXPECT_EQ(outbox.Pop().response.delta().tokens_size(), 2);
  EXPECT_EQ(outbox.Pop().response.delta().tokens(0).index(), 2u);
  EXPECT_EQ(outbox.Pop().response.delta().text().size(), 3 * half.size());
}

}  // namespace
}  // namespace baton
