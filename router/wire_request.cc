#include "router/wire_request.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/unknown_field_set.h>

#include <map>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/tokenizer/utf8.h"

namespace baton {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::UnknownField;
using google::protobuf::UnknownFieldSet;

struct BadText {
  std::string field;
  size_t byte = 0;  // Where it stops being UTF-8.
};

// The first text in a message's bytes that is not UTF-8. Recursion is as deep as the message type
// is.
std::optional<BadText> FindBadText(const Descriptor* type, const std::string& bytes) {
  UnknownFieldSet fields;
  if (!fields.ParseFromString(bytes)) return std::nullopt;
  std::map<int, int> counts;
  for (int i = 0; i < fields.field_count(); ++i) {
    const UnknownField& field = fields.field(i);
    const FieldDescriptor* known = type->FindFieldByNumber(field.number());
    if (known == nullptr || field.type() != UnknownField::TYPE_LENGTH_DELIMITED) continue;
    const int index = counts[field.number()]++;
    const std::string name =
        known->is_repeated() ? absl::StrCat(known->name(), "[", index, "]") : known->name();
    const std::string& content = field.length_delimited();
    if (known->type() == FieldDescriptor::TYPE_STRING) {
      const size_t valid = ValidUtf8Prefix(content);
      if (valid < content.size()) return BadText{name, valid};
    } else if (known->type() == FieldDescriptor::TYPE_MESSAGE) {
      const std::optional<BadText> inner = FindBadText(known->message_type(), content);
      if (inner.has_value()) return BadText{absl::StrCat(name, ".", inner->field), inner->byte};
    }
  }
  return std::nullopt;
}

}  // namespace

absl::Status ParseWireRequest(const grpc::ByteBuffer& buffer, google::protobuf::Message* request) {
  grpc::Slice slice;
  if (!buffer.Valid() || !buffer.DumpToSingleSlice(&slice).ok()) {
    return absl::InternalError("the call's bytes cannot be read");
  }
  const std::string bytes(reinterpret_cast<const char*>(slice.begin()), slice.size());
  const std::optional<BadText> bad = FindBadText(request->GetDescriptor(), bytes);
  if (bad.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat(bad->field, ": it is not UTF-8 at byte ", bad->byte));
  }
  if (request->ParseFromString(bytes)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("the call's bytes are no ", request->GetDescriptor()->full_name()));
}

grpc::ByteBuffer ToWire(const google::protobuf::Message& response) {
  const grpc::Slice slice(response.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

}  // namespace baton
