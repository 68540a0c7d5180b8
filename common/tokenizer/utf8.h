// UTF-8 as Unicode defines it (Table 3-7): no overlong forms, no surrogates, nothing above
// U+10FFFF.
//
// Pure functions; any thread.
#ifndef BATON_COMMON_TOKENIZER_UTF8_H_
#define BATON_COMMON_TOKENIZER_UTF8_H_

#include <cstddef>
#include <string>
#include <string_view>

namespace baton {

// U+FFFD, which stands for bytes that are no character.
inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

struct Utf8Step {
  enum class Kind {
    kCharacter,   // `bytes` bytes are the character `code_point`.
    kIncomplete,  // All that is left, `bytes` bytes, is the beginning of some character.
    kInvalid,     // `bytes` bytes, a maximal subpart, are the beginning of no character.
  };
  Kind kind;
  size_t bytes;  // At least 1.
  char32_t code_point;
};

// Looks at the front of `text`. REQUIRES: !text.empty().
Utf8Step NextUtf8(std::string_view text);

// Where the first byte that is not UTF-8 stands; text.size() when all is well.
size_t ValidUtf8Prefix(std::string_view text);

void AppendUtf8(char32_t code_point, std::string* out);

}  // namespace baton

#endif  // BATON_COMMON_TOKENIZER_UTF8_H_
