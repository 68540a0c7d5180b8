// SIGTERM and SIGINT as an event that the main thread can wait for. The first asks the program to
// end; a second one, when the end takes too long for somebody, exits at once (status 128 + signal).
//
// A thread of its own takes the signals, so that a second one works whatever the others do.
#ifndef BATON_COMMON_RPC_TERMINATION_H_
#define BATON_COMMON_RPC_TERMINATION_H_

#include <atomic>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/base/clock.h"

namespace baton {

class TerminationSignal {
 public:
  // Blocks both signals in this thread, and so in every thread that it starts later.
  // REQUIRES: made by main() before any other thread; one at a time.
  TerminationSignal();
  // Restores this thread's signal mask.
  ~TerminationSignal();
  TerminationSignal(const TerminationSignal&) = delete;
  TerminationSignal& operator=(const TerminationSignal&) = delete;

  // Waits for a signal or for Request().
  void Wait();
  // The same for at most `timeout`; returns whether the end was asked for.
  bool WaitFor(Duration timeout);
  bool requested() const;

  // While it is on, the first signal exits at once, too: there is nothing to let go of in good
  // order. Off at first.
  void ExitAtOnce(bool on);

  // Asks for the end as a signal does, from inside: some thread met a failure that ends the
  // process.
  void Request();

 private:
  void Run();

  const int signal_fd_;
  const int stop_fd_;  // An eventfd that ends the thread.
  mutable absl::Mutex mutex_;
  bool requested_ ABSL_GUARDED_BY(mutex_) = false;
  std::atomic<bool> exit_at_once_{false};
  std::thread thread_;
};

}  // namespace baton

#endif  // BATON_COMMON_RPC_TERMINATION_H_
