// Faults of a cluster, drawn from a seed: its processes are killed, told to go, stopped, cut from
// each other; and all of it is mended some time later.
#ifndef BATON_TESTS_LOAD_CHAOS_FAULTS_H_
#define BATON_TESTS_LOAD_CHAOS_FAULTS_H_

#include <array>
#include <cstdint>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/base/clock.h"
#include "tests/support/cluster.h"
#include "tests/support/worker_network.h"

namespace baton {

enum class Fault {
  kKill,        // kill -9.
  kTerminate,   // SIGTERM: it drains and exits.
  kDrain,       // `baton drain`.
  kPause,       // SIGSTOP, for less than it takes to be noticed.
  kLongPause,   // SIGSTOP, for longer: its sessions break.
  kCut,         // Nothing passes between a prefill and a decode worker; the router reaches both.
  kRouterKill,  // kill -9 of the router: all calls break.
};
inline constexpr size_t kFaultCount = 7;
std::string FaultName(Fault fault);

struct ChaosOptions {
  int prefill = 2;
  int decode = 2;
  Duration interval = std::chrono::seconds(5);  // A fault about so often.
  bool router_faults = false;
  bool spare_first = false;  // Nothing happens to the first worker of each role but cuts.
  uint64_t seed = 1;
};

class ChaosFaults {
 public:
  // At any time one decode worker at least is up and was up before. What is given outlives this.
  // Null `network`: no cuts. `on_router` is told before the router goes and once it is
  // back.
  ChaosFaults(Cluster* cluster, WorkerNetwork* network, const ChaosOptions& options,
              std::function<void(bool up)> on_router);

  // To be called several times a second, by the thread that started the cluster. Fails when
  // something cannot be mended, or when a process has died by itself.
  absl::Status Tick(Instant now);
  // Brings everybody back. kDeadlineExceeded: somebody did not come.
  absl::Status End(Duration timeout);

  // Of those that struck.
  const std::array<uint64_t, kFaultCount>& counts() const { return counts_; }
  uint64_t count() const { return std::accumulate(counts_.begin(), counts_.end(), uint64_t{0}); }

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
  struct CutPair {
    int prefill = 0;
    int decode = 0;
    Instant due{};  // When it is mended.
  };

  Process& ProcessOf(const Target& target);
  const std::string& AddressOf(const Target& target) const;
  absl::Status CheckAlive();
  absl::Status Recover(Target& target, Instant now);
  absl::Status MendCuts(Instant now);
  absl::Status RecoverRouter(Instant now);
  bool MayFail(const Target& target) const;
  bool AllUp() const;
  // Each says whether there was anything to strike.
  absl::StatusOr<bool> Strike(Fault fault, Instant now);
  absl::StatusOr<bool> CutSomePair(Instant now);
  absl::StatusOr<bool> KillRouter(Instant now);
  bool StrikeWorker(Fault fault, Instant now);
  bool Drain(const Target& target);
  Duration Between(Duration least, Duration most);

  Cluster* const cluster_;
  WorkerNetwork* const network_;
  const ChaosOptions options_;
  const std::function<void(bool up)> on_router_;
  std::mt19937_64 random_;
  std::vector<Fault> kinds_;  // To draw from.
  std::vector<Target> targets_;
  std::vector<CutPair> cuts_;
  bool router_up_ = true;
  Instant router_due_{};
  Instant next_fault_{};
  std::array<uint64_t, kFaultCount> counts_{};
};

}  // namespace baton

#endif  // BATON_TESTS_LOAD_CHAOS_FAULTS_H_
