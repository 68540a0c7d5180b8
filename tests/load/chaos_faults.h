// Faults of the workers of a cluster, drawn from a seed: killed, told to go, stopped; and brought
// back some time later.
#ifndef BATON_TESTS_LOAD_CHAOS_FAULTS_H_
#define BATON_TESTS_LOAD_CHAOS_FAULTS_H_

#include <array>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/base/clock.h"
#include "tests/support/cluster.h"

namespace baton {

enum class Fault {
  kKill,       // kill -9.
  kTerminate,  // SIGTERM: it drains and exits.
  kDrain,      // `baton drain`.
  kPause,      // SIGSTOP, for less than it takes to be noticed.
  kLongPause,  // SIGSTOP, for longer: its sessions break.
};
inline constexpr size_t kFaultCount = 5;
std::string FaultName(Fault fault);

class ChaosFaults {
 public:
  // One fault about every `interval`. At any time one decode worker at least is up and was up
  // before. The cluster outlives this.
  ChaosFaults(Cluster* cluster, int prefill, int decode, Duration interval, uint64_t seed);

  // To be called several times a second, by the thread that started the cluster. Fails when a
  // worker cannot be brought back.
  absl::Status Tick(Instant now);
  // Brings everybody back. kDeadlineExceeded: somebody did not come.
  absl::Status End(Duration timeout);

  const std::array<uint64_t, kFaultCount>& counts() const { return counts_; }

 private:
  enum class State {
    kUp,
    kDown,     // It is started again at `due`.
    kLeaving,  // It is still there.
    kPaused,   // It goes on at `due`.
    kComing,   // The router has not seen it ready yet.
  };
  struct Target {
    bool decode = false;
    int index = 0;
    State state = State::kUp;
    Instant due{};
  };

  Process& ProcessOf(const Target& target);
  const std::string& AddressOf(const Target& target) const;
  absl::Status Recover(Target& target, Instant now);
  bool MayFail(const Target& target) const;
  void Strike(Target& target, Instant now);
  Duration Between(Duration least, Duration most);

  Cluster* const cluster_;
  const Duration interval_;
  std::mt19937_64 random_;
  std::vector<Target> targets_;
  Instant next_fault_{};
  std::array<uint64_t, kFaultCount> counts_{};
};

}  // namespace baton

#endif  // BATON_TESTS_LOAD_CHAOS_FAULTS_H_
