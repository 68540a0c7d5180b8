// Time as the cores see it: a monotonic instant that the caller passes in. Cores own no clock.
#ifndef BATON_COMMON_BASE_CLOCK_H_
#define BATON_COMMON_BASE_CLOCK_H_

#include <chrono>

namespace baton {

using Duration = std::chrono::steady_clock::duration;  // Nanoseconds.
using Instant = std::chrono::steady_clock::time_point;

inline constexpr Instant kNever = Instant::max();

// For shells only.
inline Instant Now() { return std::chrono::steady_clock::now(); }

inline double ToMilliseconds(Duration duration) {
  return std::chrono::duration<double, std::milli>(duration).count();
}

}  // namespace baton

#endif  // BATON_COMMON_BASE_CLOCK_H_
