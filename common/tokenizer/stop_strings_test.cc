#include "common/tokenizer/stop_strings.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace baton {
namespace {

using ::testing::HasSubstr;

StopStringMatcher Make(const std::vector<std::string>& stops) {
  auto matcher = StopStringMatcher::Create(stops);
  EXPECT_TRUE(matcher.ok()) << matcher.status();
  return *std::move(matcher);
}

TEST(StopStringMatcherTest, PassesTextWithoutStopStrings) {
  StopStringMatcher matcher = Make({});
  EXPECT_EQ(matcher.Push("anything"), "anything");
  EXPECT_EQ(matcher.Flush(), "");
  EXPECT_FALSE(matcher.stopped());
}

TEST(StopStringMatcherTest, MatchesAcrossPieces) {
  StopStringMatcher matcher = Make({"\nUser:"});
  EXPECT_EQ(matcher.Push("Hello.\n"), "Hello.");
  EXPECT_EQ(matcher.Push("Us"), "");
  EXPECT_EQ(matcher.Push("er"), "");
  EXPECT_EQ(matcher.Push(": more"), "");
  EXPECT_TRUE(matcher.stopped());
  EXPECT_EQ(matcher.Push("later"), "");
  EXPECT_EQ(matcher.Flush(), "");
}

TEST(StopStringMatcherTest, ReleasesWhatTurnsOutToBeNoMatch) {
  StopStringMatcher matcher = Make({"aab"});
  EXPECT_EQ(matcher.Push("xa"), "x");
  EXPECT_EQ(matcher.Push("a"), "");
  EXPECT_EQ(matcher.Push("a"), "a");
  EXPECT_EQ(matcher.Push("c"), "aac");
  EXPECT_FALSE(matcher.stopped());
}

TEST(StopStringMatcherTest, FlushGivesTheHeldBeginning) {
  StopStringMatcher matcher = Make({"</s>"});
  EXPECT_EQ(matcher.Push("a </"), "a ");
  EXPECT_EQ(matcher.Flush(), "</");
  EXPECT_FALSE(matcher.stopped());
}

TEST(StopStringMatcherTest, TheMatchCompletedFirstCounts) {
  StopStringMatcher matcher = Make({"abcd", "bc"});
  EXPECT_EQ(matcher.Push("xabcd"), "xa");
  EXPECT_EQ(matcher.matched(), 1u);
}

TEST(StopStringMatcherTest, OfThoseCompletedTogetherTheLongestCounts) {
  StopStringMatcher matcher = Make({"c", "abc", "bc"});
  EXPECT_EQ(matcher.Push("xabcd"), "x");
  EXPECT_EQ(matcher.matched(), 1u);
}

TEST(StopStringMatcherTest, RefusesWhatItCannotBound) {
  using Matcher = StopStringMatcher;
  const auto message = [](const std::vector<std::string>& stops) {
    const absl::Status status = Matcher::Validate(stops);
    EXPECT_TRUE(absl::IsInvalidArgument(status));
    return std::string(status.message());
  };
  EXPECT_THAT(message({"a", ""}), HasSubstr("stop[1]"));
  EXPECT_THAT(message({std::string(Matcher::kStopBytesMax + 1, 'x')}), HasSubstr("stop[0]"));
  EXPECT_THAT(message({"a\xff"}), HasSubstr("not UTF-8"));
  EXPECT_THAT(message(std::vector<std::string>(Matcher::kStopCountMax + 1, "x")), HasSubstr("17"));
  EXPECT_TRUE(Matcher::Validate({std::string(Matcher::kStopBytesMax, 'x')}).ok());
}

class StopStringRandomTest : public testing::TestWithParam<uint64_t> {};

// Where the text ends by the definition: before the first completed, and there longest, match.
size_t EndOf(const std::string& text, const std::vector<std::string>& stops) {
  for (size_t end = 1; end <= text.size(); ++end) {
    size_t longest = 0;
    for (const std::string& stop : stops) {
      if (end >= stop.size() && text.compare(end - stop.size(), stop.size(), stop) == 0) {
        longest = std::max(longest, stop.size());
      }
    }
    if (longest > 0) return end - longest;
  }
  return text.size();
}

TEST_P(StopStringRandomTest, OutcomeDoesNotDependOnThePieces) {
  std::mt19937_64 rng(GetParam());
  const auto random_text = [&](size_t size) {
    std::string text(size, 'a');
    for (char& c : text) c = static_cast<char>('a' + rng() % 2);
    return text;
  };
  for (int round = 0; round < 300; ++round) {
    std::vector<std::string> stops(rng() % 4);
    for (std::string& stop : stops) stop = random_text(1 + rng() % 7);
    const std::string text = random_text(rng() % 60);

    StopStringMatcher matcher = Make(stops);
    std::string shown;
    for (size_t at = 0; at < text.size();) {
      const size_t size = std::min<size_t>(1 + rng() % 9, text.size() - at);
      shown += matcher.Push(text.substr(at, size));
      at += size;
      // Never shows what a match would have to take back.
      EXPECT_LE(shown.size(), EndOf(text, stops));
    }
    shown += matcher.Flush();

    EXPECT_EQ(shown, text.substr(0, EndOf(text, stops)));
    EXPECT_EQ(matcher.stopped(), EndOf(text + "#", stops) < text.size() + 1);
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, StopStringRandomTest, testing::Range<uint64_t>(0, 10));

}  // namespace
}  // namespace baton
