#include "tests/support/process_usage.h"

#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"

namespace baton {

ProcessUsage UsageOf(pid_t pid) {
  ProcessUsage usage;
  const std::string folder = absl::StrCat("/proc/", pid);
  std::ifstream status(folder + "/status");
  for (std::string word; status >> word;) {
    if (word == "VmRSS:") status >> usage.memory_kib;
    if (word == "Threads:") status >> usage.threads;
  }
  std::error_code gone;
  for (auto file = std::filesystem::directory_iterator(folder + "/fd", gone);
       !gone && file != std::filesystem::directory_iterator(); file.increment(gone)) {
    ++usage.files;
  }
  return usage;
}

}  // namespace baton
