#include "common/tokenizer/pre_tokenizer.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/tokenizer/normalizer.h"
#include "common/tokenizer/unicode.h"
#include "common/tokenizer/utf8.h"

namespace baton {
namespace {

constexpr int kDepthMax = 8;
constexpr size_t kStepCountMax = 64;
constexpr size_t kStringBytesMax = 1024;

// GPT-2's own (openai/gpt-2, encoder.py), which ByteLevel applies by itself.
constexpr const char* kGpt2Pattern =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

bool StartsWith(std::string_view text, std::string_view prefix) {
  return text.substr(0, prefix.size()) == prefix;
}

}  // namespace

absl::StatusOr<PreTokenizer> PreTokenizer::Create(const Json* spec) {
  PreTokenizer pre_tokenizer;
  if (spec != nullptr) BATON_RETURN_IF_ERROR(pre_tokenizer.Add(*spec, "pre_tokenizer", 0));
  return pre_tokenizer;
}

absl::Status PreTokenizer::Add(const Json& spec, const std::string& where, int depth) {
  BATON_ASSIGN_OR_RETURN(const std::string type, StringField(spec, "type", where));
  if (depth > kDepthMax || steps_.size() >= kStepCountMax) {
    return Unsupported(where, "so long or deep a sequence");
  }
  // Behind ByteLevel the text is in GPT-2's alphabet; no published tokenizer splits it again.
  if (is_byte_level_) return Unsupported(where, "anything behind ByteLevel");
  if (type == "Sequence") return AddSequence(spec, where, depth);
  if (type == "ByteLevel") return AddByteLevel(spec, where);
  if (type == "Split") return AddSplit(spec, where);
  if (type == "Metaspace") return AddMetaspace(spec, where);
  if (type == "Digits") {
    BATON_ASSIGN_OR_RETURN(const bool individual,
                           BoolField(spec, "individual_digits", false, where));
    steps_.push_back({.kind = Step::Kind::kSplitNumeric,
                      .behavior = individual ? Behavior::kIsolated : Behavior::kContiguous});
    return absl::OkStatus();
  }
  return Unsupported(where, absl::StrCat("type \"", type, "\""));
}

absl::Status PreTokenizer::AddSequence(const Json& spec, const std::string& where, int depth) {
  const Json* parts = FindField(spec, "pretokenizers");
  if (parts == nullptr || !parts->is_array()) {
    return absl::InvalidArgumentError(absl::StrCat(where, ".pretokenizers: expected a list"));
  }
  for (size_t i = 0; i < parts->size(); ++i) {
    BATON_RETURN_IF_ERROR(
        Add((*parts)[i], absl::StrCat(where, ".pretokenizers[", i, "]"), depth + 1));
  }
  return absl::OkStatus();
}

absl::Status PreTokenizer::AddByteLevel(const Json& spec, const std::string& where) {
  BATON_ASSIGN_OR_RETURN(const bool add_prefix_space,
                         BoolField(spec, "add_prefix_space", true, where));
  BATON_ASSIGN_OR_RETURN(const bool use_regex, BoolField(spec, "use_regex", true, where));
  if (add_prefix_space) steps_.push_back({.kind = Step::Kind::kPrefixSpace});
  if (use_regex) {
    BATON_ASSIGN_OR_RETURN(Regex regex, Regex::Compile(kGpt2Pattern, where));
    steps_.push_back({.kind = Step::Kind::kSplitRegex, .regex = std::move(regex)});
  }
  is_byte_level_ = true;
  return absl::OkStatus();
}

absl::Status PreTokenizer::AddSplit(const Json& spec, const std::string& where) {
  Step step{.kind = Step::Kind::kSplitRegex};
  BATON_ASSIGN_OR_RETURN(const std::string behavior, StringField(spec, "behavior", where));
  if (behavior == "Removed") {
    step.behavior = Behavior::kRemoved;
  } else if (behavior == "Isolated") {
    step.behavior = Behavior::kIsolated;
  } else if (behavior == "MergedWithPrevious") {
    step.behavior = Behavior::kMergedWithPrevious;
  } else if (behavior == "MergedWithNext") {
    step.behavior = Behavior::kMergedWithNext;
  } else if (behavior == "Contiguous") {
    step.behavior = Behavior::kContiguous;
  } else {
    return Unsupported(where, absl::StrCat("behavior \"", behavior, "\""));
  }
  BATON_ASSIGN_OR_RETURN(step.invert, BoolField(spec, "invert", false, where));
  const Json* pattern = FindField(spec, "pattern");
  if (pattern != nullptr && FindField(*pattern, "Regex") != nullptr) {
    BATON_ASSIGN_OR_RETURN(const std::string text,
                           StringField(*pattern, "Regex", where + ".pattern"));
    BATON_ASSIGN_OR_RETURN(step.regex, Regex::Compile(text, where));
  } else {
    BATON_ASSIGN_OR_RETURN(step.string, StringField(pattern != nullptr ? *pattern : Json(),
                                                    "String", where + ".pattern"));
    if (step.string.empty() || step.string.size() > kStringBytesMax) {
      return Unsupported(where, "an empty or so long a pattern");
    }
    step.kind = Step::Kind::kSplitString;
  }
  steps_.push_back(std::move(step));
  return absl::OkStatus();
}

absl::Status PreTokenizer::AddMetaspace(const Json& spec, const std::string& where) {
  // Each would lengthen every piece that the one before it has made.
  if (std::any_of(steps_.begin(), steps_.end(),
                  [](const Step& step) { return step.kind == Step::Kind::kMetaspace; })) {
    return Unsupported(where, "a second Metaspace");
  }
  Step step{.kind = Step::Kind::kMetaspace, .prepend = Prepend::kAlways};
  BATON_ASSIGN_OR_RETURN(step.string, StringField(spec, "replacement", where));
  if (step.string.empty() || NextUtf8(step.string).bytes != step.string.size()) {
    return absl::InvalidArgumentError(absl::StrCat(where, ".replacement: expected one character"));
  }
  // Older files have only add_prefix_space, newer ones only prepend_scheme, some have both.
  BATON_ASSIGN_OR_RETURN(const bool add_prefix_space,
                         BoolField(spec, "add_prefix_space", true, where));
  if (FindField(spec, "prepend_scheme") != nullptr) {
    BATON_ASSIGN_OR_RETURN(const std::string scheme, StringField(spec, "prepend_scheme", where));
    if (scheme == "first") {
      step.prepend = Prepend::kFirst;
    } else if (scheme == "never") {
      step.prepend = Prepend::kNowhere;
    } else if (scheme != "always") {
      return Unsupported(where, absl::StrCat("prepend_scheme \"", scheme, "\""));
    }
    if (!add_prefix_space && step.prepend != Prepend::kNowhere) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, ": add_prefix_space does not match prepend_scheme"));
    }
  } else if (!add_prefix_space) {
    step.prepend = Prepend::kNowhere;
  }
  BATON_ASSIGN_OR_RETURN(const bool split, BoolField(spec, "split", true, where));
  Step split_step{.kind = Step::Kind::kSplitString,
                  .string = step.string,
                  .behavior = Behavior::kMergedWithNext};
  steps_.push_back(std::move(step));
  if (split) steps_.push_back(std::move(split_step));
  return absl::OkStatus();
}

