// A queue between threads that refuses instead of growing.
//
// Any thread may push; one thread pops everything at once. Thread-safe.
#ifndef BATON_COMMON_BASE_BOUNDED_QUEUE_H_
#define BATON_COMMON_BASE_BOUNDED_QUEUE_H_

#include <cstddef>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace baton {

template <typename T>
class BoundedQueue {
 public:
  // REQUIRES: capacity > 0.
  explicit BoundedQueue(size_t capacity) : capacity_(capacity) {}

  // Returns false, and leaves `item` as it was, when the queue is full or closed.
  [[nodiscard]] bool TryPush(T&& item) {
    absl::MutexLock lock(&mutex_);
    if (closed_ || items_.size() >= capacity_) return false;
    items_.push_back(std::move(item));
    return true;
  }

  // As above, and also when the queue holds `room` items: so that those of lesser weight leave room
  // for the others.
  [[nodiscard]] bool TryPush(T&& item, size_t room) {
    absl::MutexLock lock(&mutex_);
    if (closed_ || items_.size() >= capacity_ || items_.size() >= room) return false;
    items_.push_back(std::move(item));
    return true;
  }

  // Takes everything that is there, oldest first; empty when there is nothing. Never waits.
  std::vector<T> TakeAll() {
    absl::MutexLock lock(&mutex_);
    return std::exchange(items_, {});
  }

  // As TakeAll, but waits up to `timeout` for the first item, or for Close.
  std::vector<T> WaitAll(absl::Duration timeout) {
    absl::MutexLock lock(&mutex_);
    mutex_.AwaitWithTimeout(absl::Condition(this, &BoundedQueue::Ready), timeout);
    return std::exchange(items_, {});
  }

  // Refuses every later push. What is inside can still be taken.
  void Close() {
    absl::MutexLock lock(&mutex_);
    closed_ = true;
  }

  bool closed() const {
    absl::MutexLock lock(&mutex_);
    return closed_;
  }
  size_t size() const {
    absl::MutexLock lock(&mutex_);
    return items_.size();
  }

 private:
  bool Ready() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return !items_.empty() || closed_; }

  const size_t capacity_;
  mutable absl::Mutex mutex_;
  std::vector<T> items_ ABSL_GUARDED_BY(mutex_);
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace baton

#endif  // BATON_COMMON_BASE_BOUNDED_QUEUE_H_
