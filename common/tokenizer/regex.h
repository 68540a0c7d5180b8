// The regular expressions of pre-tokenizers and normalizers, run by PCRE2 with its JIT.
//
// Published patterns are written for Oniguruma's Ruby syntax. What means the same in PCRE2 passes,
// what can be rewritten is, and anything else is refused by name instead of matching differently.
//
// Immutable after Compile; any number of threads may call FindAll.
#ifndef BATON_COMMON_TOKENIZER_REGEX_H_
#define BATON_COMMON_TOKENIZER_REGEX_H_

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

struct pcre2_real_code_8;
struct pcre2_real_match_context_8;

namespace baton {

struct TextRange {
  size_t begin;
  size_t end;
  friend bool operator==(const TextRange&, const TextRange&) = default;
};

class Regex {
 public:
  static constexpr size_t kPatternBytesMax = 16 * 1024;

  // kInvalidArgument when the pattern is malformed, kUnimplemented when it uses what Oniguruma and
  // PCRE2 read differently. `where` names the pattern in messages.
  static absl::StatusOr<Regex> Compile(const std::string& pattern, const std::string& where);

  // Every match from left to right, none overlapping another; an empty match directly behind
  // another match does not count. kInvalidArgument when one search exceeds the limits below.
  // REQUIRES: `text` is UTF-8.
  absl::Status FindAll(std::string_view text, std::vector<TextRange>* matches) const;

 private:
  struct Free {
    void operator()(pcre2_real_code_8* code) const;
    void operator()(pcre2_real_match_context_8* context) const;
  };

  Regex() = default;

  std::string where_;
  std::unique_ptr<pcre2_real_code_8, Free> code_;
  std::unique_ptr<pcre2_real_match_context_8, Free> limits_;
};

// The pattern in PCRE2's syntax. Exposed for its test.
absl::StatusOr<std::string> TranslateOniguruma(const std::string& pattern,
                                               const std::string& where);

}  // namespace baton

#endif  // BATON_COMMON_TOKENIZER_REGEX_H_
