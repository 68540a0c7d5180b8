// A client's stream as the router's thread sees it.
#ifndef BATON_ROUTER_CLIENT_STREAM_H_
#define BATON_ROUTER_CLIENT_STREAM_H_

#include <cstdint>

#include "absl/status/status.h"
#include "proto/inference.pb.h"

namespace baton {

// Called from the router's thread only, as long as the call is not done; never blocks.
class ClientStream {
 public:
  virtual ~ClientStream() = default;

  // The request was taken. Not called for one that ends on arrival.
  virtual void Accept() = 0;
  // Queues a message for the client. False: the client is gone.
  virtual bool Write(v1::Delta delta, uint64_t bytes) = 0;
  // How much of what was queued has left since the last call.
  virtual uint64_t TakeWrittenBytes() = 0;
  // Nothing is written after it. What waits is written before an OK, and dropped before an error.
  // The stream may be gone when it returns.
  virtual void End(const absl::Status& status, const v1::Finished& finished,
                   uint32_t retry_after_ms) = 0;
  // After End: the client's time to read the rest is over.
  virtual void Cut() = 0;
};

}  // namespace baton

#endif  // BATON_ROUTER_CLIENT_STREAM_H_
