// GPT-2's alphabet: each of the 256 bytes as one printable character, so that vocabularies are
// text.
//
// The table is that of encoder.py (openai/gpt-2): printable Latin-1 stands for itself, the other
// bytes for U+0100 onwards. Pure functions; any thread.
#ifndef BATON_COMMON_TOKENIZER_BYTE_LEVEL_H_
#define BATON_COMMON_TOKENIZER_BYTE_LEVEL_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace baton {

// The character that stands for `byte`.
char32_t ByteLevelCharacter(uint8_t byte);

// The bytes that `token` spells, or nothing when one of its characters is not of the alphabet.
std::optional<std::string> ByteLevelBytes(std::string_view token);

}  // namespace baton

#endif  // BATON_COMMON_TOKENIZER_BYTE_LEVEL_H_
