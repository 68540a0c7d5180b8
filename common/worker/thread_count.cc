#include "common/worker/thread_count.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "common/kernels/thread_placement.h"

namespace baton {
namespace {

std::string ReadFile(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

// "max" and -1 are no limit.
std::optional<double> Share(const std::string& quota, const std::string& period) {
  double time = 0.0;
  double every = 0.0;
  if (!absl::SimpleAtod(quota, &time) || !absl::SimpleAtod(period, &every)) return std::nullopt;
  if (time <= 0.0 || every <= 0.0) return std::nullopt;
  return time / every;
}

std::optional<double> ShareOfGroup(const std::string& folder) {
  // One line, "QUOTA PERIOD", of version 2.
  const std::vector<std::string> max =
      absl::StrSplit(ReadFile(folder + "/cpu.max"), absl::ByAnyChar(" \n"), absl::SkipEmpty());
  if (max.size() == 2) return Share(max[0], max[1]);
  return Share(ReadFile(folder + "/cpu.cfs_quota_us"), ReadFile(folder + "/cpu.cfs_period_us"));
}

}  // namespace

std::optional<double> ProcessorShare(const std::string& own, const std::string& mount) {
  std::optional<double> least;
  // A line is NUMBER:CONTROLLERS:PATH, without controllers in version 2. Within a container the
  // path may be that of the host, of which only the end is mounted: then its files are not found.
  for (const std::string& line : std::vector<std::string>(absl::StrSplit(own, '\n'))) {
    const std::vector<std::string> fields = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (fields.size() != 3) continue;
    const std::vector<std::string> controllers = absl::StrSplit(fields[1], ',');
    const bool of_time =
        std::find(controllers.begin(), controllers.end(), "cpu") != controllers.end();
    if (!fields[1].empty() && !of_time) continue;
    const std::string root = fields[1].empty() ? mount : mount + "/" + fields[1];
    for (std::string path = fields[2] == "/" ? "" : fields[2];; path.resize(path.rfind('/'))) {
      if (const std::optional<double> share = ShareOfGroup(root + path); share.has_value()) {
        least = std::min(*share, least.value_or(*share));
      }
      if (path.find('/') == std::string::npos) break;
    }
  }
  return least;
}

uint32_t UsableThreads() {
  const size_t processors = UsableProcessors().size();
  const uint32_t count = processors > 0 ? static_cast<uint32_t>(processors)
                                        : std::max(1u, std::thread::hardware_concurrency());
  const std::optional<double> share =
      ProcessorShare(ReadFile("/proc/self/cgroup"), "/sys/fs/cgroup");
  if (!share.has_value() || *share >= count) return count;
  return std::max(1u, static_cast<uint32_t>(*share));
}

}  // namespace baton
