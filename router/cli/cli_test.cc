// What `baton` takes and shows, without a network.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "common/base/command_line.h"
#include "router/cli/options.h"
#include "router/cli/output.h"

namespace baton::cli {
namespace {

using ::testing::HasSubstr;

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

TEST(CliOptionsTest, DrainNeedsAWorker) {
  EXPECT_EQ(OptionsFromFlags({"drain", "10.0.0.1:7"})->worker, "10.0.0.1:7");
  EXPECT_THAT(std::string(OptionsFromFlags({"drain"}).status().message()),
              HasSubstr("baton drain HOST:PORT"));
}

TEST(CliOutputTest, DrainIsOverWhenThatProcessIsGone) {
  constexpr uint64_t kProcess = 5;
  v1::GetClusterResponse cluster;
  v1::WorkerStatus* worker = cluster.add_workers();
  worker->set_address("10.0.0.1:7");
  worker->set_incarnation(kProcess);
  worker->set_state("draining");
  worker->mutable_load()->set_sequences_running(3);
  const auto progress = [&cluster] { return DrainProgress(cluster, "10.0.0.1:7", kProcess); };

  EXPECT_THAT(progress().value(), HasSubstr("3 sequences running"));
  worker->set_state("lost");
  EXPECT_EQ(progress().status().code(), absl::StatusCode::kUnavailable);
  worker->set_drained(true);
  EXPECT_EQ(progress().value(), "");
  // Its successor at the same address.
  worker->set_incarnation(kProcess + 1);
  worker->set_drained(false);
  worker->set_state("ready");
  EXPECT_EQ(progress().value(), "");
}

}  // namespace
}  // namespace baton::cli
