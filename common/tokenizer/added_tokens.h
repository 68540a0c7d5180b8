// Finds added tokens ("<|im_start|>", "</s>") in text, in one pass from left to right.
//
// At each place the longest token wins, then the search goes on behind it. The time is linear in
// the text times, at worst, the length of the longest added token. Immutable after construction.
#ifndef BATON_COMMON_TOKENIZER_ADDED_TOKENS_H_
#define BATON_COMMON_TOKENIZER_ADDED_TOKENS_H_

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "common/base/ids.h"
#include "common/tokenizer/json_fields.h"

namespace baton {

struct AddedToken {
  TokenId id = 0;
  std::string content;
  bool is_single_word = false;  // Only where no word character touches it.
  bool strips_left = false;     // Takes the white space before it along.
  bool strips_right = false;
  bool is_normalized = false;  // Sought in the normalized text, itself normalized.
  bool is_special = false;     // Left out by Decode when asked.
};

// The "added_tokens" of tokenizer.json; `spec` may be nullptr.
absl::StatusOr<std::vector<AddedToken>> ParseAddedTokens(const Json* spec);

class AddedTokenMatcher {
 public:
  // A part of the text that is an added token, or that holds none.
  struct Part {
    std::string_view text;
    const AddedToken* token;  // nullptr for text. Valid as long as the matcher.
  };

  // Of two equal patterns the first counts. REQUIRES: `pattern` is not empty.
  void Add(const std::string& pattern, AddedToken token);

  // The parts of `text` in order, none of them empty text.
  std::vector<Part> Split(std::string_view text) const;

 private:
  static constexpr int32_t kNoToken = -1;

  // The longest pattern that begins at `at`: its token's index, or kNoToken. `end` is behind it.
  int32_t LongestAt(std::string_view text, size_t at, size_t* end) const;

  std::vector<AddedToken> tokens_;
  absl::flat_hash_map<uint64_t, uint32_t> edges_;    // (node, byte) to node; node 0 is the root.
  std::vector<int32_t> token_at_node_ = {kNoToken};  // By node: the pattern that ends there.
  std::array<bool, 256> is_first_byte_{};
};

}  // namespace baton

#endif  // BATON_COMMON_TOKENIZER_ADDED_TOKENS_H_
