#include "common/request/model_text.h"

#include <utility>

#include "common/base/status_macros.h"

namespace baton {

absl::StatusOr<std::unique_ptr<ModelText>> ModelText::Create(const Tokenizer* tokenizer,
                                                             Options options) {
  BATON_RETURN_IF_ERROR(StopStringMatcher::Validate(options.stops));
  BATON_ASSIGN_OR_RETURN(StopStringMatcher matcher, StopStringMatcher::Create(options.stops));
  return std::unique_ptr<ModelText>(
      new ModelText(tokenizer, std::move(options), std::move(matcher)));
}

ModelText::ModelText(const Tokenizer* tokenizer, Options options, StopStringMatcher matcher)
    : options_(std::move(options)),
      decoder_(tokenizer, DecodeOptions{.continues_text = options_.continues_text}),
      matcher_(std::move(matcher)) {}

TextStream::Step ModelText::Match(const std::string& text) {
  Step step;
  step.text = matcher_.Push(text);
  if (matcher_.stopped()) step.stop_string = options_.stops[matcher_.matched()];
  return step;
}

TextStream::Step ModelText::Feed(TokenId token) {
  std::string text = decoder_.Push(token);
  if (fed_ < options_.min_tokens) {
    ++fed_;
    return {.text = std::move(text), .stop_string = std::nullopt};
  }
  return Match(text);
}

TextStream::Step ModelText::Flush() {
  Step step = Match(decoder_.Flush());
  if (!matcher_.stopped()) step.text += matcher_.Flush();
  return step;
}

}  // namespace baton
