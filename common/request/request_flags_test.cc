#include "common/request/request_flags.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace baton {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(RequestFlagsTest, IdsAreNumbersBetweenCommas) {
  EXPECT_THAT(*ParseIds("1,2,30"), ElementsAre(1, 2, 30));
  EXPECT_THAT(*ParseIds("1, 2"), ElementsAre(1, 2));
  EXPECT_FALSE(ParseIds("1,,2").ok());
  EXPECT_FALSE(ParseIds("1,x").ok());
  EXPECT_FALSE(ParseIds("99999999999").ok());
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
