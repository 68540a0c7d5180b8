// All randomness of a simulated run: a stream of numbers that depends on the seed alone, on every
// machine.
#ifndef BATON_TESTS_SIMULATION_DICE_H_
#define BATON_TESTS_SIMULATION_DICE_H_

#include <cstdint>

#include "common/base/clock.h"

namespace baton {

// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
class Dice {
 public:
  explicit Dice(uint64_t seed) : state_(seed) {}

  uint64_t Roll() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }
  // Of [0, bound). REQUIRES: bound > 0.
  uint32_t Below(uint32_t bound) { return static_cast<uint32_t>(Roll() % bound); }
  // Of [first, last].
  uint32_t Between(uint32_t first, uint32_t last) { return first + Below(last - first + 1); }
  bool Chance(double probability) {
    return static_cast<double>(Roll() >> 11) * 0x1.0p-53 < probability;
  }
  // Of [first, last], in whole microseconds.
  Duration Between(Duration first, Duration last) {
    const auto span =
        std::chrono::duration_cast<std::chrono::microseconds>(last - first).count() + 1;
    return first + std::chrono::microseconds(Roll() % static_cast<uint64_t>(span));
  }

 private:
  uint64_t state_;
};

}  // namespace baton

#endif  // BATON_TESTS_SIMULATION_DICE_H_
