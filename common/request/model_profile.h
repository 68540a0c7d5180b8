// What must be known of a model to read requests to it: tokenizer, chat format, and the few figures
// of config.json that a request is checked against. No weights.
//
// Immutable after Load; any thread.
#ifndef BATON_COMMON_REQUEST_MODEL_PROFILE_H_
#define BATON_COMMON_REQUEST_MODEL_PROFILE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/ids.h"
#include "common/tokenizer/chat_format.h"
#include "common/tokenizer/tokenizer.h"

namespace baton {

struct ModelProfile {
  // A request may name so many tokens at most, whatever config.json claims.
  static constexpr uint32_t kContextTokensMax = 1u << 24;
  // No text has so many bytes for each token of a whole context; it is about 4 as a rule.
  static constexpr size_t kTextBytesPerToken = 64;
  // Far enough below the 64 MiB of a message that our refusal comes before gRPC's.
  static constexpr size_t kTextBytesMax = 32u << 20;

  std::string name;  // The folder's own name.
  std::string architecture;
  uint32_t vocab_size = 0;
  uint32_t context_tokens = 0;
  std::vector<TokenId> eos_token_ids;
  // A longer text is refused before the time to tokenize it is spent.
  size_t text_bytes_max = 0;
  std::unique_ptr<Tokenizer> tokenizer;
  absl::StatusOr<ChatFormat> chat = absl::UnimplementedError("no chat format was loaded");

  // Reads config.json, generation_config.json, tokenizer.json and tokenizer_config.json. A chat
  // template that is not known is no error here: chat calls get it.
  static absl::StatusOr<ModelProfile> Load(const std::string& directory);
};

}  // namespace baton

#endif  // BATON_COMMON_REQUEST_MODEL_PROFILE_H_
