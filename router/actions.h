// What the router's core asks its shell to do. Plain data; the shell performs actions in their
// order.
#ifndef BATON_ROUTER_ACTIONS_H_
#define BATON_ROUTER_ACTIONS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <variant>

#include "absl/status/status.h"
#include "common/base/clock.h"
#include "common/base/ids.h"
#include "proto/inference.pb.h"
#include "proto/worker.pb.h"
#include "router/worker_table.h"

namespace baton {

// Sends a command on the worker's session. If the session has broken, the command may be dropped:
// the core hears of the break and moves what the worker had.
struct SendCommand {
  WorkerId worker{};
  v1::Command command;
};

// Tells the client that its request was taken. One that is refused on arrival has none.
struct Accept {
  RequestId request{};
};

// Writes one message to the client. The shell answers with RouterCore::OnWritten(request, bytes)
// when the message has left its buffer; what is not answered yet counts against the client's
// buffer.
struct Emit {
  RequestId request{};
  v1::Delta delta;
  uint64_t bytes = 0;
  // Since the message with tokens before it; none: it is the first, or has no tokens.
  std::optional<Duration> pause;
};

// Ends the client's stream. Exactly one per request, and nothing of that request after it.
struct Finish {
  RequestId request{};
  absl::Status status;  // Of the call. `finished` is written to the client only when it is OK.
  v1::Finished
      finished;  // Usage and timings are filled in whatever the status, for metrics and logs.
  uint32_t retry_after_ms = 0;  // 0: no hint.
};

// A fact for the log.
struct Note {
  std::string text;
};

using Action = std::variant<SendCommand, Accept, Emit, Finish, Note>;

}  // namespace baton

#endif  // BATON_ROUTER_ACTIONS_H_
