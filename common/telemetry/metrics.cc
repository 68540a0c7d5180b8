#include "common/telemetry/metrics.h"

#include <netdb.h>
#include <prometheus/exposer.h>
#include <prometheus/family.h>
#include <prometheus/registry.h>
#include <sys/socket.h>
#include <unistd.h>

#include <exception>
#include <thread>
#include <utility>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "common/base/check.h"
#include "common/base/command_line.h"
#include "common/base/status_macros.h"
#include "common/telemetry/log.h"

ABSL_FLAG(std::string, metrics, "",
          "Where GET /metrics is served for Prometheus: host:port, port 0 takes any free one. "
          "Empty: nowhere.");

namespace baton {
namespace {

// A scrape every few seconds needs no more.
constexpr size_t kServerThreads = 2;

// Runs `add` at a library that throws on names it does not like: a programmer's error.
template <typename Add>
auto& CheckedAdd(const std::string& name, const Add& add) {
  try {
    return add();
  } catch (const std::exception& error) {
    CheckFailed(__FILE__, __LINE__, "metric can be added", absl::StrCat(name, ": ", error.what()));
  }
}

// Connects to a server of this process and hangs up.
void Knock(const std::string& address) {
  const absl::StatusOr<HostPort> parsed = ParseHostPort(address);
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (!parsed.ok() ||
      getaddrinfo(parsed->host.c_str(), absl::StrCat(parsed->port).c_str(), &hints, &found) != 0) {
    return;
  }
  const int fd = socket(found->ai_family, found->ai_socktype | SOCK_NONBLOCK, found->ai_protocol);
  if (fd >= 0) {
    // Nonblocking: the listener's queue takes it or not, the server need not answer.
    (void)connect(fd, found->ai_addr, found->ai_addrlen);
    close(fd);
  }
  freeaddrinfo(found);
}

}  // namespace

std::vector<double> RequestSecondsBuckets() {
  return {0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.25, 0.4, 0.6, 0.8, 1.0,   1.5,   2.0,  3.0,
          4.0,   6.0,  8.0,  10.0, 15.0, 20.0, 30.,  45., 60., 90., 120.0, 180.0, 300.0};
}

std::vector<double> StepSecondsBuckets() {
  return {0.00025, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015,
          0.02,    0.025,  0.03,  0.04,  0.05,  0.075, 0.1,    0.15, 0.2,
          0.3,     0.4,    0.5,   0.75,  1.0,   2.5,   5.0,    10.0};
}

MetricsRegistry::MetricsRegistry() : registry_(std::make_shared<prometheus::Registry>()) {}
MetricsRegistry::~MetricsRegistry() = default;

Counter& MetricsRegistry::AddCounter(const std::string& name, const std::string& help,
                                     const MetricLabels& labels) {
  return CheckedAdd(name, [&]() -> Counter& {
    return prometheus::BuildCounter().Name(name).Help(help).Register(*registry_).Add(labels);
  });
}

Gauge& MetricsRegistry::AddGauge(const std::string& name, const std::string& help,
                                 const MetricLabels& labels) {
  return CheckedAdd(name, [&]() -> Gauge& {
    return prometheus::BuildGauge().Name(name).Help(help).Register(*registry_).Add(labels);
  });
}

void MetricsRegistry::RemoveGauge(const std::string& name, Gauge& gauge) {
  prometheus::BuildGauge().Name(name).Register(*registry_).Remove(&gauge);
}

Histogram& MetricsRegistry::AddHistogram(const std::string& name, const std::string& help,
                                         const std::vector<double>& buckets,
                                         const MetricLabels& labels) {
  return CheckedAdd(name, [&]() -> Histogram& {
    return prometheus::BuildHistogram()
        .Name(name)
        .Help(help)
        .Register(*registry_)
        .Add(labels, buckets);
  });
}

MetricsServer::MetricsServer(std::unique_ptr<prometheus::Exposer> exposer, std::string address)
    : exposer_(std::move(exposer)), address_(std::move(address)) {}

MetricsServer::~MetricsServer() {
  absl::Notification stopped;
  std::thread stopper([this, &stopped] {
    exposer_.reset();
    stopped.Notify();
  });
  // The HTTP server looks at its stop flag every two seconds, or when somebody knocks.
  while (!stopped.WaitForNotificationWithTimeout(absl::Milliseconds(5))) Knock(address_);
  stopper.join();
}

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::Start(
    const std::string& listen, const MetricsRegistry& registry) {
  BATON_ASSIGN_OR_RETURN(HostPort address, ParseHostPort(listen));
  try {
    auto exposer = std::make_unique<prometheus::Exposer>(listen, kServerThreads);
    exposer->RegisterCollectable(registry.registry_);
    const std::vector<int> ports = exposer->GetListeningPorts();
    BATON_CHECK(ports.size() == 1);
    address.port = static_cast<uint16_t>(ports[0]);
    return std::unique_ptr<MetricsServer>(
        new MetricsServer(std::move(exposer), FormatHostPort(address)));
  } catch (const std::exception& error) {
    return absl::UnavailableError(
        absl::StrCat("cannot serve metrics on ", listen, ": is the port in use?"));
  }
}

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::StartFromFlags(
    const MetricsRegistry& registry) {
  const std::string listen = absl::GetFlag(FLAGS_metrics);
  if (listen.empty()) return nullptr;
  BATON_ASSIGN_OR_RETURN(std::unique_ptr<MetricsServer> server, Start(listen, registry));
  LogInfo("metrics served", {{"address", server->address()}});
  return server;
}

}  // namespace baton
