// The text of one request, made from its tokens one by one: all that a core needs to know of
// detokenization and stop strings.
//
// Used by one thread at a time.
#ifndef BATON_COMMON_REQUEST_TEXT_STREAM_H_
#define BATON_COMMON_REQUEST_TEXT_STREAM_H_

#include <optional>
#include <string>

#include "common/base/ids.h"

namespace baton {

class TextStream {
 public:
  struct Step {
    std::string text;  // Ready to be shown: whole characters, before any stop string.
    std::optional<std::string> stop_string;  // The stop string that this token completed.
  };

  virtual ~TextStream() = default;

  // REQUIRES: no stop string has matched, Flush has not been called.
  virtual Step Feed(TokenId token) = 0;

  // No token follows: what was held back because it could have begun a stop string or a character.
  virtual Step Flush() = 0;
};

}  // namespace baton

#endif  // BATON_COMMON_REQUEST_TEXT_STREAM_H_
