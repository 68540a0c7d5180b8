// What `baton` takes and shows, without a network.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "absl/flags/reflection.h"
#include "common/base/command_line.h"
#include "router/cli/commands.h"
#include "router/cli/options.h"
#include "router/cli/output.h"

namespace baton::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(CliOptionsTest, MessageLimitIsTheUsers) {
  const auto no_environment = [](const std::string&) { return std::optional<std::string>(); };
  const absl::StatusOr<CommandLine> line =
      SetFlags({"status", "--message_limit=100MiB"}, no_environment);
  ASSERT_TRUE(line.ok()) << line.status();

  const absl::StatusOr<Options> options = OptionsFromFlags(line->positional);

  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->client.channel.message_bytes_max, 100 << 20);
}

TEST(CliOutputTest, StatusShowsWhyAWorkerIsNotUsed) {
  v1::GetClusterResponse cluster;
  v1::WorkerStatus* worker = cluster.add_workers();
  worker->set_address("10.0.0.1:7");
  worker->set_role(v1::ROLE_DECODE);
  worker->set_state("refused");
  worker->set_reason("another KV layout");
  worker->set_incarnation(255);
  worker->mutable_load()->set_blocks_total(64);
  const std::string table = ClusterTable(cluster, {});
  const auto json = nlohmann::json::parse(ClusterJson(cluster, {}));

  EXPECT_THAT(table, HasSubstr("10.0.0.1:7  decode  refused  64"));
  EXPECT_THAT(table, HasSubstr("another KV layout"));
  EXPECT_EQ(json["workers"][0]["reason"], "another KV layout");
  EXPECT_EQ(json["workers"][0]["incarnation"], "00000000000000ff");
  EXPECT_THAT(ClusterTable({}, {}), HasSubstr("no workers"));
}

// What each call of a conversation was asked, its second one failing with `failure`.
struct Conversation {
  std::vector<std::string> asked;
  absl::Status status;
};
Conversation Talk(bool interactive, const absl::Status& failure) {
  Conversation result;
  v1::Chat chat;
  std::istringstream lines("one\n\ntwo\nthree\n");
  result.status = Converse(lines, interactive, &chat, [&]() -> absl::StatusOr<std::string> {
    std::string asked;
    for (const v1::ChatMessage& message : chat.messages()) asked += message.content() + " ";
    result.asked.push_back(asked);
    if (result.asked.size() == 2) return failure;
    return "yes";
  });
  return result;
}

TEST(CliChatTest, PersonsConversationSurvivesACallThatFails) {
  const Conversation talk = Talk(/*interactive=*/true, absl::ResourceExhaustedError("full"));

  EXPECT_TRUE(talk.status.ok());
  EXPECT_THAT(talk.asked, ElementsAre("one ", "one yes two ", "one yes three "));
}

TEST(CliChatTest, CallThatFailsEndsAScriptAndOneThatIsCancelledEndsAll) {
  EXPECT_EQ(Talk(false, absl::ResourceExhaustedError("full")).asked.size(), 2u);
  EXPECT_TRUE(absl::IsResourceExhausted(Talk(false, absl::ResourceExhaustedError("")).status));
  EXPECT_TRUE(absl::IsCancelled(Talk(true, absl::CancelledError("")).status));
}

TEST(CliOptionsTest, KeysAreNotSentInClearUnasked) {
  const absl::FlagSaver saver;
  const auto no_environment = [](const std::string&) { return std::optional<std::string>(); };
  const std::string file = testing::TempDir() + "/baton_cli_test_key";
  std::filesystem::remove(file);
  std::ofstream(file) << "0123456789abcdef0123456789abcdef\n";
  std::filesystem::permissions(file, std::filesystem::perms::owner_read);
  const auto status_with = [&](std::vector<std::string> flags) {
    flags.push_back("--api_key_file=" + file);
    EXPECT_TRUE(SetFlags(std::move(flags), no_environment).ok());
    return OptionsFromFlags({"status"}).status();
  };

  EXPECT_TRUE(status_with({"--router=127.0.0.1:7000"}).ok());
  EXPECT_TRUE(status_with({"--router=[::1]:7000"}).ok());
  const absl::Status refused = status_with({"--router=127.example.com:7000"});
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("--tls_ca"));
  EXPECT_TRUE(status_with({"--api_key_in_clear"}).ok());
}

TEST(CliOptionsTest, DrainNeedsAWorker) {
  EXPECT_EQ(OptionsFromFlags({"drain", "10.0.0.1:7"})->worker, "10.0.0.1:7");
  EXPECT_THAT(std::string(OptionsFromFlags({"drain"}).status().message()),
              HasSubstr("baton drain HOST:PORT"));
}

class DrainProgressTest : public testing::Test {
 protected:
  using State = DrainProgress::State;
  static constexpr uint64_t kProcess = 5;
  static constexpr char kAddress[] = "10.0.0.1:7";

  DrainProgressTest() : worker(cluster.add_workers()) {
    worker->set_address(kAddress);
    worker->set_incarnation(kProcess);
    worker->set_state("draining");
  }
  DrainProgress Progress() const { return ProgressOfDrain(cluster, kAddress, kProcess); }

  v1::GetClusterResponse cluster;
  v1::WorkerStatus* const worker;
};

TEST_F(DrainProgressTest, SaysWhatIsLeft) {
  worker->mutable_load()->set_sequences_running(3);
  EXPECT_EQ(Progress().state, State::kDraining);
  EXPECT_TRUE(Progress().there);
  EXPECT_THAT(Progress().line, HasSubstr("3 sequences running"));
}

TEST_F(DrainProgressTest, HasDrainedOnceItSaysSo) {
  worker->set_drained(true);
  EXPECT_EQ(Progress().state, State::kDrained);
  EXPECT_TRUE(Progress().there);
  worker->set_state("lost");
  EXPECT_EQ(Progress().state, State::kDrained);
  EXPECT_FALSE(Progress().there);
}

TEST_F(DrainProgressTest, MayComeBackIfItWentBefore) {
  worker->set_state("lost");
  worker->set_reason("nothing heard for 3 s");
  EXPECT_EQ(Progress().state, State::kSilent);
  EXPECT_FALSE(Progress().there);
  EXPECT_THAT(Progress().line, HasSubstr("nothing heard for 3 s"));
}

TEST_F(DrainProgressTest, IsGoneIfAnotherHasItsAddress) {
  worker->set_incarnation(kProcess + 1);
  worker->set_state("ready");
  worker->set_drained(true);
  EXPECT_EQ(Progress().state, State::kGone);
  EXPECT_THAT(Progress().line, Not(HasSubstr("drained")));
}

TEST_F(DrainProgressTest, NewRouterHasToMeetItFirst) {
  worker->set_state("connecting");
  worker->set_incarnation(0);
  EXPECT_EQ(Progress().state, State::kSilent);
  EXPECT_FALSE(Progress().there);
}

TEST_F(DrainProgressTest, RouterThatLetsItWorkHasForgotten) {
  worker->set_state("ready");
  EXPECT_EQ(Progress().state, State::kForgotten);
}

}  // namespace
}  // namespace baton::cli
