// Who is due, and when, without a look at those that are not.
//
// A balanced tree, as ordered as a timer wheel is not: a deadline is met to the nanosecond, and
// what is due comes in the order of its deadlines. Pure, for one thread.
#ifndef BATON_COMMON_BASE_DEADLINE_INDEX_H_
#define BATON_COMMON_BASE_DEADLINE_INDEX_H_

#include <cstddef>
#include <set>
#include <utility>
#include <vector>

#include "common/base/clock.h"

namespace baton {

// `Key` is ordered. The deadline of a key is the caller's to remember.
template <typename Key>
class DeadlineIndex {
 public:
  // O(log n). What is never due takes no room.
  void Add(Instant deadline, const Key& key) {
    if (deadline != kNever) entries_.emplace(deadline, key);
  }
  // O(log n). One that is not there is ignored.
  void Remove(Instant deadline, const Key& key) { entries_.erase({deadline, key}); }

  // Those whose deadline has come, the earliest first; they stay until they are removed.
  std::vector<Key> Due(Instant now) const {
    std::vector<Key> due;
    for (const auto& [deadline, key] : entries_) {
      if (deadline > now) break;
      due.push_back(key);
    }
    return due;
  }
  size_t size() const { return entries_.size(); }

 private:
  std::set<std::pair<Instant, Key>> entries_;
};

}  // namespace baton

#endif  // BATON_COMMON_BASE_DEADLINE_INDEX_H_
