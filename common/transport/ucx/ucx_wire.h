// What UcxTransport puts around UCX's own bytes: addresses that can be checked before UCX sees
// them, and the greeting that opens a connection.
#ifndef BATON_COMMON_TRANSPORT_UCX_UCX_WIRE_H_
#define BATON_COMMON_TRANSPORT_UCX_UCX_WIRE_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "common/transport/transport.h"

namespace baton {

// The address of a UcxTransport: magic, checksum, UCX worker address. The checksum tells garbage
// from an address, which UCX would not; and since a worker address is unique, it names the
// transport.
struct UcxAddress {
  uint64_t identity = 0;
  std::string worker;
};

std::string EncodeUcxAddress(const std::string& worker);
// kInvalidArgument for anything that EncodeUcxAddress did not make.
absl::StatusOr<UcxAddress> DecodeUcxAddress(const std::string& address);

// The first message of whoever connects is a hello, whose payload is its address. The other side
// makes its own end of the connection, which it owns from then on, and answers. Nothing else
// travels before the answer.
struct Greeting {
  enum class Kind : uint8_t { kHello = 1, kWelcome = 2, kWrongDoor = 3 };

  Kind kind = Kind::kHello;
  uint64_t to_identity = 0;  // Of whom the sender means to reach.
};

std::string EncodeGreeting(const Greeting& greeting);
std::optional<Greeting> DecodeGreeting(ConstSpan bytes);

}  // namespace baton

#endif  // BATON_COMMON_TRANSPORT_UCX_UCX_WIRE_H_
