// Messages of the wire in an input.
#ifndef BATON_TESTS_FUZZ_WIRE_MESSAGE_H_
#define BATON_TESTS_FUZZ_WIRE_MESSAGE_H_

#include <google/protobuf/stubs/logging.h>

#include "tests/fuzz/fuzz_input.h"

namespace baton {

// Protobuf logs every string that is not UTF-8.
inline void SilenceProtobuf() {
  static google::protobuf::LogHandler* const previous = google::protobuf::SetLogHandler(nullptr);
  (void)previous;
}

// The next record as a message; empty if its bytes are none.
template <typename Message>
Message ReadMessage(FuzzInput& input) {
  SilenceProtobuf();
  Message message;
  if (!message.ParseFromString(input.Record())) message.Clear();
  return message;
}

}  // namespace baton

#endif  // BATON_TESTS_FUZZ_WIRE_MESSAGE_H_
