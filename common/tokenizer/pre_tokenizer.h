// The "pre_tokenizer" of tokenizer.json: cuts normalized text into the words that BPE works on.
//
// ByteLevel, Split, Digits, Metaspace, and sequences of these. Immutable after Create; any thread.
#ifndef BATON_COMMON_TOKENIZER_PRE_TOKENIZER_H_
#define BATON_COMMON_TOKENIZER_PRE_TOKENIZER_H_

#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/tokenizer/json_fields.h"
#include "common/tokenizer/regex.h"

namespace baton {

class PreTokenizer {
 public:
  // A stretch of text on its way to become words.
  struct Piece {
    std::string_view text;
    bool is_at_start;  // It begins where the client's text begins.
  };

  // `spec` is the field's value; nullptr, for none, leaves each piece whole.
  static absl::StatusOr<PreTokenizer> Create(const Json* spec);

  // Whether the vocabulary spells bytes in GPT-2's alphabet. The words are raw bytes all the same.
  bool is_byte_level() const { return is_byte_level_; }

  // Appends the words of `piece`, none of them empty. They point into `piece` or into `storage`.
  absl::Status Split(const Piece& piece, std::deque<std::string>* storage,
                     std::vector<std::string_view>* words) const;

 private:
  enum class Behavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };
  enum class Prepend { kAlways, kFirst, kNowhere };
  struct Step {
    enum class Kind { kSplitRegex, kSplitString, kSplitNumeric, kMetaspace, kPrefixSpace };
    Kind kind;
    std::optional<Regex> regex = {};          // kSplitRegex
    std::string string = {};                  // kSplitString: pattern; kMetaspace: replacement.
    Behavior behavior = Behavior::kIsolated;  // kSplit…
    bool invert = false;                      // kSplit…
    Prepend prepend = Prepend::kNowhere;      // kMetaspace
  };
  // A match, or the text between two.
  struct Segment {
    TextRange range;
    bool is_match;
  };

  absl::Status Add(const Json& spec, const std::string& where, int depth);
  absl::Status AddSequence(const Json& spec, const std::string& where, int depth);
  absl::Status AddByteLevel(const Json& spec, const std::string& where);
  absl::Status AddSplit(const Json& spec, const std::string& where);
  absl::Status AddMetaspace(const Json& spec, const std::string& where);

  static absl::Status FindMatches(const Step& step, std::string_view text,
                                  std::vector<TextRange>* matches);
  static std::vector<TextRange> Combine(const std::vector<Segment>& segments, Behavior behavior);
  static absl::Status SplitPiece(const Step& step, const Piece& piece, std::vector<Piece>* out);

  std::vector<Step> steps_;
  bool is_byte_level_ = false;
};

}  // namespace baton

#endif  // BATON_COMMON_TOKENIZER_PRE_TOKENIZER_H_
