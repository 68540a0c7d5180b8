#include "common/rpc/outbox.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace baton {
namespace {

v1::Event TokensEvent(uint64_t request, uint32_t epoch, uint32_t index, int32_t token) {
  v1::Event event;
  v1::Tokens::Sequence* sequence = event.mutable_tokens()->add_sequences();
  sequence->set_request(request);
  sequence->set_epoch(epoch);
  v1::Token* added = sequence->add_tokens();
  added->set_index(index);
  added->set_id(token);
  return event;
}

v1::Event LoadEvent() {
  v1::Event event;
  event.mutable_load()->mutable_load()->set_blocks_free(1);
  return event;
}

// "request.epoch:index,index …" of a Tokens event.
std::string Show(const v1::Event& event) {
  std::string out;
  for (const auto& sequence : event.tokens().sequences()) {
    out += std::to_string(sequence.request()) + "." + std::to_string(sequence.epoch()) + ":";
    for (const auto& token : sequence.tokens()) out += std::to_string(token.index()) + ",";
    out += " ";
  }
  return out;
}

TEST(OutboxTest, ConsecutiveTokensBecomeOneMessagePerSequenceInOrder) {
  Outbox<v1::Event> outbox(2, 1000);
  ASSERT_TRUE(outbox.Push(TokensEvent(1, 1, 0, 10)));
  ASSERT_TRUE(outbox.Push(TokensEvent(2, 1, 5, 20)));
  ASSERT_TRUE(outbox.Push(TokensEvent(1, 1, 1, 11)));

  const v1::Event merged = outbox.Pop();

  EXPECT_TRUE(outbox.empty());
  EXPECT_EQ(Show(merged), "1.1:0,1, 2.1:5, ");
  EXPECT_EQ(merged.tokens().sequences(0).tokens(1).id(), 11);
}

TEST(OutboxTest, OtherEpochsAndGapsStayApart) {
  Outbox<v1::Event> outbox(1, 1000);
  ASSERT_TRUE(outbox.Push(TokensEvent(1, 1, 0, 10)));
  ASSERT_TRUE(outbox.Push(TokensEvent(1, 2, 1, 11)));
  ASSERT_TRUE(outbox.Push(TokensEvent(1, 1, 7, 12)));
  ASSERT_TRUE(outbox.Push(TokensEvent(1, 1, 8, 13)));

  EXPECT_EQ(Show(outbox.Pop()), "1.1:0, 1.2:1, 1.1:7,8, ");
}

TEST(OutboxTest, NothingIsMergedAcrossAnotherEvent) {
  Outbox<v1::Event> outbox(3, 1000);
  ASSERT_TRUE(outbox.Push(TokensEvent(1, 1, 0, 10)));
  ASSERT_TRUE(outbox.Push(LoadEvent()));
  ASSERT_TRUE(outbox.Push(TokensEvent(1, 1, 1, 11)));

  EXPECT_EQ(Show(outbox.Pop()), "1.1:0, ");
  EXPECT_TRUE(outbox.Pop().has_load());
  EXPECT_EQ(Show(outbox.Pop()), "1.1:1, ");
}

TEST(OutboxTest, RefusesMessagesOverTheCount) {
  Outbox<v1::Event> outbox(2, 1000);
  ASSERT_TRUE(outbox.Push(LoadEvent()));
  ASSERT_TRUE(outbox.Push(LoadEvent()));

  EXPECT_FALSE(outbox.Push(LoadEvent()));

  outbox.Pop();
  EXPECT_TRUE(outbox.Push(LoadEvent()));
}

TEST(OutboxTest, RefusesBytesOverTheLimitAlsoWhenMerging) {
  const size_t bytes = TokensEvent(1, 1, 1, 10).ByteSizeLong();
  Outbox<v1::Event> outbox(8, 3 * bytes);
  for (uint32_t i = 1; i <= 3; ++i) ASSERT_TRUE(outbox.Push(TokensEvent(1, 1, i, 10)));

  EXPECT_FALSE(outbox.Push(TokensEvent(1, 1, 4, 10)));

  outbox.Clear();
  EXPECT_EQ(outbox.bytes(), 0u);
  EXPECT_TRUE(outbox.Push(TokensEvent(1, 1, 4, 10)));
}

TEST(OutboxTest, MergedMessagesStayBounded) {
  Outbox<v1::Event> outbox(1000, 64 << 20);
  for (uint32_t i = 0; i < 300'000; ++i) ASSERT_TRUE(outbox.Push(TokensEvent(1, 1, i, 10)));

  EXPECT_GT(outbox.size(), 1u);
  uint32_t next = 0;
  while (!outbox.empty()) {
    const v1::Event event = outbox.Pop();
    ASSERT_LE(event.ByteSizeLong(), kMergedTokensBytesMax);
    for (const auto& token : event.tokens().sequences(0).tokens()) {
      ASSERT_EQ(token.index(), next++);
    }
  }
  EXPECT_EQ(next, 300'000u);
}

TEST(OutboxTest, CommandsAreNeverMerged) {
  Outbox<v1::Command> outbox(2, 1000);
  v1::Command ping;
  ping.mutable_ping();
  ASSERT_TRUE(outbox.Push(v1::Command(ping)));
  ASSERT_TRUE(outbox.Push(v1::Command(ping)));

  EXPECT_EQ(outbox.size(), 2u);
}

}  // namespace
}  // namespace baton
