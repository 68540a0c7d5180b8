#include "common/base/command_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>

#include "absl/flags/flag.h"
#include "absl/flags/reflection.h"
#include "absl/strings/str_cat.h"

ABSL_FLAG(int, test_count, 7, "How many.");
ABSL_FLAG(bool, test_switch, false, "A switch.");
ABSL_FLAG(std::string, test_name, "nobody", "A name.");
ABSL_FLAG(baton::ByteSize, test_memory, baton::ByteSize{1 << 20}, "An amount.");
ABSL_FLAG(baton::RepeatedString, test_stop, {}, "May be given more than once.");

namespace baton {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

class CommandLineTest : public testing::Test {
 protected:
  absl::StatusOr<CommandLine> Set(const std::vector<std::string>& arguments) {
    return SetFlags(arguments, [this](const std::string& name) -> std::optional<std::string> {
      const auto found = environment_.find(name);
      return found == environment_.end() ? std::nullopt : std::optional(found->second);
    });
  }

  std::string FlagFile(const std::string& name, const std::string& text) {
    files_.push_back(absl::StrCat(testing::TempDir(), "/command_line_test_", getpid(), "_", name));
    std::ofstream(files_.back()) << text;
    return files_.back();
  }

  ~CommandLineTest() override {
    for (const std::string& file : files_) std::filesystem::remove(file);
  }

  std::map<std::string, std::string> environment_;

