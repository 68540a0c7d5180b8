// Whether the engine thread still comes back from what it does, and can do anything.
//
// Heartbeats come from another thread, so that a long step does not break sessions; without this
// watch they would also hide a step that never ends. The engine thread reports, any thread asks.
#ifndef BATON_COMMON_WORKER_ENGINE_WATCH_H_
#define BATON_COMMON_WORKER_ENGINE_WATCH_H_

#include <atomic>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/base/clock.h"

namespace baton {

class EngineWatch {
 public:
  // `stall_max`: the longest that one round of the engine thread may take; zero: any time.
  EngineWatch(Duration stall_max, Instant now) : stall_max_(stall_max), last_round_(now) {}

  // A round has ended: messages were taken and at most one step was made. An idle engine makes
  // rounds too.
  void RoundEnded(Instant now) { last_round_.store(now, std::memory_order_relaxed); }

  // The engine will compute nothing more, for this reason. For good; the first reason stays.
  void Break(const absl::Status& reason) {
    absl::MutexLock lock(&mutex_);
    if (broken_.ok()) broken_ = reason;
  }

  // Why it will compute nothing more, if that is so.
  absl::Status broken() const {
    absl::MutexLock lock(&mutex_);
    return broken_;
  }

  // kUnavailable: the engine hangs or is broken.
  absl::Status Check(Instant now) const {
    if (absl::Status broken = this->broken(); !broken.ok()) return broken;
    const Duration age = now - last_round_.load(std::memory_order_relaxed);
    if (stall_max_ == Duration::zero() || age <= stall_max_) return absl::OkStatus();
    return absl::UnavailableError(absl::StrCat("the engine hangs: no step has ended for ",
                                               ToMilliseconds(stall_max_),
                                               " ms (--engine_stall_seconds)"));
  }

 private:
  const Duration stall_max_;
  std::atomic<Instant> last_round_;
  mutable absl::Mutex mutex_;
  absl::Status broken_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace baton

#endif  // BATON_COMMON_WORKER_ENGINE_WATCH_H_
