// Calls whose request has ended and whose client has not read all of it yet. It gets some time for
// that; then the call is cut, so that nobody collects calls without end.
//
// Thread-safe.
#ifndef BATON_ROUTER_ENDED_CALLS_H_
#define BATON_ROUTER_ENDED_CALLS_H_

#include <map>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/base/clock.h"
#include "common/base/deadline_index.h"
#include "router/client_stream.h"

namespace baton {

class EndedCalls {
 public:
  // REQUIRES: it is not inside.
  void Add(ClientStream* stream, Instant cut_at) {
    absl::MutexLock lock(&mutex_);
    deadlines_[stream] = cut_at;
    index_.Add(cut_at, stream);
  }

  // The stream may go when this returns: nobody cuts it any more. One that is not inside is
  // ignored.
  void Remove(ClientStream* stream) {
    absl::MutexLock lock(&mutex_);
    Take(stream);
  }

  // Cuts those whose time has come, each once.
  void CutDue(Instant now) {
    absl::MutexLock lock(&mutex_);
    for (ClientStream* stream : index_.Due(now)) {
      Take(stream);
      stream->Cut();
    }
  }

 private:
  void Take(ClientStream* stream) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const auto it = deadlines_.find(stream);
    if (it == deadlines_.end()) return;
    index_.Remove(it->second, stream);
    deadlines_.erase(it);
  }

  absl::Mutex mutex_;
  std::map<ClientStream*, Instant> deadlines_ ABSL_GUARDED_BY(mutex_);
  DeadlineIndex<ClientStream*> index_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace baton

#endif  // BATON_ROUTER_ENDED_CALLS_H_
