#include "common/sampling/stop_criteria.h"

#include <gtest/gtest.h>

#include <vector>

namespace baton {
namespace {

constexpr uint32_t kNoLimit = 1000;

TEST(StopCriteriaTest, StopTokenEndsTheSequence) {
  const StopParams stop = {.stop_token_ids = {7, 9}};

  EXPECT_EQ(CheckStop(std::vector<TokenId>{1, 2, 3}, 2, kNoLimit, stop), std::nullopt);
  EXPECT_EQ(CheckStop(std::vector<TokenId>{1, 2, 9}, 2, kNoLimit, stop), FinishReason::kStop);
}

TEST(StopCriteriaTest, StopTokenInThePromptDoesNot) {
  const StopParams stop = {.stop_token_ids = {7}};

  EXPECT_EQ(CheckStop(std::vector<TokenId>{1, 7}, 2, kNoLimit, stop), std::nullopt);
}

TEST(StopCriteriaTest, LengthCountsThePrompt) {
  EXPECT_EQ(CheckStop(std::vector<TokenId>{1, 2, 3}, 2, 4, {}), std::nullopt);
  EXPECT_EQ(CheckStop(std::vector<TokenId>{1, 2, 3, 4}, 2, 4, {}), FinishReason::kLength);
}

TEST(StopCriteriaTest, StopWinsOverLength) {
  const StopParams stop = {.stop_token_ids = {4}};

  EXPECT_EQ(CheckStop(std::vector<TokenId>{1, 2, 3, 4}, 2, 4, stop), FinishReason::kStop);
}

TEST(StopCriteriaTest, StopTokenWithinTheMinimumDoesNotCount) {
  const StopParams stop = {.stop_token_ids = {9}, .min_tokens = 2};

  EXPECT_EQ(CheckStop(std::vector<TokenId>{1, 9, 9}, 1, kNoLimit, stop), std::nullopt);
  EXPECT_EQ(CheckStop(std::vector<TokenId>{1, 9, 9, 9}, 1, kNoLimit, stop), FinishReason::kStop);
}

}  // namespace
}  // namespace baton
