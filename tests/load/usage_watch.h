// What processes hold over a run, and whether it grows.
#ifndef BATON_TESTS_LOAD_USAGE_WATCH_H_
#define BATON_TESTS_LOAD_USAGE_WATCH_H_

#include <sys/types.h>

#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "common/base/clock.h"
#include "tests/support/process_usage.h"

namespace baton {

class UsageWatch {
 public:
  // To be called in equal intervals. Another process of this name begins anew.
  void Look(const std::string& name, pid_t pid);
  // Waits until all hold as many files and threads as when they had begun to work, but not for
  // ever.
  void Settle(Duration timeout);

  nlohmann::ordered_json Report() const;

 private:
  struct Life {
    pid_t pid = 0;
    std::vector<ProcessUsage> usages;
    ProcessUsage at_rest;
  };

  std::map<std::string, Life> lives_;
};

}  // namespace baton

#endif  // BATON_TESTS_LOAD_USAGE_WATCH_H_
