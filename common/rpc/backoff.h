// Waits between attempts: they double from one bound to the other, each drawn at random from its
// upper half, so that many clients of one server do not come back in step.
//
// Thread-compatible.
#ifndef BATON_COMMON_RPC_BACKOFF_H_
#define BATON_COMMON_RPC_BACKOFF_H_

#include <algorithm>
#include <cstdint>
#include <random>

#include "common/base/clock.h"

namespace baton {

class Backoff {
 public:
  // REQUIRES: 0 < min <= max.
  Backoff(Duration min, Duration max, uint64_t seed)
      : min_(min), max_(max), next_(min), random_(seed) {}

  Duration Next() {
    const Duration whole = next_;
    next_ = std::min(next_ * 2, max_);
    std::uniform_int_distribution<Duration::rep> draw(whole.count() / 2, whole.count());
    return Duration(draw(random_));
  }

  void Reset() { next_ = min_; }

 private:
  const Duration min_;
  const Duration max_;
  Duration next_;
  std::mt19937_64 random_;
};

}  // namespace baton

#endif  // BATON_COMMON_RPC_BACKOFF_H_
