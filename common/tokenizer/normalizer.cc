#include "common/tokenizer/normalizer.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/tokenizer/unicode.h"

namespace baton {
namespace {

constexpr int kDepthMax = 8;
constexpr size_t kStepCountMax = 64;
constexpr size_t kContentBytesMax = 64;
// How many times as long as it was a text may become: steps in a row multiply.
constexpr size_t kGrowthMax = 64;
constexpr size_t kNfcGrowth = 3;  // Unicode Standard Annex 15.

}  // namespace

std::string ReplaceAll(const std::string& text, const std::string& from, const std::string& to) {
  std::string out;
  out.reserve(text.size() + text.size() / 4);
  size_t at = 0;
  for (size_t hit = text.find(from); hit != std::string::npos; hit = text.find(from, at)) {
    out.append(text, at, hit - at);
    out += to;
    at = hit + from.size();
  }
  out.append(text, at);
  return out;
}

absl::StatusOr<Normalizer> Normalizer::Create(const Json* spec) {
  Normalizer normalizer;
  if (spec != nullptr) BATON_RETURN_IF_ERROR(normalizer.Add(*spec, "normalizer", 0));
  return normalizer;
}

absl::Status Normalizer::Add(const Json& spec, const std::string& where, int depth) {
  BATON_ASSIGN_OR_RETURN(const std::string type, StringField(spec, "type", where));
  if (depth > kDepthMax || steps_.size() >= kStepCountMax) {
    return Unsupported(where, "so long or deep a sequence");
  }
  if (type == "NFC") {
    steps_.push_back({.kind = Step::Kind::kNfc});
    return Grow(kNfcGrowth, where);
  }
  if (type == "Prepend") {
    BATON_ASSIGN_OR_RETURN(std::string content, StringField(spec, "prepend", where));
    if (content.size() > kContentBytesMax) return Unsupported(where, "so long a \"prepend\"");
    steps_.push_back({.kind = Step::Kind::kPrepend, .content = std::move(content)});
    return absl::OkStatus();
  }
  if (type == "Replace") return AddReplace(spec, where);
  if (type == "Sequence") {
    const Json* parts = FindField(spec, "normalizers");
    if (parts == nullptr || !parts->is_array()) {
      return absl::InvalidArgumentError(absl::StrCat(where, ".normalizers: expected a list"));
    }
    for (size_t i = 0; i < parts->size(); ++i) {
      BATON_RETURN_IF_ERROR(
          Add((*parts)[i], absl::StrCat(where, ".normalizers[", i, "]"), depth + 1));
    }
    return absl::OkStatus();
  }
  return Unsupported(where, absl::StrCat("type \"", type, "\""));
}

absl::Status Normalizer::AddReplace(const Json& spec, const std::string& where) {
  BATON_ASSIGN_OR_RETURN(std::string content, StringField(spec, "content", where));
  if (content.size() > kContentBytesMax) return Unsupported(where, "so long a \"content\"");
  const Json* pattern = FindField(spec, "pattern");
  if (pattern != nullptr && FindField(*pattern, "Regex") != nullptr) {
    BATON_ASSIGN_OR_RETURN(const std::string text,
                           StringField(*pattern, "Regex", where + ".pattern"));
    BATON_ASSIGN_OR_RETURN(Regex regex, Regex::Compile(text, where));
    // It may match nothing, between any two characters.
    BATON_RETURN_IF_ERROR(Grow(1 + content.size(), where));
    steps_.push_back({.kind = Step::Kind::kReplaceRegex,
                      .content = std::move(content),
                      .regex = std::move(regex)});
    return absl::OkStatus();
  }
  BATON_ASSIGN_OR_RETURN(std::string text, StringField(pattern != nullptr ? *pattern : Json(),
                                                       "String", where + ".pattern"));
  if (text.empty()) return Unsupported(where, "an empty pattern");
  BATON_RETURN_IF_ERROR(Grow((content.size() + text.size() - 1) / text.size(), where));
  steps_.push_back({.kind = Step::Kind::kReplaceString,
                    .pattern = std::move(text),
                    .content = std::move(content)});
  return absl::OkStatus();
}

absl::Status Normalizer::Grow(size_t factor, const std::string& where) {
  growth_ *= std::max<size_t>(factor, 1);
  if (growth_ > kGrowthMax) return Unsupported(where, "making a text so much longer");
  return absl::OkStatus();
}

absl::StatusOr<std::string> Normalizer::Apply(std::string text) const {
  for (const Step& step : steps_) {
    switch (step.kind) {
      case Step::Kind::kNfc:
        text = ToNfc(text);
        break;
      case Step::Kind::kPrepend:
        if (!text.empty()) text.insert(0, step.content);
        break;
      case Step::Kind::kReplaceString:
        text = ReplaceAll(text, step.pattern, step.content);
        break;
      case Step::Kind::kReplaceRegex: {
        std::vector<TextRange> matches;
        BATON_RETURN_IF_ERROR(step.regex->FindAll(text, &matches));
        std::string out;
        size_t at = 0;
        for (const TextRange& match : matches) {
          out.append(text, at, match.begin - at);
          out += step.content;
          at = match.end;
        }
        out.append(text, at);
        text = std::move(out);
        break;
      }
    }
  }
  return text;
}

}  // namespace baton
