#include "common/tokenizer/regex.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/status/status.h"

namespace baton {
namespace {

std::vector<std::string> Matches(const std::string& pattern, const std::string& text) {
  const auto regex = Regex::Compile(pattern, "test");
  EXPECT_TRUE(regex.ok()) << regex.status();
  std::vector<TextRange> ranges;
  EXPECT_TRUE(regex->FindAll(text, &ranges).ok());
  std::vector<std::string> matches;
  for (const TextRange& range : ranges) {
    matches.push_back(text.substr(range.begin, range.end - range.begin));
  }
  return matches;
}

using Strings = std::vector<std::string>;

TEST(RegexTest, FindsMatchesFromLeftToRight) {
  EXPECT_EQ(Matches("\\p{L}+", "ab é1x"), (Strings{"ab", "é", "x"}));
  EXPECT_EQ(Matches("(?i:'s|'ll)", "it'S we'LL"), (Strings{"'S", "'LL"}));
  EXPECT_EQ(Matches("a", ""), Strings{});
}

TEST(RegexTest, WhiteSpaceIsUnicodes) {
  // U+180E is white space for PCRE2 alone.
  EXPECT_EQ(Matches("\\s", "\u00a0\u3000\u0085\u2028\t"),
            (Strings{"\u00a0", "\u3000", "\u0085", "\u2028", "\t"}));
  EXPECT_EQ(Matches("\\s", "\u180e"), Strings{});
  EXPECT_EQ(Matches("[\\s]", "\u180e"), Strings{});
  EXPECT_EQ(Matches("\\S", "\u180e"), Strings{"\u180e"});
  EXPECT_EQ(Matches("[^\\S\\n]+", " \n\u3000x"), (Strings{" ", "\u3000"}));
}

TEST(RegexTest, WordsTakeMarksAndConnectors) {
  EXPECT_EQ(Matches("\\w+", "e\u0301_1\u203f-x"), (Strings{"e\u0301_1\u203f", "x"}));
  EXPECT_EQ(Matches("\\W", "a-b"), Strings{"-"});
}

TEST(RegexTest, EmptyMatchesNeverStandStill) {
  EXPECT_EQ(Matches("x*", "axé"), (Strings{"", "x", ""}));
  EXPECT_EQ(Matches("$", "a\n"), (Strings{"", ""}));
}

TEST(RegexTest, BracketsInClassesAreReadAsOnigurumaDoes) {
  EXPECT_EQ(Matches("[]a]+", "x]ay"), Strings{"]a"});
  EXPECT_EQ(Matches("[^]a]+", "]xy]"), Strings{"xy"});
  EXPECT_EQ(Matches("[\\[\\]]", "[x]"), (Strings{"[", "]"}));
  EXPECT_EQ(Matches("[[:digit:]]+", "a12"), Strings{"12"});
}

TEST(RegexTest, BracesThatCountNothingAreLiterals) {
  EXPECT_EQ(Matches("a{", "a{"), Strings{"a{"});
  EXPECT_EQ(Matches("a{2,3}", "aaaaa"), (Strings{"aaa", "aa"}));
}

TEST(RegexTest, EndlessBacktrackingIsAnErrorOfTheText) {
  const auto regex = Regex::Compile("(a|b|ab)*(a|b|ab)*(a|b|ab)*c", "pre_tokenizer");
  ASSERT_TRUE(regex.ok()) << regex.status();
  std::vector<TextRange> ranges;
  const std::string text(1000, 'a');

  const absl::Status status = regex->FindAll(text + "dc", &ranges);

  EXPECT_TRUE(absl::IsInvalidArgument(status));
}

class RefusedPatternTest : public testing::TestWithParam<const char*> {};

TEST_P(RefusedPatternTest, IsNotGuessed) { EXPECT_FALSE(Regex::Compile(GetParam(), "test").ok()); }

INSTANTIATE_TEST_SUITE_P(Patterns, RefusedPatternTest,
                         testing::Values("", "a{1,2}+", "a{2}?", "a{,2}", "\\h", "a\\b", "\\X",
                                         "\\K", "\\G", "(?R)", "(?1)", "(?#x)", "a(?i)b|c", "(?m)a",
                                         "(*ANY)a", "[a&&b]", "[a[b]]", "[\\W]", "\\", "(", "[a",
                                         "\\p{Nonsense}", "\\C"));

}  // namespace
}  // namespace baton
