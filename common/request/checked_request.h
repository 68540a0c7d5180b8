// A request that nothing is wrong with any more: what a router places and an engine runs.
//
// A value; the text stream makes it movable only.
#ifndef BATON_COMMON_REQUEST_CHECKED_REQUEST_H_
#define BATON_COMMON_REQUEST_CHECKED_REQUEST_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "common/base/ids.h"
#include "common/request/text_stream.h"
#include "proto/types.pb.h"

namespace baton {

struct CheckedRequest {
  std::vector<TokenId> tokens;  // The prompt, then what was generated before.
  uint32_t prompt_tokens = 0;
  uint32_t total_tokens_max = 0;  // Prompt and generated together.
  // Nobody asked for so many: the answer may go on to the end of the context, or of the KV cache
  // where that is smaller. See "Answers without a given length" in DESIGN_NOTES.md.
  bool open_ended = false;
  v1::SamplingOptions sampling;      // With a seed.
  v1::StopOptions stopping;          // With the EOS ids unless they are ignored.
  int32_t priority = 0;              // Higher goes first.
  std::unique_ptr<TextStream> text;  // Has been fed nothing when the request is new.

  // Applies a KV cache of so many tokens, if the prompt leaves room in it.
  void LimitOpenEnded(uint32_t kv_tokens);
  bool is_stop_token(TokenId token) const;
  // Why nothing can be generated after `tokens`, if so.
  std::optional<v1::FinishReason> end_reached() const;
};

}  // namespace baton

#endif  // BATON_COMMON_REQUEST_CHECKED_REQUEST_H_
