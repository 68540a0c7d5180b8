#include "common/request/model_text.h"

#include <utility>

#include "common/base/status_macros.h"

namespace baton {

absl::StatusOr<std::unique_ptr<ModelText>> ModelText::Create(const Tokenizer* tokenizer,
                                                             std::vector<std::string> stops,
                                                             bool continues_text) {
  BATON_RETURN_IF_ERROR(StopStringMatcher::Validate(stops));
  BATON_ASSIGN_OR_RETURN(StopStringMatcher matcher, StopStringMatcher::Create(stops));
  return std::unique_ptr<ModelText>(
      new ModelText(tokenizer, std::move(stops), std::move(matcher), continues_text));
}

ModelText::ModelText(const Tokenizer* tokenizer, std::vector<std::string> stops,
                     StopStringMatcher matcher, bool continues_text)
    : stops_(std::move(stops)),
      decoder_(tokenizer, DecodeOptions{.continues_text = continues_text}),
      matcher_(std::move(matcher)) {}

TextStream::Step ModelText::Match(const std::string& text) {
  Step step;
  step.text = matcher_.Push(text);
  if (matcher_.stopped()) step.stop_string = stops_[matcher_.matched()];
  return step;
}

TextStream::Step ModelText::Feed(TokenId token) { return Match(decoder_.Push(token)); }

TextStream::Step ModelText::Flush() {
  Step step = Match(decoder_.Flush());
  if (!matcher_.stopped()) step.text += matcher_.Flush();
  return step;
}

}  // namespace baton
