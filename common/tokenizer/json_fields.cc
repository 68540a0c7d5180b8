#include "common/tokenizer/json_fields.h"

#include <cstdint>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"

namespace baton {
namespace {

absl::Status Malformed(const std::string& where, const char* key, const char* expected) {
  return absl::InvalidArgumentError(absl::StrCat(where, ".", key, ": expected ", expected));
}

}  // namespace

const Json* FindField(const Json& object, const char* key) {
  if (!object.is_object()) return nullptr;
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return nullptr;
  return &*found;
}

absl::StatusOr<std::string> StringField(const Json& object, const char* key,
                                        const std::string& where) {
  const Json* field = FindField(object, key);
  if (field == nullptr || !field->is_string()) return Malformed(where, key, "a string");
  return field->get<std::string>();
}

absl::StatusOr<bool> BoolField(const Json& object, const char* key, bool absent,
                               const std::string& where) {
  const Json* field = FindField(object, key);
  if (field == nullptr) return absent;
  if (!field->is_boolean()) return Malformed(where, key, "true or false");
  return field->get<bool>();
}

std::optional<int> WholeNumber(const Json& value, int max) {
  // The library keeps numbers above INT64_MAX as unsigned ones only.
  const bool is_small =
      value.is_number_unsigned()
          ? value.get<uint64_t>() <= static_cast<uint64_t>(max)
          : value.is_number_integer() && value.get<int64_t>() >= 0 && value.get<int64_t>() <= max;
  if (!is_small) return std::nullopt;
  return value.get<int>();
}

absl::StatusOr<int> IntField(const Json& object, const char* key, int max,
                             const std::string& where) {
  const Json* field = FindField(object, key);
  const std::optional<int> number = field != nullptr ? WholeNumber(*field, max) : std::nullopt;
  if (number.has_value()) return *number;
  return absl::InvalidArgumentError(
      absl::StrCat(where, ".", key, ": expected a whole number up to ", max));
}

absl::Status Unsupported(const std::string& where, const std::string& what) {
  return absl::UnimplementedError(
      absl::StrCat("tokenizer.json: ", where, ": ", what, " is not supported"));
}

}  // namespace baton
