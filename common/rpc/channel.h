// Client channels with Baton's settings: TLS or plaintext, bounded messages, keepalive, no HTTP
// proxy, and reconnecting without gRPC's two-minute backoff.
#ifndef BATON_COMMON_RPC_CHANNEL_H_
#define BATON_COMMON_RPC_CHANNEL_H_

#include <grpcpp/channel.h>

#include <memory>
#include <string>

#include "common/base/clock.h"
#include "common/rpc/tls_files.h"

namespace baton {

struct ChannelOptions {
  int message_bytes_max = 64 << 20;  // Each way.
  Duration keepalive_interval = std::chrono::seconds(10);
  Duration keepalive_timeout = std::chrono::seconds(5);
  Duration reconnect_backoff_max = std::chrono::seconds(1);
  // Whose authorities the server is checked against, and what it is shown; null: plaintext.
  std::shared_ptr<TlsFiles> tls;
  // What the server's certificate must name; empty: the host of the address.
  std::string tls_server_name;
};

// Never blocks and never fails: whether `address` (host:port) answers is known when it is used.
// Certificates that change later are those of channels created later.
// Channels share no connection with each other.
std::shared_ptr<grpc::Channel> CreateChannel(const std::string& address,
                                             const ChannelOptions& options = {});

}  // namespace baton

#endif  // BATON_COMMON_RPC_CHANNEL_H_