 private:
  std::vector<std::string> files_;
  absl::FlagSaver saver_;
};

TEST_F(CommandLineTest, AllFormsOfAFlagSetIt) {
  const auto line = Set({"--test_count", "3", "first", "-test_name=x=y", "--test_switch", "--",
                         "--test_count", "-9"});

  ASSERT_TRUE(line.ok()) << line.status();
  EXPECT_THAT(line->positional, ElementsAre("first", "--test_count", "-9"));
  EXPECT_EQ(absl::GetFlag(FLAGS_test_count), 3);
  EXPECT_EQ(absl::GetFlag(FLAGS_test_name), "x=y");
  EXPECT_TRUE(absl::GetFlag(FLAGS_test_switch));
  ASSERT_TRUE(Set({"--notest_switch"}).ok());
  EXPECT_FALSE(absl::GetFlag(FLAGS_test_switch));
}

TEST_F(CommandLineTest, WordAfterASwitchSetsItAndNumbersDoNot) {
  const auto line = Set({"--test_switch", "false", "--test_count=1", "rest"});
  ASSERT_TRUE(line.ok()) << line.status();
  EXPECT_FALSE(absl::GetFlag(FLAGS_test_switch));
  EXPECT_THAT(line->positional, ElementsAre("rest"));

  const auto number = Set({"--test_switch", "0"});
  ASSERT_TRUE(number.ok()) << number.status();
  EXPECT_TRUE(absl::GetFlag(FLAGS_test_switch));
  EXPECT_THAT(number->positional, ElementsAre("0"));
}

TEST_F(CommandLineTest, ValueMayLookLikeAFlag) {
  ASSERT_TRUE(Set({"--test_name", "--test_count"}).ok());

  EXPECT_EQ(absl::GetFlag(FLAGS_test_name), "--test_count");
}

TEST_F(CommandLineTest, MistakesNameTheFlag) {
  EXPECT_THAT(Set({"--test_cuont=1"}).status().message(), HasSubstr("--test_cuont"));
  EXPECT_THAT(Set({"--test_count=many"}).status().message(), HasSubstr("--test_count"));
  EXPECT_THAT(Set({"--test_count"}).status().message(), HasSubstr("needs a value"));
  EXPECT_FALSE(Set({"--notest_count"}).ok());
  EXPECT_THAT(Set({"--test_memory=1x"}).status().message(), HasSubstr("'1x' is not a size"));
}

TEST_F(CommandLineTest, RepeatedFlagKeepsEveryValueLiterally) {
  ASSERT_TRUE(Set({"--test_stop", "a,b", "--test_stop=\n", "--test_stop", ""}).ok());

  EXPECT_THAT(absl::GetFlag(FLAGS_test_stop).values, ElementsAre("a,b", "\n", ""));
}

TEST_F(CommandLineTest, RepeatedFlagTextFormRoundTrips) {
  const std::vector<std::vector<std::string>> lists = {{},        {""},     {"a"},
                                                       {"a", ""}, {"", ""}, {"a", "b,c", "\\n"}};
  for (const auto& list : lists) {
    RepeatedString parsed;
    std::string error;

    ASSERT_TRUE(AbslParseFlag(AbslUnparseFlag(RepeatedString{list}), &parsed, &error)) << error;

    EXPECT_EQ(parsed.values, list);
  }
}

TEST_F(CommandLineTest, CommandLineWinsOverFileAndFileOverEnvironment) {
  environment_ = {{"BATON_TEST_COUNT", "1"}, {"BATON_TEST_NAME", "e"}, {"BATON_TEST_MEMORY", "1g"}};
  const std::string path = FlagFile("order", "# comment\n\n--test_count=2\n--test_name f g \n");

  ASSERT_TRUE(Set({"--flagfile", path, "--test_count=3"}).ok());

  EXPECT_EQ(absl::GetFlag(FLAGS_test_count), 3);
  EXPECT_EQ(absl::GetFlag(FLAGS_test_name), "f g");
  EXPECT_EQ(absl::GetFlag(FLAGS_test_memory).bytes, 1u << 30);
}

TEST_F(CommandLineTest, EnvironmentMayNameTheFlagFile) {
  environment_ = {{"BATON_FLAGFILE", FlagFile("env", "--test_stop=a\n--test_stop=b\n")}};

  ASSERT_TRUE(Set({}).ok());
  EXPECT_THAT(absl::GetFlag(FLAGS_test_stop).values, ElementsAre("a", "b"));
  ASSERT_TRUE(Set({"--test_stop=c"}).ok());
  EXPECT_THAT(absl::GetFlag(FLAGS_test_stop).values, ElementsAre("c"));
}

TEST_F(CommandLineTest, BadEnvironmentNamesTheVariable) {
  environment_ = {{"BATON_TEST_COUNT", "many"}};

  EXPECT_THAT(Set({}).status().message(), HasSubstr("BATON_TEST_COUNT"));
}

TEST_F(CommandLineTest, BadFlagFileNamesFileAndLine) {
  EXPECT_THAT(Set({"--flagfile=/nonexistent/flags"}).status().message(),
              HasSubstr("/nonexistent/flags: cannot be read"));
  const std::string path = FlagFile("bad", "--test_count=1\nrubbish\n");
  EXPECT_THAT(Set({"--flagfile=" + path}).status().message(), HasSubstr("line 2"));
  const std::string self = FlagFile("self", "");
  FlagFile("self", "--flagfile=" + self);
  EXPECT_THAT(Set({"--flagfile=" + self}).status().message(), HasSubstr("too deeply"));
}

TEST_F(CommandLineTest, HelpShowsFlagsWithDefaultsAndNothingOfAbseil) {
  const std::string help = HelpText({"prog", "does things", "prog [flags]", "1.0"});

  EXPECT_THAT(help, HasSubstr("prog: does things"));
  EXPECT_THAT(help, HasSubstr("How many. (default: 7)"));
  EXPECT_THAT(help, HasSubstr("An amount. (default: 1MiB)"));
  EXPECT_THAT(help, HasSubstr("May be given more than once. (default: none)"));
  EXPECT_THAT(help, HasSubstr("Flags of common/base:"));
  EXPECT_THAT(help, Not(HasSubstr("undefok")));
  EXPECT_TRUE(Set({"--help"})->help);
  EXPECT_TRUE(Set({"--version"})->version);
}

TEST(ByteSizeTest, ReadsWhatPeopleWrite) {
  const std::map<std::string, uint64_t> sizes = {{"0", 0},
                                                 {"123", 123},
                                                 {"1k", 1024},
                                                 {"512MiB", 512ull << 20},
                                                 {"2GB", 2000000000},
                                                 {"1g", 1ull << 30},
                                                 {"1.5GiB", 3ull << 29},
                                                 {" 4 Ki ", 4096},
                                                 {"1TiB", 1ull << 40}};
  for (const auto& [text, bytes] : sizes) {
    const auto size = ParseByteSize(text);
    ASSERT_TRUE(size.ok()) << size.status();
    EXPECT_EQ(size->bytes, bytes) << text;
    EXPECT_EQ(ParseByteSize(AbslUnparseFlag(*size))->bytes, bytes) << text;
  }
}

TEST(ByteSizeTest, RefusesWhatIsNoSize) {
  for (const char* text : {"", "k", "-1", "1e9", "1.0001k", "1q", "99999999999T", "1.2.3", "."}) {
    EXPECT_FALSE(ParseByteSize(text).ok()) << text;
  }
}

TEST(HostPortTest, RoundTrips) {
  for (const char* text : {"localhost:0", "127.0.0.1:65535", "[::1]:80", "a-b.c:1"}) {
    const auto address = ParseHostPort(text);
    ASSERT_TRUE(address.ok()) << address.status();
    EXPECT_EQ(FormatHostPort(*address), text);
  }
  EXPECT_EQ(ParseHostPort("[::1]:80")->host, "::1");
}

TEST(HostPortTest, RefusesWhatIsNoAddress) {
  for (const char* text : {"", "host", ":80", "host:", "host:65536", "host:-1", "host:8o", "::1:80",
                           "[]:1", "a b:1"}) {
    EXPECT_THAT(ParseHostPort(text).status().message(), HasSubstr("is not an address")) << text;
  }
}

}  // namespace
}  // namespace baton
