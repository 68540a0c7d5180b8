// Text to token ids and back, as a Hugging Face model folder defines it.
//
// Reads tokenizer.json (BPE: byte-level as in GPT-2, Llama 3, Qwen; SentencePiece-style as in
// Llama 2, Mistral, Gemma) and, where there is one, tokenizer_config.json. Gives the same ids and
// the same text as Hugging Face's tokenizers. A file that asks for anything else is refused with
// one error that names it.
//
// Immutable after Load; any number of threads may use one tokenizer.
#ifndef BATON_COMMON_TOKENIZER_TOKENIZER_H_
#define BATON_COMMON_TOKENIZER_TOKENIZER_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/ids.h"
#include "common/tokenizer/added_tokens.h"
#include "common/tokenizer/bpe_model.h"
#include "common/tokenizer/json_fields.h"
#include "common/tokenizer/normalizer.h"
#include "common/tokenizer/pre_tokenizer.h"
#include "common/tokenizer/token_decoder.h"

namespace baton {

class Tokenizer {
 public:
  static constexpr size_t kFileBytesMax = size_t{128} << 20;
  static constexpr size_t kTextBytesMax = size_t{64} << 20;

  // kNotFound without tokenizer.json, kInvalidArgument when a file is malformed, kUnimplemented
  // when it uses what Baton does not know.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& model_dir);

  // From the two files' contents; `config` may be null.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Create(const Json& tokenizer,
                                                           const Json& config);

  // With `add_special_tokens` the ids that the post-processor puts around a text (BOS) are added:
  // tokenizer.json's, unless tokenizer_config.json names a class that makes one of its own.
  // Special tokens that stand in the text are recognised either way; so a rendered chat, which
  // spells its own BOS, is encoded without adding any. kInvalidArgument when `text` is not UTF-8,
  // longer than kTextBytesMax, or has a character that the vocabulary cannot express. kOutOfRange
  // when it has more than `ids_max` ids: the rest of it was not looked at.
  absl::StatusOr<std::vector<TokenId>> Encode(const std::string& text, bool add_special_tokens,
                                              size_t ids_max = SIZE_MAX) const;

  // Ids without a token add nothing. See incremental_decoder.h for bytes that are no character.
  std::string Decode(std::span<const TokenId> ids, bool skip_special_tokens) const;

  // One more than the greatest id; between the ids there may be holes. A model may have more rows.
  int32_t vocab_size() const { return static_cast<int32_t>(decoder_.size()); }
  bool HasToken(TokenId id) const { return decoder_.Has(id); }
  // False for ids without a token.
  bool IsSpecial(TokenId id) const { return decoder_.Has(id) && decoder_.IsSpecial(id); }
  // The bytes that a token adds within a text; may be part of a character. Empty without a token.
  std::string TokenBytes(TokenId id) const;
  // The id of an added token or of a vocabulary entry, spelled as in tokenizer.json.
  std::optional<TokenId> Find(const std::string& token) const;

  // For IncrementalDecoder.
  const TokenDecoder& decoder() const { return decoder_; }
  bool cleans_up_spaces() const { return cleans_up_spaces_; }

 private:
  Tokenizer() = default;

  absl::Status LoadAddedTokens(const Json& spec);
  absl::Status LoadPostProcessor(const Json& spec, const std::string& where, int depth);
  absl::Status LoadTemplate(const Json& spec, const std::string& where);
  absl::Status LoadConfig(const Json& config);
  struct OwnTemplate;
  // nullptr where the configuration names no such class.
  static absl::StatusOr<const OwnTemplate*> FindOwnTemplate(const Json& config);
  absl::Status ApplyOwnTemplate(const OwnTemplate& own, const Json& config);
  absl::StatusOr<std::optional<TokenId>> NamedToken(const Json& config, const char* key,
                                                    const char* absent) const;

  struct Words;
  absl::Status EncodeText(std::string_view text, bool is_at_start, size_t ids_max, Words* words,
                          std::vector<TokenId>* ids) const;

  std::optional<Normalizer> normalizer_;
  std::optional<PreTokenizer> pre_tokenizer_;
  std::optional<BpeModel> model_;
  TokenDecoder decoder_;
  absl::flat_hash_map<std::string, TokenId> added_ids_;
  AddedTokenMatcher raw_tokens_;         // Sought in the client's text.
  AddedTokenMatcher normalized_tokens_;  // Sought in normalized text.
  std::vector<TokenId> prefix_;          // Put around a text by the post-processor.
  std::vector<TokenId> suffix_;
  bool cleans_up_spaces_ = false;
};

}  // namespace baton

#endif  // BATON_COMMON_TOKENIZER_TOKENIZER_H_
