// How KV messages fare between simulated workers: late, never, broken, corrupted, as the plan says,
// and not at all between two that are cut off from each other.
#ifndef BATON_TESTS_SIMULATION_SIMULATED_NETWORK_H_
#define BATON_TESTS_SIMULATION_SIMULATED_NETWORK_H_

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "common/base/clock.h"
#include "common/transport/testing/inproc_transport.h"
#include "tests/simulation/dice.h"
#include "tests/simulation/fault_plan.h"

namespace baton {

class SimulatedDelivery final : public DeliveryPolicy {
 public:
  // What the network counts time in.
  static constexpr Duration kStep = std::chrono::microseconds(100);

  // All references outlive the policy.
  SimulatedDelivery(const FaultPlan& plan, const bool& faults, const Instant& now, uint64_t seed)
      : plan_(plan), faults_(faults), now_(now), dice_(seed) {}

  // Between two addresses, both ways. `hard`: connections break instead of hanging.
  void Cut(const std::string& a, const std::string& b, Instant until, bool hard) {
    cuts_[std::minmax(a, b)] = {until, hard};
  }

  uint64_t HeaderDelay(const std::string& from, const std::string& to) override {
    return IsCut(from, to) ? kNeverDelivered : Late();
  }
  uint64_t PayloadDelay(const std::string& from, const std::string& to) override {
    if (IsCut(from, to) || (faults_ && dice_.Chance(plan_.never))) return kNeverDelivered;
    return Late();
  }
  bool Breaks(const std::string& from, const std::string& to) override {
    if (IsCut(from, to) && cuts_[std::minmax(from, to)].hard) return true;
    return faults_ && dice_.Chance(plan_.broken);
  }
  bool Corrupts(const std::string& /*from*/, const std::string& /*to*/) override {
    return faults_ && dice_.Chance(plan_.corrupt);
  }

 private:
  struct Line {
    Instant until{};
    bool hard = false;
  };

  bool IsCut(const std::string& from, const std::string& to) {
    const auto found = cuts_.find(std::minmax(from, to));
    return found != cuts_.end() && now_ < found->second.until;
  }
  uint64_t Late() { return dice_.Chance(plan_.late) ? dice_.Below(100) : 0; }

  const FaultPlan& plan_;
  const bool& faults_;
  const Instant& now_;
  Dice dice_;
  std::map<std::pair<std::string, std::string>, Line> cuts_;
};

}  // namespace baton

#endif  // BATON_TESTS_SIMULATION_SIMULATED_NETWORK_H_