absl::Status PreTokenizer::FindMatches(const Step& step, std::string_view text,
                                       std::vector<TextRange>* matches) {
  if (step.kind == Step::Kind::kSplitRegex) return step.regex->FindAll(text, matches);
  matches->clear();
  if (step.kind == Step::Kind::kSplitString) {
    for (size_t at = text.find(step.string); at != std::string_view::npos;
         at = text.find(step.string, at + step.string.size())) {
      matches->push_back({at, at + step.string.size()});
    }
    return absl::OkStatus();
  }
  for (size_t at = 0; at < text.size();) {
    const Utf8Step character = NextUtf8(text.substr(at));
    if (IsNumeric(character.code_point)) matches->push_back({at, at + character.bytes});
    at += character.bytes;
  }
  return absl::OkStatus();
}

// Which segments become words, and which are joined: as SplitDelimiterBehavior of Hugging Face's
// tokenizers.
std::vector<TextRange> PreTokenizer::Combine(const std::vector<Segment>& segments,
                                             Behavior behavior) {
  std::vector<TextRange> words;
  words.reserve(segments.size());
  bool previous_is_match = false;
  const auto add = [&](const Segment& segment, bool joins) {
    if (joins && !words.empty()) {
      words.back().begin = std::min(words.back().begin, segment.range.begin);
      words.back().end = std::max(words.back().end, segment.range.end);
    } else {
      words.push_back(segment.range);
    }
    previous_is_match = segment.is_match;
  };
  switch (behavior) {
    case Behavior::kRemoved:
      for (const Segment& segment : segments) {
        if (!segment.is_match) words.push_back(segment.range);
      }
      break;
    case Behavior::kIsolated:
      for (const Segment& segment : segments) words.push_back(segment.range);
      break;
    case Behavior::kContiguous:
      for (const Segment& segment : segments) add(segment, segment.is_match == previous_is_match);
      break;
    case Behavior::kMergedWithPrevious:
      for (const Segment& segment : segments) add(segment, segment.is_match && !previous_is_match);
      break;
    case Behavior::kMergedWithNext:
      for (auto segment = segments.rbegin(); segment != segments.rend(); ++segment) {
        add(*segment, segment->is_match && !previous_is_match);
      }
      std::reverse(words.begin(), words.end());
      break;
  }
  return words;
}

