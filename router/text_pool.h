// A few threads for the work on clients' texts: tokenizing takes seconds where a text is long, and
// gRPC's threads, which carry every heartbeat, must not wait for it.
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
  int threads = 2;
  size_t jobs_max = 8192;                    // Waiting at once.
  uint64_t bytes_max = uint64_t{256} << 20;  // Of the texts that wait.
};

class TextPool {
 public:
  using Job = std::function<void()>;

  explicit TextPool(const TextPoolOptions& options);
  // Runs what waits, then joins.
  ~TextPool();
  TextPool(const TextPool&) = delete;
  TextPool& operator=(const TextPool&) = delete;

  // Runs `job` on one of the threads, in the order of the calls. kResourceExhausted, and it will
  // not run: too much waits. A job that finds nothing waiting is taken whatever its size.
  absl::Status Run(uint64_t bytes, Job job);

 private:
  struct Waiting {
    uint64_t bytes = 0;
    Job job;
  };

  void Work();
  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return !waiting_.empty() || stopping_;
  }

  const TextPoolOptions options_;
  absl::Mutex mutex_;
  std::deque<Waiting> waiting_ ABSL_GUARDED_BY(mutex_);
  uint64_t waiting_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;  // Last: they use all of the above.
};

}  // namespace baton

#endif  // BATON_ROUTER_TEXT_POOL_H_
