#include "common/transport/ucx/ucx_address.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/stat.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/transport/ucx/ucx_wire.h"

namespace baton {
namespace {

constexpr uint32_t kMagic = 0x32415442;  // "BTA2"
constexpr size_t kHostBytesMax = 64;

// FNV-1a, 64 bits.
uint64_t Checksum(const std::string& bytes) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char byte : bytes) {
    hash = (hash ^ static_cast<unsigned char>(byte)) * 0x100000001b3;
  }
  return hash;
}

bool IsLoopback(const SocketAddress& address) {
  if (address.storage.ss_family == AF_INET) {
    const auto& v4 = reinterpret_cast<const sockaddr_in&>(address.storage);
    return (ntohl(v4.sin_addr.s_addr) >> 24) == 127;
  }
  const auto& v6 = reinterpret_cast<const sockaddr_in6&>(address.storage);
  return IN6_IS_ADDR_LOOPBACK(&v6.sin6_addr) != 0;
}

bool SameNetwork(const std::string& host, const LocalNetwork& network) {
  in_addr theirs = {}, ours = {};
  if (inet_pton(AF_INET, host.c_str(), &theirs) != 1) return false;
  if (inet_pton(AF_INET, network.host.c_str(), &ours) != 1) return false;
  const uint32_t mask = network.prefix_bits == 0 ? 0 : ~uint32_t{0} << (32 - network.prefix_bits);
  return ((ntohl(theirs.s_addr) ^ ntohl(ours.s_addr)) & mask) == 0;
}

}  // namespace

std::string EncodeUcxAddress(const UcxAddress& address) {
  std::string fields;
  AppendLittleEndian(fields, address.identity);
  AppendLittleEndian(fields, address.machine);
  AppendLittleEndian(fields, address.port);
  AppendLittleEndian(fields, static_cast<uint8_t>(address.hosts.size()));
  for (const std::string& host : address.hosts) {
    AppendLittleEndian(fields, static_cast<uint8_t>(host.size()));
    fields += host;
  }
  std::string bytes;
  AppendLittleEndian(bytes, kMagic);
  AppendLittleEndian(bytes, Checksum(fields));
  return bytes + fields;
}

absl::StatusOr<UcxAddress> DecodeUcxAddress(const std::string& bytes) {
  const absl::Status not_one =
      absl::InvalidArgumentError("not the address of a Baton transfer agent over UCX");
  LittleEndianReader reader(std::as_bytes(std::span(bytes)));
  const auto magic = reader.Get<uint32_t>();
  const auto checksum = reader.Get<uint64_t>();
  if (!reader.ok() || magic != kMagic) return not_one;
  if (Checksum(bytes.substr(sizeof(magic) + sizeof(checksum))) != checksum) return not_one;
  UcxAddress address;
  address.identity = reader.Get<uint64_t>();
  address.machine = reader.Get<uint64_t>();
  address.port = reader.Get<uint16_t>();
  const auto hosts = reader.Get<uint8_t>();
  if (!reader.ok() || hosts == 0 || hosts > UcxAddress::kHostsMax) return not_one;
  for (int i = 0; i < hosts; ++i) {
    const auto size = reader.Get<uint8_t>();
    if (size > kHostBytesMax) return not_one;
    address.hosts.push_back(reader.GetText(size));
    if (!reader.ok() || !MakeSocketAddress(address.hosts.back(), address.port).ok()) return not_one;
  }
  if (!reader.Finished()) return not_one;
  return address;
}

absl::StatusOr<SocketAddress> MakeSocketAddress(const std::string& host, uint16_t port) {
  SocketAddress address;
  auto& v4 = reinterpret_cast<sockaddr_in&>(address.storage);
  auto& v6 = reinterpret_cast<sockaddr_in6&>(address.storage);
  if (inet_pton(AF_INET, host.c_str(), &v4.sin_addr) == 1) {
    v4.sin_family = AF_INET;
    v4.sin_port = htons(port);
    address.length = sizeof(v4);
  } else if (inet_pton(AF_INET6, host.c_str(), &v6.sin6_addr) == 1) {
    v6.sin6_family = AF_INET6;
    v6.sin6_port = htons(port);
    address.length = sizeof(v6);
  } else {
    return absl::InvalidArgumentError(absl::StrCat("'", host, "' is no numeric IP address"));
  }
  return address;
}

uint16_t PortOf(const SocketAddress& address) {
  return ntohs(address.storage.ss_family == AF_INET
                   ? reinterpret_cast<const sockaddr_in&>(address.storage).sin_port
                   : reinterpret_cast<const sockaddr_in6&>(address.storage).sin6_port);
}

std::vector<LocalNetwork> LocalNetworks() {
  std::vector<LocalNetwork> networks;
  ifaddrs* first = nullptr;
  if (getifaddrs(&first) != 0) return networks;
  for (const ifaddrs* item = first; item != nullptr; item = item->ifa_next) {
    if (item->ifa_addr == nullptr || item->ifa_addr->sa_family != AF_INET ||
        item->ifa_netmask == nullptr || (item->ifa_flags & IFF_UP) == 0) {
      continue;
    }
    char text[INET_ADDRSTRLEN] = {};
    const auto* address = reinterpret_cast<const sockaddr_in*>(item->ifa_addr);
    const auto* mask = reinterpret_cast<const sockaddr_in*>(item->ifa_netmask);
    if (inet_ntop(AF_INET, &address->sin_addr, text, sizeof(text)) == nullptr) continue;
    networks.push_back(
        {text, std::popcount(mask->sin_addr.s_addr), (item->ifa_flags & IFF_LOOPBACK) != 0});
  }
  freeifaddrs(first);
  return networks;
}

uint64_t LocalMachine() {
  std::string text;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> text;
  struct stat network_namespace = {};
  if (text.empty() || stat("/proc/self/ns/net", &network_namespace) != 0) return 0;
  return Checksum(absl::StrCat(text, " ", network_namespace.st_ino));
}

std::vector<SocketAddress> WaysTo(const UcxAddress& to, uint64_t local_machine,
                                  const std::vector<LocalNetwork>& local) {
  const bool here = to.machine != 0 && to.machine == local_machine;
  struct Way {
    int rank;
    SocketAddress address;
  };
  std::vector<Way> ways;
  for (const std::string& host : to.hosts) {
    const absl::StatusOr<SocketAddress> address = MakeSocketAddress(host, to.port);
    if (!address.ok()) continue;
    const bool loopback = IsLoopback(*address);
    // A lone loopback address was asked for: somebody forwards it.
    if (loopback && !here && to.hosts.size() > 1) continue;
    const bool near = std::any_of(local.begin(), local.end(), [&](const LocalNetwork& network) {
      return !network.loopback && SameNetwork(host, network);
    });
    ways.push_back({loopback ? 0 : near ? 1 : 2, *address});
  }
  std::stable_sort(ways.begin(), ways.end(),
                   [](const Way& a, const Way& b) { return a.rank < b.rank; });
  std::vector<SocketAddress> addresses;
  for (const Way& way : ways) addresses.push_back(way.address);
  return addresses;
}

}  // namespace baton
