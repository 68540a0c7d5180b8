// How many threads a process can have running at once: the processors that it may use, and no more
// than its share of their time, as Kubernetes sets it with `limits.cpu`. A thread more would only
// be throttled with all others.
#ifndef BATON_COMMON_WORKER_THREAD_COUNT_H_
#define BATON_COMMON_WORKER_THREAD_COUNT_H_

#include <cstdint>
#include <optional>
#include <string>

namespace baton {

// At least 1.
uint32_t UsableThreads();

// Processors' time per time that the cgroups of a process leave it: the least of its own and those
// above it, of version 2 (cpu.max) or 1 (cpu.cfs_quota_us). `own` is what /proc/self/cgroup says,
// `mount` where cgroups are mounted. Nothing: there is no limit.
std::optional<double> ProcessorShare(const std::string& own, const std::string& mount);

}  // namespace baton

#endif  // BATON_COMMON_WORKER_THREAD_COUNT_H_
