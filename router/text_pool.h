// A few threads for the work on clients' texts: tokenizing takes seconds where a text is long, and
// gRPC's threads, which carry every heartbeat, must not wait for it. Nor must short texts wait for
// long ones: one of the threads takes none of these.
//
// Owned by RouterService. Thread-safe; destroyed by one thread.
#ifndef BATON_ROUTER_TEXT_POOL_H_
#define BATON_ROUTER_TEXT_POOL_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"

namespace baton {

struct TextPoolOptions {
  int threads = 2;                           // With one, long texts have no thread of their own.
  uint64_t short_bytes_max = 64 << 10;       // Of a text that is short.
  size_t jobs_max = 8192;                    // Waiting at once: so many short, and so many long.
  uint64_t bytes_max = uint64_t{128} << 20;  // Of the texts that wait, as above.
};

class TextPool {
 public:
  using Job = std::function<void()>;

  explicit TextPool(const TextPoolOptions& options);
  // Runs what waits, then joins.
  ~TextPool();
  TextPool(const TextPool&) = delete;
  TextPool& operator=(const TextPool&) = delete;

  // Runs `job` on one of the threads. Each takes what came first. kResourceExhausted, and it will
  // not run: too much of its kind waits. A job that finds nothing waiting is taken whatever its
  // size.
  absl::Status Run(uint64_t bytes, Job job);

 private:
  struct Waiting {
    uint64_t arrival = 0;
    uint64_t bytes = 0;
    Job job;
  };
  struct Queue {
    std::deque<Waiting> jobs;
    uint64_t bytes = 0;
  };

  void Work(bool takes_long);
  // The queue whose first job came first, of those that the thread takes; null if all are empty.
  Queue* Next(bool takes_long) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const TextPoolOptions options_;
  absl::Mutex mutex_;
  uint64_t arrivals_ ABSL_GUARDED_BY(mutex_) = 0;
  Queue short_ ABSL_GUARDED_BY(mutex_);
  Queue long_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;  // Last: they use all of the above.
};

}  // namespace baton

#endif  // BATON_ROUTER_TEXT_POOL_H_
