#include "common/tokenizer/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <cctype>
#include <cstdint>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/tokenizer/json_fields.h"
#include "common/tokenizer/utf8.h"

namespace baton {
namespace {

// A search that needs more is a pattern gone wrong, not a long text: the published patterns match
// single-character repeats, which count once.
constexpr uint32_t kMatchLimit = 10'000'000;
constexpr uint32_t kHeapLimitKib = 256 * 1024;

// White_Space and its complement: PCRE2's \s has U+180E, Unicode's has not.
constexpr const char* kSpace =
    "\\x{9}-\\x{D}\\x{20}\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}"
    "\\x{205F}\\x{3000}";
constexpr const char* kNotSpace =
    "\\x{0}-\\x{8}\\x{E}-\\x{1F}\\x{21}-\\x{84}\\x{86}-\\x{9F}\\x{A1}-\\x{167F}\\x{1681}-\\x{1FFF}"
    "\\x{200B}-\\x{2027}\\x{202A}-\\x{202E}\\x{2030}-\\x{205E}\\x{2060}-\\x{2FFF}\\x{3001}-"
    "\\x{10FFFF}";
constexpr const char* kWord = "\\p{L}\\p{M}\\p{Nd}\\p{Pc}";

class Translator {
 public:
  Translator(const std::string& pattern, const std::string& where)
      : pattern_(pattern), where_(where) {}

  absl::StatusOr<std::string> Run() {
    while (at_ < pattern_.size()) {
      if (pattern_[at_] == '\\') {
        BATON_RETURN_IF_ERROR(Escape());
      } else if (in_class_) {
        BATON_RETURN_IF_ERROR(InClass());
      } else {
        BATON_RETURN_IF_ERROR(Outside());
      }
    }
    return std::move(out_);
  }

 private:
  bool LookingAt(const char* text) const {
    return pattern_.compare(at_, std::strlen(text), text) == 0;
  }
  void Copy(size_t bytes) {
    out_.append(pattern_, at_, bytes);
    at_ += bytes;
  }
  absl::Status Refuse(const std::string& what) const {
    return Unsupported(where_, absl::StrCat("the pattern's \"", what, "\""));
  }
  void Set(const char* members, bool negated) {
    if (in_class_) {
      out_ += members;
    } else {
      absl::StrAppend(&out_, negated ? "[^" : "[", members, "]");
    }
    at_ += 2;
  }

  absl::Status Escape() {
    if (at_ + 1 == pattern_.size()) return Refuse("\\ at the end");
    const char kind = pattern_[at_ + 1];
    if (kind == 's') return Set(kSpace, false), absl::OkStatus();
    if (kind == 'S') return Set(in_class_ ? kNotSpace : kSpace, true), absl::OkStatus();
    if (kind == 'w') return Set(kWord, false), absl::OkStatus();
    if (kind == 'W' && !in_class_) return Set(kWord, true), absl::OkStatus();
    if (kind == 'v') return Replace("\\x{B}"), absl::OkStatus();
    if (kind == 'u') {
      if (at_ + 6 > pattern_.size()) return Refuse("\\u");
      absl::StrAppend(&out_, "\\x{", pattern_.substr(at_ + 2, 4), "}");
      at_ += 6;
      return absl::OkStatus();
    }
    const bool is_plain_letter = std::strchr("pPdDnrtfaex", kind) != nullptr;
    if (std::isalnum(static_cast<unsigned char>(kind)) != 0 && !is_plain_letter) {
      return Refuse(std::string("\\") + kind);
    }
    Copy(2);
    return absl::OkStatus();
  }

  void Replace(const char* text) {
    out_ += text;
    at_ += 2;
  }

  absl::Status InClass() {
    if (LookingAt("&&")) return Refuse("&&");
    if (pattern_[at_] == '[') {
      const size_t end = LookingAt("[:") ? pattern_.find(":]", at_) : std::string::npos;
      if (end == std::string::npos) return Refuse("[ inside a class");
      Copy(end + 2 - at_);
      return absl::OkStatus();
    }
    if (pattern_[at_] == ']' && at_ != class_begin_) in_class_ = false;
    Copy(1);
    return absl::OkStatus();
  }

  absl::Status Outside() {
    switch (pattern_[at_]) {
      case '[':
        in_class_ = true;
        Copy(1);
        if (LookingAt("^")) Copy(1);
        class_begin_ = at_;
        return absl::OkStatus();
      case '(':
        return Group();
      case '{':
        return Interval();
      default:
        Copy(1);
        return absl::OkStatus();
    }
  }

  absl::Status Group() {
    if (LookingAt("(*")) return Refuse("(*");
    if (!LookingAt("(?")) return Copy(1), absl::OkStatus();
    for (const char* kind : {"(?:", "(?=", "(?!", "(?>", "(?<=", "(?<!", "(?i:", "(?-i:"}) {
      if (LookingAt(kind)) return Copy(std::strlen(kind)), absl::OkStatus();
    }
    // Further on, the two engines disagree on which alternatives it covers.
    if (LookingAt("(?i)") && at_ == 0) return Copy(4), absl::OkStatus();
    return Refuse(pattern_.substr(at_, 4));
  }

