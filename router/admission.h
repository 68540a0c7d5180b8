// The one place where requests wait: the router's bounded queue. Highest priority first, in order
// of arrival within a priority. Whoever waits here holds no blocks anywhere.
//
// Owned by RouterCore; one thread.
#ifndef BATON_ROUTER_ADMISSION_H_
#define BATON_ROUTER_ADMISSION_H_

#include <compare>
#include <cstdint>
#include <map>
#include <optional>
#include <set>

#include "absl/status/status.h"
#include "common/base/clock.h"
#include "common/base/ids.h"

namespace baton {

struct QueueLimits {
  uint32_t requests = 1024;
  uint64_t tokens = 1u << 20;
};

class AdmissionQueue {
 public:
  explicit AdmissionQueue(QueueLimits limits) : limits_(limits) {}

  // Whether a new request may wait. kResourceExhausted: the queue is full.
  absl::Status CheckRoom(uint64_t tokens) const;

  // Puts a request at its place: `arrival` (unique) orders those of one priority, so one that
  // returns is ahead of all that came later. Returning is not limited: the request had been let in
  // before. REQUIRES: it is not in the queue.
  void Push(RequestId id, int32_t priority, uint64_t arrival, uint64_t tokens);

  // REQUIRES: it is in the queue, with this priority and arrival.
  void Remove(int32_t priority, uint64_t arrival);

  // Who is next; nothing if nobody waits.
  std::optional<RequestId> front() const;
  // Who is next behind this place, whether or not somebody is at it.
  std::optional<RequestId> After(int32_t priority, uint64_t arrival) const;

  // Tokens that go before a new request of this priority.
  uint64_t TokensAhead(int32_t priority) const;

  uint32_t size() const { return static_cast<uint32_t>(waiting_.size()); }
  uint64_t tokens() const { return tokens_; }

 private:
  struct Key {
    int32_t priority = 0;
    uint64_t arrival = 0;
    // Higher priority is less, that is: nearer to the front.
    friend bool operator<(const Key& a, const Key& b) {
      return a.priority != b.priority ? a.priority > b.priority : a.arrival < b.arrival;
    }
  };
  struct Entry {
    RequestId id{};
    uint64_t tokens = 0;
  };

  const QueueLimits limits_;
  std::map<Key, Entry> waiting_;
  std::map<int32_t, uint64_t> tokens_by_priority_;
  uint64_t tokens_ = 0;
};

}  // namespace baton

#endif  // BATON_ROUTER_ADMISSION_H_
