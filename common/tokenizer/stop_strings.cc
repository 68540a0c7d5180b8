#include "common/tokenizer/stop_strings.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/tokenizer/utf8.h"

namespace baton {

absl::Status StopStringMatcher::Validate(const std::vector<std::string>& stops) {
  if (stops.size() > kStopCountMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("stop: ", stops.size(), " strings, more than ", kStopCountMax));
  }
  for (size_t i = 0; i < stops.size(); ++i) {
    if (stops[i].empty()) return absl::InvalidArgumentError(absl::StrCat("stop[", i, "]: empty"));
    if (stops[i].size() > kStopBytesMax) {
      return absl::InvalidArgumentError(
          absl::StrCat("stop[", i, "]: ", stops[i].size(), " bytes, more than ", kStopBytesMax));
    }
    if (ValidUtf8Prefix(stops[i]) < stops[i].size()) {
      return absl::InvalidArgumentError(absl::StrCat("stop[", i, "]: not UTF-8"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<StopStringMatcher> StopStringMatcher::Create(const std::vector<std::string>& stops) {
  BATON_RETURN_IF_ERROR(Validate(stops));
  StopStringMatcher matcher;
  for (const std::string& stop : stops) {
    Pattern pattern{.text = stop, .border = std::vector<size_t>(stop.size() + 1, 0)};
    for (size_t n = 2; n <= stop.size(); ++n) {
      size_t border = pattern.border[n - 1];
      while (border > 0 && stop[border] != stop[n - 1]) border = pattern.border[border];
      pattern.border[n] = stop[border] == stop[n - 1] ? border + 1 : 0;
    }
    matcher.patterns_.push_back(std::move(pattern));
  }
  return matcher;
}

void StopStringMatcher::Advance(Pattern* pattern, char byte) {
  while (pattern->length > 0 && pattern->text[pattern->length] != byte) {
    pattern->length = pattern->border[pattern->length];
  }
  if (pattern->text[pattern->length] == byte) ++pattern->length;
}

std::string StopStringMatcher::Push(const std::string& text) {
  if (stopped_) return "";
  for (const char byte : text) {
    held_.push_back(byte);
    size_t matched_length = 0;
    for (size_t i = 0; i < patterns_.size(); ++i) {
      Pattern& pattern = patterns_[i];
      Advance(&pattern, byte);
      if (pattern.length == pattern.text.size() && pattern.length > matched_length) {
        matched_length = pattern.length;
        matched_ = i;
      }
    }
    if (matched_length == 0) continue;
    stopped_ = true;
    held_.resize(held_.size() - matched_length);
    return std::exchange(held_, {});
  }
  size_t keep = 0;
  for (const Pattern& pattern : patterns_) keep = std::max(keep, pattern.length);
  BATON_CHECK(keep <= held_.size());
  std::string shown = held_.substr(0, held_.size() - keep);
  held_.erase(0, shown.size());
  return shown;
}

std::string StopStringMatcher::Flush() {
  for (Pattern& pattern : patterns_) pattern.length = 0;
  return std::exchange(held_, {});
}

}  // namespace baton
