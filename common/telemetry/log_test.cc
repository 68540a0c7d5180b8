#include "common/telemetry/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace baton {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

TEST(LogTest, LineHoldsEventAndFields) {
  EXPECT_EQ(FormatLogLine("session opened", {{"worker", "host:1"}, {"n", 3}, {"ms", 1.5}}),
            "session opened worker=host:1 n=3 ms=1.5");
}

TEST(LogTest, ValuesCannotForgeALineOrAField) {
  const std::string line =
      FormatLogLine("call", {{"request", "a\nERROR forged"}, {"id", "x level=\"y\""}, {"e", ""}});

  EXPECT_EQ(line, "call request=\"a\\nERROR forged\" id=\"x level=\\\"y\\\"\" e=\"\"");
}

TEST(LogTest, LongValuesAreCut) {
  const std::string line = FormatLogLine("call", {{"text", std::string(100'000, 'x')}});

  EXPECT_LT(line.size(), 5000u);
  EXPECT_THAT(line, HasSubstr("..."));
}

TEST(LogTest, StatusIsReadable) {
  EXPECT_EQ(FormatLogLine("failed", {{"status", absl::NotFoundError("no x")}}),
            "failed status=\"NOT_FOUND: no x\"");
}

TEST(LogTest, LevelDecidesWhatStderrShows) {
  testing::internal::CaptureStderr();
  ASSERT_TRUE(InitLog("prog", "warning").ok());

  LogInfo("hidden");
  LogError("shown {} %v", {{"key", "value"}});

  EXPECT_THAT(testing::internal::GetCapturedStderr(),
              AllOf(HasSubstr(" E prog: shown {} %v key=value\n"), Not(HasSubstr("hidden"))));
  EXPECT_FALSE(LogEnabled(LogLevel::kInfo));
}

TEST(LogTest, UnknownLevelIsRefused) {
  EXPECT_EQ(InitLog("prog", "loud").code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace baton
