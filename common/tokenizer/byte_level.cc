#include "common/tokenizer/byte_level.h"

#include <array>

#include "common/tokenizer/utf8.h"

namespace baton {
namespace {

constexpr char32_t kFirstStandIn = 0x100;

constexpr bool StandsForItself(unsigned byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

struct Alphabet {
  std::array<char32_t, 256> character{};
  std::array<int, 512> byte{};  // By character; -1 for those outside the alphabet.
};

constexpr Alphabet MakeAlphabet() {
  Alphabet alphabet;
  for (int& byte : alphabet.byte) byte = -1;
  char32_t stand_in = kFirstStandIn;
  for (unsigned byte = 0; byte < 256; ++byte) {
    const char32_t character = StandsForItself(byte) ? char32_t{byte} : stand_in++;
    alphabet.character[byte] = character;
    alphabet.byte[character] = static_cast<int>(byte);
  }
  return alphabet;
}

constexpr Alphabet kAlphabet = MakeAlphabet();

}  // namespace

char32_t ByteLevelCharacter(uint8_t byte) { return kAlphabet.character[byte]; }

std::optional<std::string> ByteLevelBytes(std::string_view token) {
  std::string bytes;
  bytes.reserve(token.size());
  while (!token.empty()) {
    const Utf8Step step = NextUtf8(token);
    token.remove_prefix(step.bytes);
    if (step.kind != Utf8Step::Kind::kCharacter || step.code_point >= kAlphabet.byte.size() ||
        kAlphabet.byte[step.code_point] < 0) {
      return std::nullopt;
    }
    bytes.push_back(static_cast<char>(kAlphabet.byte[step.code_point]));
  }
  return bytes;
}

}  // namespace baton
