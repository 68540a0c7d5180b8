// The transport between worker processes: UCX active messages.
//
// A payload above a small size moves by rendezvous: the receiver sees the header, and posts its own
// memory or refuses, before a byte moves. A smaller one is copied through UCX's buffers, after the
// same checks. Endpoints have peer error handling, so that a dead peer is noticed.
#ifndef BATON_COMMON_TRANSPORT_UCX_UCX_TRANSPORT_H_
#define BATON_COMMON_TRANSPORT_UCX_UCX_TRANSPORT_H_

#include <chrono>
#include <cstddef>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/base/clock.h"
#include "common/transport/transport.h"

namespace baton {

struct UcxTransportOptions {
  // The numeric IP address to listen on, at any free port. Empty: all IPv4 addresses of the
  // machine.
  std::string listen_host;
  // Payloads of at most so many bytes are sent eagerly.
  size_t eager_bytes_max = 2048;
  // Sends that wait for a connection to come up, per peer; the next one fails at once.
  size_t waiting_sends_max = 1u << 16;
  // How long a connection may take to come up before another way to the peer is tried, if there is
  // one. Whoever waits for a connection waits longer than for two or three ways.
  Duration connect_time = std::chrono::seconds(1);
  // Connections; a further one is rejected.
  size_t peers_max = 4096;
};

// kUnavailable when UCX cannot start or listen; kInvalidArgument for a bad listen_host.
absl::StatusOr<std::unique_ptr<Transport>> OpenUcxTransport(const UcxTransportOptions& options);

}  // namespace baton

#endif  // BATON_COMMON_TRANSPORT_UCX_UCX_TRANSPORT_H_
