// What a process holds: memory, file descriptors, threads. From /proc.
#ifndef BATON_TESTS_SUPPORT_PROCESS_USAGE_H_
#define BATON_TESTS_SUPPORT_PROCESS_USAGE_H_

#include <sys/types.h>

#include <cstdint>

namespace baton {

struct ProcessUsage {
  uint64_t memory_kib = 0;  // Resident.
  uint32_t files = 0;
  uint32_t threads = 0;
};

// All zero if the process is gone.
ProcessUsage UsageOf(pid_t pid);

}  // namespace baton

#endif  // BATON_TESTS_SUPPORT_PROCESS_USAGE_H_
