// Waiting for another thread that will be done in a moment: spin first, then sleep. Any thread.
//
// Whoever changes the value calls notify_one() or notify_all() on it.
#ifndef BATON_COMMON_BASE_AWAIT_CHANGE_H_
#define BATON_COMMON_BASE_AWAIT_CHANGE_H_

#include <atomic>
#include <cstdint>

namespace baton {

// Returns once `value` differs from `old`, with its new value.
inline uint32_t AwaitChange(const std::atomic<uint32_t>& value, uint32_t old) {
  // About 20 microseconds: longer than the gap between two kernels of a layer.
  constexpr int kSpinCount = 1000;
  for (int i = 0; i < kSpinCount; ++i) {
    const uint32_t now = value.load(std::memory_order_acquire);
    if (now != old) return now;
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
  value.wait(old, std::memory_order_acquire);
  return value.load(std::memory_order_acquire);
}

}  // namespace baton

#endif  // BATON_COMMON_BASE_AWAIT_CHANGE_H_
