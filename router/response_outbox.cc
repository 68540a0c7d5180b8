#include "router/response_outbox.h"

#include <utility>

#include "common/base/check.h"

namespace baton {

void ResponseOutbox::Push(v1::GenerateResponse response, uint64_t bytes) {
  if (!response.has_delta()) {
    entries_.push_back(
        {.is_delta = false, .wire = response.SerializeAsString(), .text = "", .bytes = bytes});
    return;
  }
  v1::Delta& delta = *response.mutable_delta();
  std::string text = std::move(*delta.mutable_text());
  delta.clear_text();
  std::string wire = delta.SerializeAsString();
  if (!entries_.empty() && entries_.back().is_delta) {
    Entry& last = entries_.back();
    const size_t merged = last.wire.size() + last.text.size() + wire.size() + text.size();
    if (merged <= kMergedDeltaBytesMax) {
      // Protobuf reads two messages' bytes, one after the other, as one with the tokens of both.
      last.wire += wire;
      last.text += text;
      last.bytes += bytes;
      return;
    }
  }
  entries_.push_back(
      {.is_delta = true, .wire = std::move(wire), .text = std::move(text), .bytes = bytes});
}

ResponseOutbox::Message ResponseOutbox::Pop() {
  BATON_CHECK(!entries_.empty());
  Entry entry = std::move(entries_.front());
  entries_.pop_front();
  Message message{.response = {}, .bytes = entry.bytes};
  if (entry.is_delta) {
    BATON_CHECK(message.response.mutable_delta()->ParseFromString(entry.wire));
    message.response.mutable_delta()->set_text(std::move(entry.text));
  } else {
    BATON_CHECK(message.response.ParseFromString(entry.wire));
  }
  return message;
}

}  // namespace baton
