#include "common/telemetry/metrics.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/base/command_line.h"

namespace baton {
namespace {

using testing::HasSubstr;

// The answer to GET `path`, headers and all; empty if nobody answers.
std::string HttpGet(const std::string& address, const std::string& path) {
  const HostPort parsed = ParseHostPort(address).value();
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in peer = {};
  peer.sin_family = AF_INET;
  peer.sin_port = htons(parsed.port);
  inet_pton(AF_INET, parsed.host.c_str(), &peer.sin_addr);
  std::string answer;
  if (connect(fd, reinterpret_cast<sockaddr*>(&peer), sizeof(peer)) == 0) {
    const std::string request = "GET " + path + " HTTP/1.0\r\n\r\n";
    EXPECT_EQ(send(fd, request.data(), request.size(), 0), static_cast<ssize_t>(request.size()));
    char buffer[4096];
    for (ssize_t n = recv(fd, buffer, sizeof(buffer), 0); n > 0;
         n = recv(fd, buffer, sizeof(buffer), 0)) {
      answer.append(buffer, static_cast<size_t>(n));
    }
  }
  close(fd);
  return answer;
}

TEST(MetricsTest, ScrapeShowsWhatWasCounted) {
  MetricsRegistry registry;
  auto server = MetricsServer::Start("127.0.0.1:0", registry);
  ASSERT_TRUE(server.ok()) << server.status();
  registry.AddCounter(kTokensTotal, "Tokens.", {{"phase", "decode"}}).Increment(3);
  registry.AddGauge(kKvBlocks, "Blocks.", {{"state", "free"}}).Set(17);
  registry.AddHistogram(kTimeToFirstTokenSeconds, "TTFT.", RequestSecondsBuckets()).Observe(0.1);

  const std::string page = HttpGet((*server)->address(), "/metrics");

  EXPECT_THAT(page, HasSubstr("200 OK"));
  EXPECT_THAT(page, HasSubstr("# TYPE baton_tokens_total counter"));
  EXPECT_THAT(page, HasSubstr("baton_tokens_total{phase=\"decode\"} 3"));
  EXPECT_THAT(page, HasSubstr("baton_kv_blocks{state=\"free\"} 17"));
  EXPECT_THAT(page, HasSubstr("baton_time_to_first_token_seconds_bucket{le=\"0.15\"} 1"));
  EXPECT_THAT(page, HasSubstr("baton_time_to_first_token_seconds_bucket{le=\"0.08\"} 0"));
}

TEST(MetricsTest, RemovedGaugeIsNotShown) {
  MetricsRegistry registry;
  auto server = MetricsServer::Start("127.0.0.1:0", registry);
  ASSERT_TRUE(server.ok()) << server.status();
  registry.AddGauge(kKvBlocks, "Blocks.", {{"state", "free"}}).Set(17);
  Gauge& used = registry.AddGauge(kKvBlocks, "Blocks.", {{"state", "used"}});
  EXPECT_THAT(HttpGet((*server)->address(), "/metrics"), HasSubstr("state=\"used\""));

  registry.RemoveGauge(kKvBlocks, used);

  const std::string page = HttpGet((*server)->address(), "/metrics");
  EXPECT_THAT(page, testing::Not(HasSubstr("state=\"used\"")));
  EXPECT_THAT(page, HasSubstr("state=\"free\"} 17"));
  registry.AddGauge(kKvBlocks, "Blocks.", {{"state", "used"}}).Set(3);
  EXPECT_THAT(HttpGet((*server)->address(), "/metrics"), HasSubstr("state=\"used\"} 3"));
}

TEST(MetricsTest, SameNameAndLabelsAreOneMetric) {
  MetricsRegistry registry;
  Counter& first = registry.AddCounter("baton_x_total", "X.", {{"a", "1"}});

  EXPECT_EQ(&first, &registry.AddCounter("baton_x_total", "X.", {{"a", "1"}}));
  EXPECT_NE(&first, &registry.AddCounter("baton_x_total", "X.", {{"a", "2"}}));
}

TEST(MetricsTest, BucketsAscend) {
  for (const auto& buckets : {RequestSecondsBuckets(), StepSecondsBuckets()}) {
    EXPECT_TRUE(std::is_sorted(buckets.begin(), buckets.end()));
  }
}

TEST(MetricsTest, UsedPortIsOneClearError) {
  MetricsRegistry registry;
  auto first = MetricsServer::Start("127.0.0.1:0", registry);
  ASSERT_TRUE(first.ok()) << first.status();

  const auto second = MetricsServer::Start((*first)->address(), registry);

  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(second.status().message(), HasSubstr((*first)->address()));
}

TEST(MetricsTest, BadAddressIsOneClearError) {
  MetricsRegistry registry;
  for (const char* listen : {"", "9090", "localhost:http"}) {
    EXPECT_EQ(MetricsServer::Start(listen, registry).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(MetricsServer::Start("203.0.113.7:0", registry).status().code(),
            absl::StatusCode::kUnavailable);
}

TEST(MetricsTest, ServerMayOutliveTheRegistry) {
  auto registry = std::make_unique<MetricsRegistry>();
  auto server = MetricsServer::Start("127.0.0.1:0", *registry);
  ASSERT_TRUE(server.ok()) << server.status();

  registry.reset();

  EXPECT_THAT(HttpGet((*server)->address(), "/metrics"), HasSubstr("200 OK"));
}

TEST(MetricsDeathTest, InvalidNameIsAProgrammersError) {
  MetricsRegistry registry;
  EXPECT_DEATH(registry.AddCounter("not a name", "X."), "not a name");
}

}  // namespace
}  // namespace baton
