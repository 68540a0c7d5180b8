// The text of one request, made from its tokens one by one. The core's view of detokenization and
// stop strings: it only feeds tokens and passes on what comes out.
//
// Used from the router's thread only.
#ifndef BATON_ROUTER_TEXT_STREAM_H_
#define BATON_ROUTER_TEXT_STREAM_H_

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

#endif  // BATON_ROUTER_TEXT_STREAM_H_
