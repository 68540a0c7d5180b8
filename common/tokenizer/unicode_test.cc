#include "common/tokenizer/unicode.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "common/tokenizer/utf8.h"

namespace baton {
namespace {

TEST(UnicodeTest, ComposesCanonically) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"plain", "plain"},
      {"e\u0301", "é"},
      {"\u212b", "Å"},                     // A singleton.
      {"\u1e9b\u0323", "\u1e9b\u0323"},    // From UAX #15.
      {"q\u0307\u0323", "q\u0323\u0307"},  // Marks in canonical order.
      {"a\u0315\u0300\u05ae\u0301b", "à\u05ae\u0301\u0315b"},
      {"\u0958", "\u0915\u093c"},  // Excluded from composition.
      {"\u1100\u1161\u11a8", "각"},
      {"\u1100\u1161x\u11a8", "가x\u11a8"},
      {"\u0301e", "\u0301e"},
      {"e\u0301\u0301", "é\u0301"},
      {"s\u0323\u0307", "\u1e69"},
      {"\u1e63\u0307", "\u1e69"},
  };
  for (const auto& [text, composed] : cases) EXPECT_EQ(ToNfc(text), composed) << text;
}

TEST(UnicodeTest, KnowsItsClasses) {
  EXPECT_TRUE(IsWhiteSpace(U'\u3000'));
  EXPECT_FALSE(IsWhiteSpace(U'\u180e'));
  EXPECT_TRUE(IsNumeric(U'½') && IsNumeric(U'Ⅷ') && IsNumeric(U'٣'));
  EXPECT_FALSE(IsNumeric(U'a'));
  for (const char32_t c : {U'a', U'é', U'\u0301', U'_', U'7', U'\u200d', U'世', U'Ⓐ'}) {
    EXPECT_TRUE(IsWordCharacter(c)) << static_cast<uint32_t>(c);
  }
  for (const char32_t c : {U' ', U'-', U'½', U'😀'}) {
    EXPECT_FALSE(IsWordCharacter(c)) << static_cast<uint32_t>(c);
  }
}

TEST(Utf8Test, AcceptsEveryCharacterAndNothingElse) {
  for (char32_t c = 0; c < 0x110000; ++c) {
    std::string text;
    AppendUtf8(c, &text);
    const bool is_surrogate = c >= 0xD800 && c < 0xE000;
    ASSERT_EQ(ValidUtf8Prefix(text), is_surrogate ? 0 : text.size());
    if (!is_surrogate) {
      ASSERT_EQ(NextUtf8(text).code_point, c);
    }
  }
  for (const char* bad : {"\x80", "\xc0\xaf", "\xe0\x80\xaf", "\xf0\x80\x80\xaf",
                          "\xf5\x80\x80\x80", "\xff", "\xc3(", "\xe2\x28\xa1"}) {
    EXPECT_EQ(ValidUtf8Prefix(bad), 0u);
  }
  EXPECT_EQ(ValidUtf8Prefix("12345678abc\xff"), 11u);
}

TEST(Utf8Test, TellsIncompleteFromInvalid) {
  using Kind = Utf8Step::Kind;
  EXPECT_EQ(NextUtf8("\xf0\x9f\x98").kind, Kind::kIncomplete);
  EXPECT_EQ(NextUtf8("\xf0\x9f\x98").bytes, 3u);
  EXPECT_EQ(NextUtf8("\xf0\x9f\x98x").kind, Kind::kInvalid);
  EXPECT_EQ(NextUtf8("\xf0\x9f\x98x").bytes, 3u);  // A maximal subpart.
  EXPECT_EQ(NextUtf8("\xed\xa0").bytes, 1u);
}

}  // namespace
}  // namespace baton
