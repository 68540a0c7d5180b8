#include "common/tokenizer/added_tokens.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/tokenizer/bpe_model.h"
#include "common/tokenizer/unicode.h"
#include "common/tokenizer/utf8.h"

namespace baton {
namespace {

constexpr size_t kAddedTokenCountMax = 1 << 17;
constexpr size_t kAddedTokenBytesMax = 1024;
constexpr size_t kAddedBytesMax = 8 << 20;  // Of all together: bounds the trie.

// Where the last character of text[0, end) begins. REQUIRES: end > 0.
size_t LastCharacterBegin(std::string_view text, size_t end) {
  size_t begin = end - 1;
  while (begin > 0 && (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) --begin;
  return begin;
}

bool TouchesWord(std::string_view text, size_t begin, size_t end) {
  if (begin > 0 &&
      IsWordCharacter(NextUtf8(text.substr(LastCharacterBegin(text, begin))).code_point)) {
    return true;
  }
  return end < text.size() && IsWordCharacter(NextUtf8(text.substr(end)).code_point);
}

size_t SkipSpaceBackwards(std::string_view text, size_t at, size_t limit) {
  while (at > limit) {
    const size_t begin = LastCharacterBegin(text, at);
    if (begin < limit || !IsWhiteSpace(NextUtf8(text.substr(begin)).code_point)) break;
    at = begin;
  }
  return at;
}

size_t SkipSpace(std::string_view text, size_t at) {
  while (at < text.size()) {
    const Utf8Step step = NextUtf8(text.substr(at));
    if (!IsWhiteSpace(step.code_point)) break;
    at += step.bytes;
  }
  return at;
}

absl::StatusOr<AddedToken> ParseAddedToken(const Json& spec, const std::string& where) {
  AddedToken token;
  BATON_ASSIGN_OR_RETURN(token.id, IntField(spec, "id", BpeModel::kIdMax, where));
  BATON_ASSIGN_OR_RETURN(token.content, StringField(spec, "content", where));
  if (token.content.size() > kAddedTokenBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat("tokenizer.json: ", where,
                                                   ".content: ", token.content.size(),
                                                   " bytes, more than ", kAddedTokenBytesMax));
  }
  BATON_ASSIGN_OR_RETURN(token.is_single_word, BoolField(spec, "single_word", false, where));
  BATON_ASSIGN_OR_RETURN(token.strips_left, BoolField(spec, "lstrip", false, where));
  BATON_ASSIGN_OR_RETURN(token.strips_right, BoolField(spec, "rstrip", false, where));
  BATON_ASSIGN_OR_RETURN(token.is_special, BoolField(spec, "special", false, where));
  BATON_ASSIGN_OR_RETURN(token.is_normalized,
                         BoolField(spec, "normalized", !token.is_special, where));
  return token;
}

}  // namespace

absl::StatusOr<std::vector<AddedToken>> ParseAddedTokens(const Json* spec) {
  std::vector<AddedToken> tokens;
  if (spec == nullptr) return tokens;
  if (!spec->is_array() || spec->size() > kAddedTokenCountMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tokenizer.json: added_tokens: expected a list of at most ", kAddedTokenCountMax));
  }
  size_t bytes = 0;
  for (size_t i = 0; i < spec->size(); ++i) {
    BATON_ASSIGN_OR_RETURN(AddedToken token,
                           ParseAddedToken((*spec)[i], absl::StrCat("added_tokens[", i, "]")));
    bytes += token.content.size();
    if (bytes > kAddedBytesMax) {
      return absl::InvalidArgumentError(
          absl::StrCat("tokenizer.json: added_tokens: more than ", kAddedBytesMax, " bytes"));
    }
    if (!token.content.empty()) tokens.push_back(std::move(token));
  }
  return tokens;
}

void AddedTokenMatcher::Add(const std::string& pattern, AddedToken token) {
  BATON_CHECK(!pattern.empty());
  is_first_byte_[static_cast<unsigned char>(pattern[0])] = true;
  uint32_t node = 0;
  for (const char c : pattern) {
    const uint64_t key = (uint64_t{node} << 8) | static_cast<unsigned char>(c);
    const auto [edge, is_new] = edges_.emplace(key, static_cast<uint32_t>(token_at_node_.size()));
    if (is_new) token_at_node_.push_back(kNoToken);
    node = edge->second;
  }
  if (token_at_node_[node] != kNoToken) return;
  token_at_node_[node] = static_cast<int32_t>(tokens_.size());
  tokens_.push_back(std::move(token));
}

int32_t AddedTokenMatcher::LongestAt(std::string_view text, size_t at, size_t* end) const {
  int32_t longest = kNoToken;
  uint32_t node = 0;
  while (at < text.size()) {
    const auto edge = edges_.find((uint64_t{node} << 8) | static_cast<unsigned char>(text[at]));
    if (edge == edges_.end()) break;
    node = edge->second;
    ++at;
    if (token_at_node_[node] != kNoToken) {
      longest = token_at_node_[node];
      *end = at;
    }
  }
  return longest;
}

std::vector<AddedTokenMatcher::Part> AddedTokenMatcher::Split(std::string_view text) const {
  std::vector<Part> parts;
  size_t text_begin = 0;  // Of what no part covers yet.
  size_t at = 0;
  while (at < text.size()) {
    size_t end = at + 1;
    const bool may_begin = is_first_byte_[static_cast<unsigned char>(text[at])];
    const int32_t found = may_begin ? LongestAt(text, at, &end) : kNoToken;
    const size_t begin = at;
    at = end;
    if (found == kNoToken) continue;
    const AddedToken& token = tokens_[static_cast<size_t>(found)];
    if (token.is_single_word && TouchesWord(text, begin, end)) continue;
    size_t part_begin = begin;
    if (token.strips_left) part_begin = SkipSpaceBackwards(text, begin, text_begin);
    if (token.strips_right) end = SkipSpace(text, end);
    if (text_begin < part_begin) {
      parts.push_back({text.substr(text_begin, part_begin - text_begin), nullptr});
    }
    parts.push_back({text.substr(begin, end - begin), &token});
    text_begin = end;
  }
  if (text_begin < text.size()) parts.push_back({text.substr(text_begin), nullptr});
  return parts;
}

}  // namespace baton
