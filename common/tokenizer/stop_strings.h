// Ends a stream of text at the first stop string, wherever the pieces of the stream are cut.
//
// Text that may be the beginning of a stop string is held back until that is decided. The match
// that is completed first counts, and of those completed by the same byte the longest; the text
// ends before it. So the outcome depends on the text alone, not on how it was cut into tokens.
//
// One stream, one matcher; not thread-safe. Takes O(stop strings) for each byte.
#ifndef BATON_COMMON_TOKENIZER_STOP_STRINGS_H_
#define BATON_COMMON_TOKENIZER_STOP_STRINGS_H_

#include <cstddef>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace baton {

class StopStringMatcher {
 public:
  static constexpr size_t kStopCountMax = 16;
  static constexpr size_t kStopBytesMax = 1024;

  // Says kInvalidArgument, naming the field "stop[i]", for an empty or too long string, for one
  // that is not UTF-8, and for too many of them.
  static absl::Status Validate(const std::vector<std::string>& stops);

  // No stop strings at all is fine: then all text passes.
  static absl::StatusOr<StopStringMatcher> Create(const std::vector<std::string>& stops);

  // The text that may be shown now. Once stopped() nothing more comes.
  std::string Push(const std::string& text);

  // The text held back, now that no more comes.
  std::string Flush();

  bool stopped() const { return stopped_; }
  // Index of the stop string that matched. REQUIRES: stopped().
  size_t matched() const { return matched_; }

 private:
  // Knuth, Morris and Pratt's automaton for one stop string.
  struct Pattern {
    std::string text;
    std::vector<size_t> border;  // [n]: longest proper border of the first n bytes.
    size_t length = 0;           // How much of `text` the stream ends with.
  };

  static void Advance(Pattern* pattern, char byte);

  std::vector<Pattern> patterns_;
  std::string held_;
  bool stopped_ = false;
  size_t matched_ = 0;
};

}  // namespace baton

#endif  // BATON_COMMON_TOKENIZER_STOP_STRINGS_H_
