#include "router/request_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace baton {
namespace {

using std::chrono::seconds;
using ::testing::ElementsAre;

NewRequest Make(uint64_t id, Instant deadline = kNever) {
  NewRequest request;
  request.id = RequestId{id};
  request.tokens = {1, 2, 3};
  request.prompt_tokens = 2;
  request.total_tokens_max = 4;
  request.deadline = deadline;
  return request;
}

TEST(RequestTableTest, AttemptsAreNeverUsedTwice) {
  RequestTable table;
  Request& request = table.Insert(Make(1));
  table.StartAttempt(request);
  const AttemptId first = request.attempt;
  EXPECT_EQ(table.FindAttempt(first), &request);
  table.EndAttempt(request);
  table.StartAttempt(request);

  EXPECT_NE(request.attempt, first);
  EXPECT_EQ(table.FindAttempt(first), nullptr);
}

TEST(RequestTableTest, ExpiredInOrderOfDeadline) {
  RequestTable table;
  const Instant start{};
  table.Insert(Make(1, start + seconds(3)));
  table.Insert(Make(2, start + seconds(1)));
  table.Insert(Make(3));

  EXPECT_THAT(table.Expired(start + seconds(3)), ElementsAre(RequestId{2}, RequestId{1}));
  table.Erase(RequestId{2});
  EXPECT_THAT(table.Expired(start + seconds(3)), ElementsAre(RequestId{1}));
}

TEST(RequestTableTest, CountsIndicesAndTokensLeft) {
  RequestTable table;
  const Request& request = table.Insert(Make(1));

  EXPECT_EQ(request.given_tokens, 1u);
  EXPECT_EQ(request.next_index(), 1u);
  EXPECT_EQ(request.tokens_left(), 1u);
}

TEST(RequestTableTest, KnowsWhenNothingCanFollow) {
  RequestTable table;
  Request& request = table.Insert(Make(1));
  EXPECT_EQ(request.spec.end_reached(), std::nullopt);
  request.spec.stopping.add_stop_token_ids(3);
  EXPECT_EQ(request.spec.end_reached(), v1::FINISH_REASON_STOP);
  request.spec.tokens.push_back(9);
  EXPECT_EQ(request.spec.end_reached(), v1::FINISH_REASON_LENGTH);
}

}  // namespace
}  // namespace baton
