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
  // `continues_text`: the tokens go on from a prompt's text, not from a chat's turn. `tokenizer`
  // outlives this. kInvalidArgument, naming the field, for stop strings that cannot be.
  static absl::StatusOr<std::unique_ptr<ModelText>> Create(const Tokenizer* tokenizer,
                                                           std::vector<std::string> stops,
                                                           bool continues_text);

  Step Feed(TokenId token) override;
  Step Flush() override;

 private:
  Step Match(const std::string& text);
  ModelText(const Tokenizer* tokenizer, std::vector<std::string> stops, StopStringMatcher matcher,
            bool continues_text);

  const std::vector<std::string> stops_;
  IncrementalDecoder decoder_;
  StopStringMatcher matcher_;
};

}  // namespace baton

#endif  // BATON_COMMON_REQUEST_MODEL_TEXT_H_
