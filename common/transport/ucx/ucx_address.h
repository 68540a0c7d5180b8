// Where a UcxTransport listens, as opaque bytes for others; and which way to take to it.
#ifndef BATON_COMMON_TRANSPORT_UCX_UCX_ADDRESS_H_
#define BATON_COMMON_TRANSPORT_UCX_UCX_ADDRESS_H_

#include <sys/socket.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace baton {

struct UcxAddress {
  static constexpr size_t kHostsMax = 32;

  uint64_t identity = 0;  // Of the transport; drawn at random.
  uint64_t machine = 0;   // Of its machine and network namespace: equal means loopback reaches it.
  uint16_t port = 0;
  std::vector<std::string> hosts;  // Numeric IP addresses, at least one.
};

// Magic, version, checksum, fields. The checksum tells garbage from an address.
std::string EncodeUcxAddress(const UcxAddress& address);
// kInvalidArgument for anything that EncodeUcxAddress did not make.
absl::StatusOr<UcxAddress> DecodeUcxAddress(const std::string& bytes);

// A socket address by value.
struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t length = 0;

  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
};

// kInvalidArgument unless `host` is a numeric IPv4 or IPv6 address.
absl::StatusOr<SocketAddress> MakeSocketAddress(const std::string& host, uint16_t port);
uint16_t PortOf(const SocketAddress& address);

// An address of this machine and how many leading bits name its network.
struct LocalNetwork {
  std::string host;
  int prefix_bits = 0;
  bool loopback = false;
};

// The IPv4 addresses of the interfaces that are up.
std::vector<LocalNetwork> LocalNetworks();
// See UcxAddress::machine.
uint64_t LocalMachine();

// The ways to `to`, best first: loopback on the same machine; otherwise without loopback, those in
// a network that this machine is in before others.
std::vector<SocketAddress> WaysTo(const UcxAddress& to, uint64_t local_machine,
                                  const std::vector<LocalNetwork>& local);

}  // namespace baton

#endif  // BATON_COMMON_TRANSPORT_UCX_UCX_ADDRESS_H_
