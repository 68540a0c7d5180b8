// The greeting that opens a connection between two UcxTransports, and the little-endian bytes that
// it and addresses are made of.
#ifndef BATON_COMMON_TRANSPORT_UCX_UCX_WIRE_H_
#define BATON_COMMON_TRANSPORT_UCX_UCX_WIRE_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "common/transport/transport.h"

namespace baton {

template <typename T>
void AppendLittleEndian(std::string& to, T value) {
  for (size_t i = 0; i < sizeof(T); ++i) to.push_back(static_cast<char>(value >> (8 * i)));
}

// After the first byte too few everything reads as 0 and ok() is false.
class LittleEndianReader {
 public:
  explicit LittleEndianReader(ConstSpan bytes) : bytes_(bytes) {}

  template <typename T>
  T Get() {
    if (bytes_.size() < sizeof(T)) ok_ = false;
    if (!ok_) return 0;
    T value = 0;
    for (size_t i = 0; i < sizeof(T); ++i) {
      value = static_cast<T>(value | static_cast<T>(static_cast<T>(bytes_[i]) << (8 * i)));
    }
    bytes_ = bytes_.subspan(sizeof(T));
    return value;
  }
  std::string GetText(size_t size) {
    if (bytes_.size() < size) ok_ = false;
    if (!ok_) return {};
    std::string text(reinterpret_cast<const char*>(bytes_.data()), size);
    bytes_ = bytes_.subspan(size);
    return text;
  }
  bool ok() const { return ok_; }
  // Everything was there, and nothing more.
  bool Finished() const { return ok_ && bytes_.empty(); }

 private:
  ConstSpan bytes_;
  bool ok_ = true;
};

// The first message of whoever connects is a hello, whose payload is its own address. The other
// side answers; nothing else travels before the answer. So a message always comes from a known
// peer, and whoever has taken over the port of a process that died is noticed.
struct Greeting {
  enum class Kind : uint8_t { kHello = 1, kWelcome = 2, kWrongDoor = 3 };

  Kind kind = Kind::kHello;
  uint64_t to_identity = 0;  // Of whom the sender means to reach.
};

std::string EncodeGreeting(const Greeting& greeting);
std::optional<Greeting> DecodeGreeting(ConstSpan bytes);

}  // namespace baton

#endif  // BATON_COMMON_TRANSPORT_UCX_UCX_WIRE_H_
