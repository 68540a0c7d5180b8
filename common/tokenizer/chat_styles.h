// Recognises published chat templates.
//
// Pure function; any thread.
#ifndef BATON_COMMON_TOKENIZER_CHAT_STYLES_H_
#define BATON_COMMON_TOKENIZER_CHAT_STYLES_H_

#include <string>

#include "absl/status/statusor.h"
#include "common/tokenizer/chat_format.h"

namespace baton {

// kUnimplemented when the template is none of the known ones.
absl::StatusOr<ChatStyle> RecogniseChatTemplate(const std::string& chat_template);

}  // namespace baton

#endif  // BATON_COMMON_TOKENIZER_CHAT_STYLES_H_
