#include "common/transport/ucx/ucx_wire.h"

namespace baton {
namespace {

constexpr uint32_t kGreetingMagic = 0x31475442;  // "BTG1"

}  // namespace

std::string EncodeGreeting(const Greeting& greeting) {
  std::string bytes;
  AppendLittleEndian(bytes, kGreetingMagic);
  AppendLittleEndian(bytes, static_cast<uint8_t>(greeting.kind));
  AppendLittleEndian(bytes, greeting.to_identity);
  return bytes;
}

std::optional<Greeting> DecodeGreeting(ConstSpan bytes) {
  LittleEndianReader reader(bytes);
  const auto magic = reader.Get<uint32_t>();
  const auto kind = reader.Get<uint8_t>();
  const auto to_identity = reader.Get<uint64_t>();
  if (!reader.Finished() || magic != kGreetingMagic || kind < 1 || kind > 3) return std::nullopt;
  return Greeting{static_cast<Greeting::Kind>(kind), to_identity};
}

}  // namespace baton
