#include "router/cli/input.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace baton::cli {

absl::StatusOr<std::vector<TokenId>> ParseIds(const std::string& text) {
  std::vector<TokenId> ids;
  for (const absl::string_view piece : absl::StrSplit(text, ',')) {
    TokenId id = 0;
    if (!absl::SimpleAtoi(piece, &id)) {
      return absl::InvalidArgumentError(
          absl::StrCat("\"", piece, "\" is no token id; give numbers separated by commas: 1,2,3"));
    }
    ids.push_back(id);
  }
  return ids;
}

absl::Status CheckUtf8(const std::string& what, const std::string& text) {
  size_t i = 0;
  while (i < text.size()) {
    const auto lead = static_cast<unsigned char>(text[i]);
    // The well-formed sequences of the Unicode Standard, table 3-7.
    size_t length = lead < 0x80                    ? 1
                    : lead >= 0xC2 && lead <= 0xDF ? 2
                    : (lead & 0xF0) == 0xE0        ? 3
                    : lead >= 0xF0 && lead <= 0xF4 ? 4
                                                   : 0;
    if (i + length > text.size()) length = 0;
    for (size_t k = 1; k < length; ++k) {
      const auto byte = static_cast<unsigned char>(text[i + k]);
      const unsigned char low = k > 1 ? 0x80 : lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
      const unsigned char high = k > 1 ? 0xBF : lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
      if (byte < low || byte > high) {
        length = 0;
        break;
      }
    }
    if (length == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(what, " is not UTF-8 at byte ", i, "; convert it first (iconv -t UTF-8)"));
    }
    i += length;
  }
  return absl::OkStatus();
}

}  // namespace baton::cli