  // {n}, {n,} and {n,m}; a brace that begins none of these is a literal in both engines.
  absl::Status Interval() {
    size_t end = at_ + 1;
    const auto skip_digits = [&] {
      while (end < pattern_.size() && std::isdigit(static_cast<unsigned char>(pattern_[end])))
        ++end;
    };
    if (LookingAt("{,")) return Refuse("{,");
    skip_digits();
    const bool has_minimum = end > at_ + 1;
    if (end < pattern_.size() && pattern_[end] == ',') {
      ++end;
      skip_digits();
    }
    if (!has_minimum || end >= pattern_.size() || pattern_[end] != '}') {
      Copy(1);
      return absl::OkStatus();
    }
    ++end;
    // {n,m}+ repeats in Ruby and is possessive in PCRE2; {n}? is optional here and lazy there.
    if (end < pattern_.size() && (pattern_[end] == '+' || pattern_[end] == '?')) {
      return Refuse(pattern_.substr(at_, end + 1 - at_));
    }
    Copy(end - at_);
    return absl::OkStatus();
  }

  const std::string& pattern_;
  const std::string& where_;
  std::string out_;
  size_t at_ = 0;
  bool in_class_ = false;
  size_t class_begin_ = 0;  // Behind [ or [^, where ] is a literal.
};

std::string ErrorText(int error) {
  PCRE2_UCHAR message[256];
  if (pcre2_get_error_message(error, message, sizeof(message)) < 0) return absl::StrCat(error);
  return reinterpret_cast<const char*>(message);
}

}  // namespace

void Regex::Free::operator()(pcre2_real_code_8* code) const { pcre2_code_free(code); }
void Regex::Free::operator()(pcre2_real_match_context_8* context) const {
  pcre2_match_context_free(context);
}

absl::StatusOr<std::string> TranslateOniguruma(const std::string& pattern,
                                               const std::string& where) {
  return Translator(pattern, where).Run();
}

absl::StatusOr<Regex> Regex::Compile(const std::string& pattern, const std::string& where) {
  if (pattern.empty() || pattern.size() > kPatternBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat("tokenizer.json: ", where, ": a pattern of ",
                                                   pattern.size(), " bytes, expected 1 to ",
                                                   kPatternBytesMax));
  }
  BATON_ASSIGN_OR_RETURN(const std::string translated, TranslateOniguruma(pattern, where));

  Regex regex;
  regex.where_ = where;
  const std::unique_ptr<pcre2_compile_context, decltype(&pcre2_compile_context_free)> context(
      pcre2_compile_context_create(nullptr), &pcre2_compile_context_free);
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE offset = 0;
  regex.code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()),
                                  translated.size(),
                                  PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C,
                                  &error, &offset, context.get()));
  if (regex.code_ == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokenizer.json: ", where, ": pattern \"", pattern, "\": ", ErrorText(error)));
  }
  // Where there is no JIT the interpreter gives the same matches.
  (void)pcre2_jit_compile(regex.code_.get(), PCRE2_JIT_COMPLETE);
  regex.limits_.reset(pcre2_match_context_create(nullptr));
  BATON_CHECK(regex.limits_ != nullptr);
  pcre2_set_match_limit(regex.limits_.get(), kMatchLimit);
  pcre2_set_heap_limit(regex.limits_.get(), kHeapLimitKib);
  return regex;
}

absl::Status Regex::FindAll(std::string_view text, std::vector<TextRange>* matches) const {
  matches->clear();
  const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> data(
      pcre2_match_data_create(1, nullptr), &pcre2_match_data_free);
  BATON_CHECK(data != nullptr);
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  size_t at = 0;
  while (at <= text.size()) {
    // Checking the text anew before each match would make the whole quadratic.
    uint32_t options = PCRE2_NO_UTF_CHECK;
    int found =
        pcre2_match(code_.get(), subject, text.size(), at, options, data.get(), limits_.get());
    if (found == PCRE2_ERROR_JIT_STACKLIMIT) {
      options |= PCRE2_NO_JIT;
      found =
          pcre2_match(code_.get(), subject, text.size(), at, options, data.get(), limits_.get());
    }
    if (found == PCRE2_ERROR_NOMATCH) return absl::OkStatus();
    if (found < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("text: ", where_, " at byte ", at, ": ", ErrorText(found)));
    }
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(data.get());
    const bool is_empty = range[0] >= range[1];
    if (is_empty && !matches->empty() && matches->back().end == range[0]) {
      if (at == text.size()) return absl::OkStatus();
      at += NextUtf8(text.substr(at)).bytes;
      continue;
    }
    matches->push_back({range[0], range[1]});
    at = range[1];
  }
  return absl::OkStatus();
}

}  // namespace baton
