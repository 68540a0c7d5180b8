// Which processor each kernel thread is bound to: whole cores first, and NUMA node by node.
//
// Threads with consecutive numbers get consecutive shares of a kernel, and touch that part of the
// packed weights first, so its pages lie in the memory of their node (Linux places a page where it
// is first written). A share is then read from near memory for as long as its thread stays where it
// was.
#ifndef BATON_COMMON_KERNELS_THREAD_PLACEMENT_H_
#define BATON_COMMON_KERNELS_THREAD_PLACEMENT_H_

#include <cstdint>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace baton {

// What the system calls a CPU: one hardware thread.
struct Processor {
  uint32_t id = 0;
  uint32_t node = 0;  // NUMA node.
  uint32_t core = 0;  // The lowest id among the hardware threads of its core.

  bool operator==(const Processor&) const = default;
};

// The processor for each of `count` threads, in the order of the threads:
// - no processor twice, unless there are fewer than threads: then the first `usable.size()` threads
//   get one, and the result is that much shorter;
// - a second hardware thread of a core only when no core is left;
// - as few nodes as have the cores, the largest first, and among those the threads evenly;
// - threads of one node are consecutive.
std::vector<uint32_t> PlaceThreads(absl::Span<const Processor> usable, uint32_t count);

// The processors that the calling thread may run on (taskset, cgroup cpuset), by id. Where the
// system does not tell node or core, each is a core of its own on node 0. Empty when nothing is
// known.
std::vector<Processor> UsableProcessors();

// Numbers of a list as the kernel writes it: "0-2,8" is 0, 1, 2, 8. What cannot be read ends it.
std::vector<uint32_t> ParseProcessorList(absl::string_view text);

}  // namespace baton

#endif  // BATON_COMMON_KERNELS_THREAD_PLACEMENT_H_
