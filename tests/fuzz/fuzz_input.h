// Cuts the bytes of a fuzzing engine into what a target wants of them. After the last byte
// everything reads as zero or as nothing, so that every input is a valid one.
#ifndef BATON_TESTS_FUZZ_FUZZ_INPUT_H_
#define BATON_TESTS_FUZZ_FUZZ_INPUT_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace baton {

class FuzzInput {
 public:
  FuzzInput(const uint8_t* data, size_t size) : bytes_(data, size) {}

  bool empty() const { return bytes_.empty(); }

  uint8_t Byte() {
    if (bytes_.empty()) return 0;
    const uint8_t byte = bytes_.front();
    bytes_ = bytes_.subspan(1);
    return byte;
  }
  // In [0, bound). REQUIRES: 0 < bound <= 256.
  uint32_t Below(uint32_t bound) { return Byte() % bound; }

  std::string Bytes(size_t count) {
    const auto taken = bytes_.first(std::min(count, bytes_.size()));
    bytes_ = bytes_.subspan(taken.size());
    return {taken.begin(), taken.end()};
  }
  // Two bytes of length, the lower one first, then so many bytes.
  std::string Record() {
    const size_t low = Byte();
    return Bytes(low | size_t{Byte()} << 8);
  }
  // Up to the next `end`, which is dropped.
  std::string Until(char end) {
    const std::string_view rest(reinterpret_cast<const char*>(bytes_.data()), bytes_.size());
    const std::string piece(rest.substr(0, rest.find(end)));
    bytes_ = bytes_.subspan(std::min(piece.size() + 1, bytes_.size()));
    return piece;
  }
  std::string Rest() { return Bytes(bytes_.size()); }

 private:
  std::span<const uint8_t> bytes_;
};

}  // namespace baton

#endif  // BATON_TESTS_FUZZ_FUZZ_INPUT_H_
