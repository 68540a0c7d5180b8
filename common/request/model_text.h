// The text of a request made with the model's tokenizer: whole characters, ended by the first stop
// string.
//
// Used by one thread at a time.
#ifndef BATON_COMMON_REQUEST_MODEL_TEXT_H_
#define BATON_COMMON_REQUEST_MODEL_TEXT_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/request/text_stream.h"
#include "common/tokenizer/incremental_decoder.h"
#include "common/tokenizer/stop_strings.h"
#include "common/tokenizer/tokenizer.h"

namespace baton {

class ModelText final : public TextStream {
 public:
  struct Options {
    std::vector<std::string> stops = {};
    uint32_t min_tokens = 0;      // The text of so many tokens is not looked at for stop strings.
    bool continues_text = false;  // The tokens go on from a prompt's text, not from a chat's turn.
  };
  // `tokenizer` outlives this. kInvalidArgument, naming the field, for stop strings that cannot be.
  static absl::StatusOr<std::unique_ptr<ModelText>> Create(const Tokenizer* tokenizer,
                                                           Options options);

  Step Feed(TokenId token) override;
  Step Flush() override;

 private:
  Step Match(const std::string& text);
  ModelText(const Tokenizer* tokenizer, Options options, StopStringMatcher matcher);

  const Options options_;
  uint32_t fed_ = 0;
  IncrementalDecoder decoder_;
  StopStringMatcher matcher_;
};

}  // namespace baton

#endif  // BATON_COMMON_REQUEST_MODEL_TEXT_H_
