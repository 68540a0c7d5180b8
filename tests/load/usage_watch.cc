#include "tests/load/usage_watch.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/synchronization/notification.h"
#include "absl/time/time.h"

namespace baton {
namespace {

constexpr double kKibPerMib = 1024;
// After so many looks a process has met its peers: what it holds then is what it needs.
constexpr size_t kLooksToWarm = 5;

// Growth over the second half in KiB, by least squares: memory goes up and down with the load.
double MemoryGrowth(const std::vector<ProcessUsage>& usages) {
  const size_t half = usages.size() / 2;
  const auto count = static_cast<double>(usages.size() - half);
  if (count < 2) return 0;
  double sum = 0, weights = 0;
  for (size_t i = half; i < usages.size(); ++i) {
    const double x = static_cast<double>(i - half) - (count - 1) / 2;
    sum += x * static_cast<double>(usages[i].memory_kib);
    weights += x * x;
  }
  return sum / weights * count;
}

const ProcessUsage& Warm(const std::vector<ProcessUsage>& usages) {
  return usages[std::min(usages.size(), kLooksToWarm) - 1];
}

bool HoldsMore(const ProcessUsage& now, const ProcessUsage& warm) {
  return now.files > warm.files || now.threads > warm.threads;
}

}  // namespace

void UsageWatch::Look(const std::string& name, pid_t pid) {
  Life& life = lives_[name];
  if (life.pid != pid) life = {.pid = pid, .usages = {}, .at_rest = {}};
  life.usages.push_back(UsageOf(pid));
}

void UsageWatch::Settle(Duration timeout) {
  bool more = true;
  for (const Instant deadline = Now() + timeout; more && Now() < deadline;) {
    absl::Notification().WaitForNotificationWithTimeout(absl::Seconds(1));
    more = false;
    for (auto& [name, life] : lives_) {
      life.at_rest = UsageOf(life.pid);
      more |= HoldsMore(life.at_rest, Warm(life.usages));
    }
  }
}

nlohmann::ordered_json UsageWatch::Report() const {
  nlohmann::ordered_json report;
  for (const auto& [name, life] : lives_) {
    const ProcessUsage& warm = Warm(life.usages);
    report[name] = {
        {"looks", life.usages.size()},
        {"memory_mib_warm", static_cast<double>(warm.memory_kib) / kKibPerMib},
        {"memory_mib_last", static_cast<double>(life.usages.back().memory_kib) / kKibPerMib},
        {"memory_mib_growth_second_half", MemoryGrowth(life.usages) / kKibPerMib},
        {"files_warm", warm.files},
        {"files_last", life.usages.back().files},
        {"files_at_rest", life.at_rest.files},
        {"threads_warm", warm.threads},
        {"threads_last", life.usages.back().threads},
        {"threads_at_rest", life.at_rest.threads}};
  }
  return report;
}

}  // namespace baton
