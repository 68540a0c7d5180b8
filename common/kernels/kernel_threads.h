// A fixed pool of threads that runs the tasks of one kernel at a time.
//
// Each thread begins with a share of consecutive tasks, the same in every kernel, so that memory
// that it touched first while weights were packed is read by it again; then it helps the others. So
// which thread runs which task is left to chance, and a kernel's bits must not depend on it. Idle
// threads spin for some microseconds, because the next kernel usually follows at once, and then
// sleep. One thread at a time calls ParallelFor; it takes part in the work.
#ifndef BATON_COMMON_KERNELS_KERNEL_THREADS_H_
#define BATON_COMMON_KERNELS_KERNEL_THREADS_H_

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"

namespace baton {

class KernelThreads {
 public:
  static constexpr uint32_t kThreadsMax = 256;

  // `task` counts from 0; `thread` < count() names the thread that runs it, for scratch memory.
  using Body = absl::FunctionRef<void(uint32_t task, uint32_t thread)>;

  // `count` includes the caller of ParallelFor. REQUIRES: 0 < count <= kThreadsMax.
  // `pin` binds all threads but the caller to one processor each, of those that the process may
  // use, as PlaceThreads says.
  explicit KernelThreads(uint32_t count, bool pin = false);
  ~KernelThreads();
  KernelThreads(const KernelThreads&) = delete;
  KernelThreads& operator=(const KernelThreads&) = delete;

  uint32_t count() const { return static_cast<uint32_t>(shares_.size()); }

  // Runs body(task, thread) once for every task < task_count, and returns when all have ended.
  // `body` must not call ParallelFor.
  void ParallelFor(uint32_t task_count, Body body);

 private:
  void WorkerMain(uint32_t thread);
  // The tasks of one thread that nobody has taken yet.
  struct alignas(64) Share {
    std::atomic<uint32_t> next = 0;
    uint32_t end = 0;
  };

  // Takes tasks of the current kernel until none is left.
  void RunTasks(uint32_t thread);

  uint32_t ShareBegin(uint32_t task_count, uint32_t thread) const {
    return static_cast<uint32_t>(uint64_t{task_count} * thread / count());
  }
  // Joins the current kernel; false if it has been closed.
  bool TryJoin();

  // The current kernel. Written by the caller while nobody has joined, read by workers that have.
  const Body* body_ = nullptr;

  std::atomic<bool> stopping_ = false;
  std::atomic<uint32_t> generation_ = 0;  // Raised once per kernel: what idle workers wait for.
  std::vector<Share> shares_;             // By thread. `end` is written as `body_` is.
  // Workers that have joined the current kernel, plus kOpen while more may.
  std::atomic<uint32_t> entry_ = 0;
  std::vector<std::thread> workers_;
};

}  // namespace baton

#endif  // BATON_COMMON_KERNELS_KERNEL_THREADS_H_
