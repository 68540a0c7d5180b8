// What a Generate call has not written yet: Started, Deltas, Finished, in the order in which they
// came. Deltas that wait are merged into one, so that a client that reads slowly costs the bytes
// of its tokens and not a message for each.
//
// Thread-compatible: the stream's lock guards it.
#ifndef BATON_ROUTER_RESPONSE_OUTBOX_H_
#define BATON_ROUTER_RESPONSE_OUTBOX_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>

#include "proto/inference.pb.h"

namespace baton {

// Deltas are merged up to this size: a message must stay far below the 4 MiB that clients take by
// default.
inline constexpr size_t kMergedDeltaBytesMax = 256 << 10;

class ResponseOutbox {
 public:
  struct Message {
    v1::GenerateResponse response;
    uint64_t bytes = 0;  // What its Deltas count for against the client's buffer.
  };

  // A merged Delta has the texts one after the other, and the tokens as they were.
  void Push(v1::GenerateResponse response, uint64_t bytes = 0);

  // The oldest message. REQUIRES: !empty().
  Message Pop();

  void Clear() { entries_.clear(); }
  bool empty() const { return entries_.empty(); }
  size_t size() const { return entries_.size(); }

 private:
  // Protobuf's objects are several times as large as what they say, so what waits are bytes.
  struct Entry {
    bool is_delta = false;
    std::string wire;  // The response; if it is a Delta, that Delta without its text.
    std::string text;
    uint64_t bytes = 0;
  };

  std::deque<Entry> entries_;
};

}  // namespace baton

#endif  // BATON_ROUTER_RESPONSE_OUTBOX_H_