absl::Status PreTokenizer::SplitPiece(const Step& step, const Piece& piece,
                                      std::vector<Piece>* out) {
  std::vector<TextRange> matches;
  BATON_RETURN_IF_ERROR(FindMatches(step, piece.text, &matches));
  std::vector<Segment> segments;
  segments.reserve(2 * matches.size() + 1);
  size_t at = 0;
  for (const TextRange& match : matches) {
    if (at != match.begin) segments.push_back({{at, match.begin}, step.invert});
    segments.push_back({match, !step.invert});
    at = match.end;
  }
  if (at != piece.text.size()) segments.push_back({{at, piece.text.size()}, step.invert});
  for (const TextRange& word : Combine(segments, step.behavior)) {
    if (word.begin == word.end) continue;
    out->push_back({piece.text.substr(word.begin, word.end - word.begin),
                    piece.is_at_start && word.begin == 0});
  }
  return absl::OkStatus();
}

absl::Status PreTokenizer::Split(const Piece& piece, std::deque<std::string>* storage,
                                 std::vector<std::string_view>* words) const {
  if (piece.text.empty()) return absl::OkStatus();
  std::vector<Piece> pieces = {piece};
  for (const Step& step : steps_) {
    std::vector<Piece> next;
    for (const Piece& current : pieces) {
      switch (step.kind) {
        case Step::Kind::kSplitRegex:
        case Step::Kind::kSplitString:
        case Step::Kind::kSplitNumeric:
          BATON_RETURN_IF_ERROR(SplitPiece(step, current, &next));
          break;
        case Step::Kind::kPrefixSpace:
          if (current.text.front() == ' ') {
            next.push_back(current);
          } else {
            storage->push_back(absl::StrCat(" ", std::string(current.text)));
            next.push_back({storage->back(), current.is_at_start});
          }
          break;
        case Step::Kind::kMetaspace: {
          std::string text = ReplaceAll(std::string(current.text), " ", step.string);
          const bool prepends = step.prepend == Prepend::kAlways ||
                                (step.prepend == Prepend::kFirst && current.is_at_start);
          if (prepends && !StartsWith(text, step.string)) text.insert(0, step.string);
          storage->push_back(std::move(text));
          next.push_back({storage->back(), current.is_at_start});
          break;
        }
      }
    }
    pieces = std::move(next);
  }
  for (const Piece& word : pieces) words->push_back(word.text);
  return absl::OkStatus();
}

}  // namespace baton
