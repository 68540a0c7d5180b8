// A client's stream as the router's thread sees it.
#ifndef BATON_ROUTER_CLIENT_STREAM_H_
#define BATON_ROUTER_CLIENT_STREAM_H_

#include <cstdint>

#include "absl/status/status.h"
#include "proto/inference.pb.h"

namespace baton {

// Called from the router's thread only; never blocks.
class ClientStream {
 public:
  virtual ~ClientStream() = default;

  // Queues a message for the client. False: the client is gone.
  virtual bool Write(v1::Delta delta, uint64_t bytes) = 0;
  // How much of what was queued has left since the last call.
  virtual uint64_t TakeWrittenBytes() = 0;
  // The last call; the stream may be gone when it returns.
  virtual void End(const absl::Status& status, const v1::Finished& finished,
                   uint32_t retry_after_ms) = 0;
};

}  // namespace baton

#endif  // BATON_ROUTER_CLIENT_STREAM_H_
