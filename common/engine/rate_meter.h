// A smoothed rate: what a worker tells the router about its speed. Pure.
#ifndef BATON_COMMON_ENGINE_RATE_METER_H_
#define BATON_COMMON_ENGINE_RATE_METER_H_

#include <chrono>

#include "common/base/clock.h"

namespace baton {

class RateMeter {
 public:
  // `count` things took `duration`.
  void Add(double count, Duration duration) {
    const double seconds = std::chrono::duration<double>(duration).count();
    if (seconds <= 0) return;
    // About the last twenty steps.
    constexpr double kKeep = 0.95;
    count_ = count_ * kKeep + count;
    seconds_ = seconds_ * kKeep + seconds;
  }

  // 0 until something was measured.
  double per_second() const { return seconds_ > 0 ? count_ / seconds_ : 0; }

 private:
  double count_ = 0;
  double seconds_ = 0;
};

}  // namespace baton

#endif  // BATON_COMMON_ENGINE_RATE_METER_H_
