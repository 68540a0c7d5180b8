#include "common/json/bounded_json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

namespace baton {
namespace {

using ::testing::HasSubstr;

std::string Message(const std::string& text) {
  return std::string(ParseJson(text, "file").status().message());
}

TEST(JsonTest, DepthAndValuesAreBounded) {
  std::string list = "[0";
  for (size_t i = 0; i < kJsonValueCountMax; ++i) list += ",0";

  EXPECT_EQ(Message(std::string(1000, '[')), "file: nested deeper than 64 levels");
  EXPECT_EQ(Message(list + "]"), "file: more than 8388608 values");
  EXPECT_EQ(Message("[" + std::string(2 * kJsonValueCountMax, ' ') + "]"), "");
}

TEST(JsonTest, NamesThePlaceOfAnError) {
  EXPECT_THAT(Message("{\"a\": nope}"), HasSubstr("file: "));
  EXPECT_THAT(Message("{\"a\": nope}"), HasSubstr("column 8"));
  EXPECT_EQ(Message("[[1], {\"a\": \"\\ud83d\\ude00\"}]"), "");
}

TEST(JsonTest, NumbersThatNothingHoldsAreErrors) { EXPECT_NE(Message("[1e999]"), ""); }

TEST(JsonTest, LongFilesAreNotRead) {
  EXPECT_TRUE(absl::IsNotFound(ReadJsonFile("/nonexistent", 10).status()));
  const auto longer = ReadTextFile("CMakeLists.txt", 10);
  EXPECT_THAT(std::string(longer.status().message()), HasSubstr("more than the limit of 10"));
}

}  // namespace
}  // namespace baton
