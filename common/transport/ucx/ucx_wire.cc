#include "common/transport/ucx/ucx_wire.h"

#include "absl/status/status.h"

namespace baton {
namespace {

constexpr uint32_t kAddressMagic = 0x31415442;   // "BTA1"
constexpr uint32_t kGreetingMagic = 0x31475442;  // "BTG1"
constexpr size_t kAddressOverhead = sizeof(uint32_t) + sizeof(uint64_t);
constexpr size_t kAddressBytesMax = size_t{1} << 16;
constexpr size_t kGreetingBytes = sizeof(uint32_t) + 1 + sizeof(uint64_t);

template <typename T>
void Append(std::string& to, T value) {
  for (size_t i = 0; i < sizeof(T); ++i) to.push_back(static_cast<char>(value >> (8 * i)));
}

template <typename T>
T ReadAt(const void* bytes, size_t offset) {
  const auto* from = static_cast<const unsigned char*>(bytes) + offset;
  T value = 0;
  for (size_t i = 0; i < sizeof(T); ++i) value |= static_cast<T>(T{from[i]} << (8 * i));
  return value;
}

// FNV-1a, 64 bits.
uint64_t Checksum(const std::string& bytes) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char byte : bytes) {
    hash = (hash ^ static_cast<unsigned char>(byte)) * 0x100000001b3;
  }
  return hash;
}

}  // namespace

std::string EncodeUcxAddress(const std::string& worker) {
  std::string address;
  Append(address, kAddressMagic);
  Append(address, Checksum(worker));
  return address + worker;
}

absl::StatusOr<UcxAddress> DecodeUcxAddress(const std::string& address) {
  if (address.size() <= kAddressOverhead || address.size() > kAddressBytesMax ||
      ReadAt<uint32_t>(address.data(), 0) != kAddressMagic) {
    return absl::InvalidArgumentError("not the address of a Baton transfer agent over UCX");
  }
  UcxAddress decoded;
  decoded.identity = ReadAt<uint64_t>(address.data(), sizeof(uint32_t));
  decoded.worker = address.substr(kAddressOverhead);
  if (Checksum(decoded.worker) != decoded.identity) {
    return absl::InvalidArgumentError("damaged address of a Baton transfer agent");
  }
  return decoded;
}

std::string EncodeGreeting(const Greeting& greeting) {
  std::string bytes;
  Append(bytes, kGreetingMagic);
  Append(bytes, static_cast<uint8_t>(greeting.kind));
  Append(bytes, greeting.to_identity);
  return bytes;
}

std::optional<Greeting> DecodeGreeting(ConstSpan bytes) {
  if (bytes.size() != kGreetingBytes || ReadAt<uint32_t>(bytes.data(), 0) != kGreetingMagic) {
    return std::nullopt;
  }
  const auto kind = ReadAt<uint8_t>(bytes.data(), sizeof(uint32_t));
  if (kind < 1 || kind > 3) return std::nullopt;
  return Greeting{static_cast<Greeting::Kind>(kind),
                  ReadAt<uint64_t>(bytes.data(), sizeof(uint32_t) + 1)};
}

}  // namespace baton
