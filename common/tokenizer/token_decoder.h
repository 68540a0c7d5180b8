// The "decoder" of tokenizer.json, boiled down to: what each token adds to the text, and how the
// additions are joined.
//
// Known: ByteLevel; Metaspace; and the SentencePiece chain Replace…, ByteFallback, Fuse, Strip.
// Immutable once the tokenizer is loaded; any thread. IncrementalDecoder does the joining.
#ifndef BATON_COMMON_TOKENIZER_TOKEN_DECODER_H_
#define BATON_COMMON_TOKENIZER_TOKEN_DECODER_H_

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/ids.h"
#include "common/tokenizer/json_fields.h"

namespace baton {

class TokenDecoder {
 public:
  enum class Joining {
    kText,      // Tokens add text.
    kBytes,     // Tokens add bytes, which together are UTF-8 (byte-level).
    kByteRuns,  // Tokens add text, but for <0xNN>, which adds a byte (byte fallback).
  };

  // `spec` is the field's value, nullptr for none.
  static absl::StatusOr<TokenDecoder> Create(const Json* spec);

  // While loading: what `id` is called. The later call for an id wins. REQUIRES: id >= 0.
  void SetToken(TokenId id, const std::string& content, bool is_special);

  // One more than the greatest id.
  size_t size() const { return tokens_.size(); }
  bool Has(TokenId id) const {
    return id >= 0 && static_cast<size_t>(id) < tokens_.size() && tokens_[id].exists;
  }
  // The rest REQUIRES: Has(id).
  bool IsSpecial(TokenId id) const { return tokens_[id].is_special; }
  // Whether Piece(id) is one byte of a run, which may be no text by itself. Only with kByteRuns.
  bool IsByte(TokenId id) const { return tokens_[id].is_byte; }
  // What the token adds: bytes with kBytes and IsByte, otherwise text.
  const std::string& Piece(TokenId id) const { return tokens_[id].piece; }
  // What it adds at the very beginning of a text.
  const std::string& FirstPiece(TokenId id) const {
    return drops_first_metaspace_ ? tokens_[id].first_piece : tokens_[id].piece;
  }

  Joining joining() const { return joining_; }
  // Up to this many of this character are taken from the beginning of the text.
  size_t strip_count() const { return strip_count_; }
  const std::string& strip_character() const { return strip_character_; }

 private:
  struct Token {
    std::string piece = {};
    std::string first_piece = {};  // Only with drops_first_metaspace_.
    bool exists = false;
    bool is_special = false;
    bool is_byte = false;
  };

  absl::Status Add(const Json& spec, const std::string& where, int depth);
  absl::Status AddStep(const std::string& type, const Json& spec, const std::string& where);
  absl::Status AddReplace(const Json& spec, const std::string& where);
  absl::Status AddMetaspace(const Json& spec, const std::string& where);
  absl::Status AddStrip(const Json& spec, const std::string& where);

  Joining joining_ = Joining::kText;
  bool is_byte_level_ = false;
  bool is_fused_ = false;
  std::vector<std::pair<std::string, std::string>> replacements_;  // Within each token, in order.
  size_t growth_ = 1;      // How many times as long they may make a token.
  std::string metaspace_;  // The character that stands for a space; empty for none.
  bool drops_first_metaspace_ = false;
  std::string strip_character_;
  size_t strip_count_ = 0;
  std::vector<Token> tokens_;
};

}  // namespace baton

#endif  // BATON_COMMON_TOKENIZER_TOKEN_DECODER_H_
