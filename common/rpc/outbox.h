// What a stream has not written yet: first in, first out, bounded in number and bytes.
//
// Thread-compatible: the stream's lock guards it.
#ifndef BATON_COMMON_RPC_OUTBOX_H_
#define BATON_COMMON_RPC_OUTBOX_H_

#include <cstddef>
#include <deque>
#include <utility>

#include "common/base/check.h"
#include "proto/worker.pb.h"

namespace baton {

// Tokens are merged up to this size: one message must stay far below the limits of gRPC.
inline constexpr size_t kMergedTokensBytesMax = 1 << 20;

// Moves the tokens of `from` to the end of `into` and returns true, if both are Tokens. A
// sequence's tokens are appended to its last entry where they continue it, and become a new entry
// otherwise.
bool MergeMessages(v1::Event* into, v1::Event* from);
// Commands are never merged.
inline bool MergeMessages(v1::Command*, v1::Command*) { return false; }

template <typename Message>
class Outbox {
 public:
  // REQUIRES: both limits > 0.
  Outbox(size_t messages_max, size_t bytes_max)
      : messages_max_(messages_max), bytes_max_(bytes_max) {}

  // Adds a message, or merges it into the last one. False when it would go over a limit.
  [[nodiscard]] bool Push(Message&& message) {
    const size_t bytes = message.ByteSizeLong();
    if (bytes > bytes_max_ - bytes_) return false;
    if (!entries_.empty() && entries_.back().bytes + bytes <= kMergedTokensBytesMax &&
        MergeMessages(&entries_.back().message, &message)) {
      entries_.back().bytes += bytes;
      bytes_ += bytes;
      return true;
    }
    if (entries_.size() >= messages_max_) return false;
    entries_.push_back({std::move(message), bytes});
    bytes_ += bytes;
    return true;
  }

  // The oldest message. REQUIRES: !empty().
  Message Pop() {
    BATON_CHECK(!entries_.empty());
    Entry entry = std::move(entries_.front());
    entries_.pop_front();
    bytes_ -= entry.bytes;
    return std::move(entry.message);
  }

  void Clear() {
    entries_.clear();
    bytes_ = 0;
  }

  bool empty() const { return entries_.empty(); }
  size_t size() const { return entries_.size(); }
  size_t bytes() const { return bytes_; }

 private:
  struct Entry {
    Message message;
    size_t bytes;  // Of the messages that were merged into it, so at least its own size.
  };

  const size_t messages_max_;
  const size_t bytes_max_;
  std::deque<Entry> entries_;
  size_t bytes_ = 0;  // Sum over entries_; never above bytes_max_.
};

}  // namespace baton

#endif  // BATON_COMMON_RPC_OUTBOX_H_
