// Client channels with Baton's settings: plaintext, bounded messages, keepalive, no HTTP proxy, and
// reconnecting without gRPC's two-minute backoff.
#ifndef BATON_COMMON_RPC_CHANNEL_H_
#define BATON_COMMON_RPC_CHANNEL_H_

#include <grpcpp/channel.h>

#include <memory>
#include <string>

#include "common/base/clock.h"

namespace baton {

struct ChannelOptions {
  int message_bytes_max = 64 << 20;  // Each way.
  Duration keepalive_interval = std::chrono::seconds(10);
  Duration keepalive_timeout = std::chrono::seconds(5);
  Duration reconnect_backoff_max = std::chrono::seconds(1);
};

// Never blocks and never fails: whether `address` (host:port) answers is known when it is used.
// Channels share no connection with each other.
std::shared_ptr<grpc::Channel> CreateChannel(const std::string& address,
                                             const ChannelOptions& options = {});

}  // namespace baton

#endif  // BATON_COMMON_RPC_CHANNEL_H_
