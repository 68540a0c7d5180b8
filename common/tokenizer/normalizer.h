// The "normalizer" of tokenizer.json: what is done to text before it is split.
//
// NFC, Prepend, Replace, and sequences of these: what byte-level and SentencePiece-style BPE
// tokenizers use. Immutable after Create; any thread.
#ifndef BATON_COMMON_TOKENIZER_NORMALIZER_H_
#define BATON_COMMON_TOKENIZER_NORMALIZER_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/tokenizer/json_fields.h"
#include "common/tokenizer/regex.h"

namespace baton {

class Normalizer {
 public:
  // `spec` is the field's value; nullptr, for none, gives a normalizer that changes nothing.
  static absl::StatusOr<Normalizer> Create(const Json* spec);

  // REQUIRES: `text` is UTF-8. Fails only where a regular expression exceeds its limits.
  absl::StatusOr<std::string> Apply(std::string text) const;

 private:
  struct Step {
    enum class Kind { kNfc, kPrepend, kReplaceString, kReplaceRegex };
    Kind kind;
    std::string pattern = {};  // kReplaceString
    std::string content = {};  // kPrepend: what is put in front; kReplace…: what replaces a match.
    std::optional<Regex> regex = {};
  };

  absl::Status Add(const Json& spec, const std::string& where, int depth);
  absl::Status AddReplace(const Json& spec, const std::string& where);
  // Notes that one more step may make a text so many times as long.
  absl::Status Grow(size_t factor, const std::string& where);

  std::vector<Step> steps_;
  size_t growth_ = 1;  // Of all steps together.
};

// Replaces every occurrence of `from`, left to right. REQUIRES: !from.empty().
std::string ReplaceAll(const std::string& text, const std::string& from, const std::string& to);

}  // namespace baton

#endif  // BATON_COMMON_TOKENIZER_NORMALIZER_H_
