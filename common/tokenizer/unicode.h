// What tokenizers ask of Unicode: canonical composition and a few character classes.
//
// Pure functions; any thread. The data is that of the system's utf8proc (Unicode 15 on Debian 12).
// Hugging Face's NFC has Unicode 9: where several combining marks follow one character, and one of
// them came to Unicode later, it may leave them in another order.
#ifndef BATON_COMMON_TOKENIZER_UNICODE_H_
#define BATON_COMMON_TOKENIZER_UNICODE_H_

#include <string>
#include <string_view>

namespace baton {

// Normalization Form C (UAX #15). Linear in the text but for O(m log m) in each run of m combining
// marks. REQUIRES: `text` is UTF-8.
std::string ToNfc(std::string_view text);

// The property White_Space.
bool IsWhiteSpace(char32_t code_point);

// General categories Nd, Nl and No.
bool IsNumeric(char32_t code_point);

// \w as UTS #18 defines it: Alphabetic, marks, decimal digits, connectors, join controls.
bool IsWordCharacter(char32_t code_point);

}  // namespace baton

#endif  // BATON_COMMON_TOKENIZER_UNICODE_H_
