#include "common/tokenizer/token_decoder.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/tokenizer/byte_level.h"
#include "common/tokenizer/normalizer.h"
#include "common/tokenizer/utf8.h"

namespace baton {
namespace {

constexpr int kDepthMax = 8;
constexpr size_t kReplacementCountMax = 16;
constexpr size_t kContentBytesMax = 64;
constexpr size_t kGrowthMax = 64;  // How many times as long a token may become.
constexpr int kStripCountMax = 1024;

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

// The byte that "<0xNN>" stands for.
std::optional<char> FallbackByte(const std::string& token) {
  if (token.size() != 6 || token.compare(0, 3, "<0x") != 0 || token[5] != '>') return std::nullopt;
  const int high = HexDigit(token[3]);
  const int low = HexDigit(token[4]);
  if (high < 0 || low < 0) return std::nullopt;
  return static_cast<char>(high * 16 + low);
}

bool IsOneCharacter(const std::string& text) {
  return !text.empty() && NextUtf8(text).bytes == text.size();
}

}  // namespace

absl::StatusOr<TokenDecoder> TokenDecoder::Create(const Json* spec) {
  if (spec == nullptr) return Unsupported("decoder", "having none");
  TokenDecoder decoder;
  BATON_RETURN_IF_ERROR(decoder.Add(*spec, "decoder", 0));
  return decoder;
}

// The steps work on tokens one by one until ByteFallback, and on the whole text behind Fuse. Only
// orders in which each step can be told apart so are accepted; all published ones are.
absl::Status TokenDecoder::Add(const Json& spec, const std::string& where, int depth) {
  BATON_ASSIGN_OR_RETURN(const std::string type, StringField(spec, "type", where));
  if (depth > kDepthMax) return Unsupported(where, "so deep a sequence");
  if (type == "Sequence") {
    const Json* parts = FindField(spec, "decoders");
    if (parts == nullptr || !parts->is_array()) {
      return absl::InvalidArgumentError(absl::StrCat(where, ".decoders: expected a list"));
    }
    for (size_t i = 0; i < parts->size(); ++i) {
      BATON_RETURN_IF_ERROR(Add((*parts)[i], absl::StrCat(where, ".decoders[", i, "]"), depth + 1));
    }
    return absl::OkStatus();
  }
  return AddStep(type, spec, where);
}

absl::Status TokenDecoder::AddStep(const std::string& type, const Json& spec,
                                   const std::string& where) {
  const bool is_untouched = joining_ == Joining::kText && replacements_.empty() &&
                            metaspace_.empty() && !is_fused_ && strip_count_ == 0;
  const bool works_on_tokens = joining_ == Joining::kText && !is_fused_ && metaspace_.empty();
  if (type == "ByteLevel" && is_untouched) {
    joining_ = Joining::kBytes;
    is_byte_level_ = true;
    return absl::OkStatus();
  }
  if (type == "Metaspace" && is_untouched) return AddMetaspace(spec, where);
  if (type == "Replace" && works_on_tokens) return AddReplace(spec, where);
  if (type == "ByteFallback" && works_on_tokens) {
    joining_ = Joining::kByteRuns;
    return absl::OkStatus();
  }
  if (type == "Fuse") {
    is_fused_ = true;
    return absl::OkStatus();
  }
  if (type == "Strip" && is_fused_ && !is_byte_level_) return AddStrip(spec, where);
  return Unsupported(where, absl::StrCat("type \"", type, "\" at this place"));
}

absl::Status TokenDecoder::AddReplace(const Json& spec, const std::string& where) {
  const Json* pattern = FindField(spec, "pattern");
  if (pattern == nullptr || FindField(*pattern, "String") == nullptr) {
    return Unsupported(where, "a pattern other than a string");
  }
  BATON_ASSIGN_OR_RETURN(std::string from, StringField(*pattern, "String", where + ".pattern"));
  BATON_ASSIGN_OR_RETURN(std::string to, StringField(spec, "content", where));
  if (from.empty() || from.size() > kContentBytesMax || to.size() > kContentBytesMax ||
      replacements_.size() >= kReplacementCountMax) {
    return Unsupported(where, "an empty or so long a replacement");
  }
  growth_ *= std::max<size_t>((to.size() + from.size() - 1) / from.size(), 1);
  if (growth_ > kGrowthMax) return Unsupported(where, "making a token so much longer");
  replacements_.emplace_back(std::move(from), std::move(to));
  return absl::OkStatus();
}

absl::Status TokenDecoder::AddMetaspace(const Json& spec, const std::string& where) {
  BATON_ASSIGN_OR_RETURN(metaspace_, StringField(spec, "replacement", where));
  if (!IsOneCharacter(metaspace_)) {
    return absl::InvalidArgumentError(absl::StrCat(where, ".replacement: expected one character"));
  }
  BATON_ASSIGN_OR_RETURN(drops_first_metaspace_, BoolField(spec, "add_prefix_space", true, where));
  if (FindField(spec, "prepend_scheme") != nullptr) {
    BATON_ASSIGN_OR_RETURN(const std::string scheme, StringField(spec, "prepend_scheme", where));
    drops_first_metaspace_ = scheme != "never";
  }
  return absl::OkStatus();
}

absl::Status TokenDecoder::AddStrip(const Json& spec, const std::string& where) {
  BATON_ASSIGN_OR_RETURN(const int stop, IntField(spec, "stop", kStripCountMax, where));
  if (stop != 0 || strip_count_ != 0) return Unsupported(where, "stripping the end, or twice");
  BATON_ASSIGN_OR_RETURN(const int start, IntField(spec, "start", kStripCountMax, where));
  BATON_ASSIGN_OR_RETURN(strip_character_, StringField(spec, "content", where));
  if (!IsOneCharacter(strip_character_)) {
    return absl::InvalidArgumentError(absl::StrCat(where, ".content: expected one character"));
  }
  strip_count_ = static_cast<size_t>(start);
  return absl::OkStatus();
}

void TokenDecoder::SetToken(TokenId id, const std::string& content, bool is_special) {
  if (static_cast<size_t>(id) >= tokens_.size()) tokens_.resize(static_cast<size_t>(id) + 1);
  Token& token = tokens_[id];
  token = {.exists = true, .is_special = is_special};
  if (is_byte_level_) {
    // A token with a character outside the alphabet, added by hand, means its own text.
    token.piece = ByteLevelBytes(content).value_or(content);
    return;
  }
  if (!metaspace_.empty()) {
    token.piece = ReplaceAll(content, metaspace_, " ");
    if (drops_first_metaspace_) token.first_piece = ReplaceAll(content, metaspace_, "");
    return;
  }
  token.piece = content;
  for (const auto& [from, to] : replacements_) token.piece = ReplaceAll(token.piece, from, to);
  if (joining_ != Joining::kByteRuns) return;
  if (const std::optional<char> byte = FallbackByte(token.piece)) {
    token.piece = std::string(1, *byte);
    token.is_byte = true;
  }
}

}  // namespace baton
