#include "common/request/model_text.h"

#include <gtest/gtest.h>

#include "common/request/model_profile.h"

namespace baton {
namespace {

class ModelTextTest : public testing::Test {
 protected:
  // Feeds the text's tokens until a stop string matches.
  void Run(const std::string& text, std::vector<std::string> stops, uint32_t min_tokens = 0) {
    const absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer =
        Tokenizer::Load("deploy/demo_model/model");
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    const absl::StatusOr<std::vector<TokenId>> ids = (*tokenizer)->Encode(text, false);
    ASSERT_TRUE(ids.ok());
    auto stream = ModelText::Create(
        tokenizer->get(),
        {.stops = std::move(stops), .min_tokens = min_tokens, .continues_text = true});
    ASSERT_TRUE(stream.ok());
    for (const TokenId id : *ids) {
      const TextStream::Step step = (*stream)->Feed(id);
      shown += step.text;
      stop = step.stop_string;
      if (stop.has_value()) return;
    }
    const TextStream::Step rest = (*stream)->Flush();
    shown += rest.text;
    stop = rest.stop_string;
  }

  std::string shown;
  std::optional<std::string> stop;
};

TEST_F(ModelTextTest, AllTextComesOut) {
  Run("Once upon a time, grüße 漢字 🎉.", {});
  EXPECT_EQ(shown, "Once upon a time, grüße 漢字 🎉.");
  EXPECT_FALSE(stop.has_value());
}

TEST_F(ModelTextTest, EndsBeforeAStopStringAcrossTokens) {
  Run("one two three four five", {"x", "wo thr"});
  EXPECT_EQ(shown, "one t");
  EXPECT_EQ(stop, "wo thr");
}

TEST_F(ModelTextTest, TheLeastNumberOfTokensComesBeforeAnyStopString) {
  Run("one two one two", {"one"}, /*min_tokens=*/2);
  EXPECT_EQ(shown, "one two ");
  EXPECT_EQ(stop, "one");
}

TEST_F(ModelTextTest, WhatOnlyLookedLikeAStopStringIsShownAtTheEnd) {
  Run("one two", {"two three"});
  EXPECT_EQ(shown, "one two");
  EXPECT_FALSE(stop.has_value());
}

TEST_F(ModelTextTest, BadStopStringsAreRefused) {
  const absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer =
      Tokenizer::Load("deploy/demo_model/model");
  ASSERT_TRUE(tokenizer.ok());
  EXPECT_TRUE(
      absl::IsInvalidArgument(ModelText::Create(tokenizer->get(), {.stops = {""}}).status()));
}

}  // namespace
}  // namespace baton
