#include "common/kernels/kernel_threads.h"

#include <pthread.h>
#include <sched.h>

#include "common/base/await_change.h"
#include "common/base/check.h"
#include "common/kernels/thread_placement.h"

namespace baton {
namespace {

constexpr uint32_t kOpen = 1u << 31;

// Best effort: where it is not allowed, the scheduler decides.
void Pin(std::thread& thread, uint32_t processor) {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(processor, &one);
  pthread_setaffinity_np(thread.native_handle(), sizeof(one), &one);
}

}  // namespace

KernelThreads::KernelThreads(uint32_t count, bool pin) : shares_(count) {
  BATON_CHECK(count > 0);
  BATON_CHECK(count <= kThreadsMax);
  std::vector<uint32_t> processors;
  if (pin) processors = PlaceThreads(UsableProcessors(), count);
  workers_.reserve(count - 1);
  for (uint32_t thread = 1; thread < count; ++thread) {
    workers_.emplace_back([this, thread] { WorkerMain(thread); });
    if (thread < processors.size()) Pin(workers_.back(), processors[thread]);
  }
}

KernelThreads::~KernelThreads() {
  stopping_.store(true, std::memory_order_relaxed);  // `generation_` publishes it.
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void KernelThreads::ParallelFor(uint32_t task_count, Body body) {
  if (workers_.empty() || task_count <= 1) {
    for (uint32_t task = 0; task < task_count; ++task) body(task, 0);
    return;
  }
  body_ = &body;
  for (uint32_t thread = 0; thread < count(); ++thread) {
    shares_[thread].next.store(ShareBegin(task_count, thread), std::memory_order_relaxed);
    shares_[thread].end = ShareBegin(task_count, thread + 1);
  }
  entry_.store(kOpen, std::memory_order_release);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  RunTasks(0);
  // No task is left to take. Those who joined may still run one; `body` must outlive them.
  uint32_t joined = entry_.fetch_and(~kOpen, std::memory_order_acq_rel) & ~kOpen;
  while (joined != 0) joined = AwaitChange(entry_, joined);
}

void KernelThreads::WorkerMain(uint32_t thread) {
  uint32_t generation = 0;
  while (true) {
    generation = AwaitChange(generation_, generation);
    if (stopping_.load(std::memory_order_relaxed)) return;
    if (!TryJoin()) continue;
    RunTasks(thread);
    // Only the last one to leave a closed kernel can have somebody waiting for it.
    if (entry_.fetch_sub(1, std::memory_order_acq_rel) == 1) entry_.notify_one();
  }
}

bool KernelThreads::TryJoin() {
  uint32_t entry = entry_.load(std::memory_order_relaxed);
  while ((entry & kOpen) != 0) {
    if (entry_.compare_exchange_weak(entry, entry + 1, std::memory_order_acq_rel,
                                     std::memory_order_relaxed)) {
      return true;
    }
  }
  return false;
}

void KernelThreads::RunTasks(uint32_t thread) {
  for (uint32_t i = 0; i < count(); ++i) {
    Share& share = shares_[(thread + i) % count()];
    // Looked at first: threads without work do not fight for the line of one that has some.
    while (share.next.load(std::memory_order_relaxed) < share.end) {
      const uint32_t task = share.next.fetch_add(1, std::memory_order_relaxed);
      if (task >= share.end) break;
      (*body_)(task, thread);
    }
  }
}

}  // namespace baton
