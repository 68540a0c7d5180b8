#include "common/kernels/kernel_threads.h"

#include "common/base/check.h"

namespace baton {
namespace {

// About 20 microseconds: longer than the gap between two kernels of a layer.
constexpr int kSpinCount = 1000;
constexpr uint32_t kOpen = 1u << 31;

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Returns once `value` differs from `old`, and its new value; spins first, then sleeps.
uint32_t AwaitChange(const std::atomic<uint32_t>& value, uint32_t old) {
  for (int i = 0; i < kSpinCount; ++i) {
    const uint32_t now = value.load(std::memory_order_acquire);
    if (now != old) return now;
    Pause();
  }
  value.wait(old, std::memory_order_acquire);
  return value.load(std::memory_order_acquire);
}

}  // namespace

KernelThreads::KernelThreads(uint32_t count) {
  BATON_CHECK(count > 0);
  BATON_CHECK(count <= kThreadsMax);
  workers_.reserve(count - 1);
  for (uint32_t thread = 1; thread < count; ++thread) {
    workers_.emplace_back([this, thread] { WorkerMain(thread); });
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
  task_count_ = task_count;
  next_task_.store(0, std::memory_order_relaxed);
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
  while (true) {
    const uint32_t task = next_task_.fetch_add(1, std::memory_order_relaxed);
    if (task >= task_count_) return;
    (*body_)(task, thread);
  }
}

}  // namespace baton
