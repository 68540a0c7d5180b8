#include "common/request/request_flags.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/base/command_line.h"

namespace baton {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

TEST(RequestFlagsTest, IdsAreNumbersBetweenCommas) {
  EXPECT_THAT(*ParseIds("1,2,30"), ElementsAre(1, 2, 30));
  EXPECT_THAT(*ParseIds("1, 2"), ElementsAre(1, 2));
  EXPECT_FALSE(ParseIds("1,,2").ok());
  EXPECT_FALSE(ParseIds("1,x").ok());
  EXPECT_FALSE(ParseIds("99999999999").ok());
}

TEST(RequestFlagsTest, BiasesAreIdsWithNumbers) {
  EXPECT_THAT(*ParseLogitBias("5:-2.5,7:100"), ElementsAre(Pair(5, -2.5f), Pair(7, 100.0f)));
  for (const char* bad : {"5", "5:", ":1", "x:1", "5:x", "5:1,", "5:1:2", "5:1,5:2"}) {
    EXPECT_FALSE(ParseLogitBias(bad).ok()) << bad;
  }
}

TEST(RequestFlagsTest, BiasesAndStopTokensReachTheRequest) {
  const auto no_environment = [](const std::string&) { return std::optional<std::string>(); };
  ASSERT_TRUE(
      SetFlags({"--prompt=x", "--logit_bias=5:-2.5", "--stop_token_ids=8,9"}, no_environment).ok());

  const absl::StatusOr<TypedRequest> typed = RequestFromFlags();

  ASSERT_TRUE(typed.ok()) << typed.status();
  EXPECT_EQ(typed->options.sampling().logit_bias().at(5), -2.5f);
  EXPECT_THAT(typed->options.stopping().stop_token_ids(), ElementsAre(8, 9));
}

TEST(RequestFlagsTest, Utf8IsCheckedByTheStandard) {
  EXPECT_TRUE(CheckUtf8("it", "plain, grüße 漢字 🎉").ok());
  for (const char* bad : {"\x80", "\xc3", "\xc0\xaf", "\xe0\x80\x80", "\xed\xa0\x80",
                          "\xf5\x80\x80\x80", "\xf4\x90\x80\x80", "\xe6\xbc"}) {
    EXPECT_FALSE(CheckUtf8("it", std::string("ab") + bad).ok()) << bad;
  }
  EXPECT_THAT(std::string(CheckUtf8("the prompt", "ab\xff").message()),
              HasSubstr("the prompt is not UTF-8 at byte 2"));
}

}  // namespace
}  // namespace baton
