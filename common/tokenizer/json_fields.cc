#include "common/tokenizer/json_fields.h"

#include <cstdint>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace baton {
namespace {

absl::Status Malformed(const std::string& where, const char* key, const char* expected) {
  return absl::InvalidArgumentError(absl::StrCat(where, ".", key, ": expected ", expected));
}

// Reads a document without keeping it, to refuse one that would take too much memory to keep.
class LimitChecker : public nlohmann::json_sax<Json> {
 public:
  bool exceeded() const { return exceeded_; }

  bool null() override { return Count(); }
  bool boolean(bool) override { return Count(); }
  bool number_integer(number_integer_t) override { return Count(); }
  bool number_unsigned(number_unsigned_t) override { return Count(); }
  bool number_float(number_float_t, const string_t&) override { return Count(); }
  bool string(string_t&) override { return Count(); }
  bool binary(binary_t&) override { return Count(); }
  bool key(string_t&) override { return true; }
  bool start_object(size_t) override { return Enter(); }
  bool start_array(size_t) override { return Enter(); }
  bool end_object() override { return Leave(); }
  bool end_array() override { return Leave(); }
  // Malformed documents are left to the parser that names the place.
  bool parse_error(size_t, const std::string&, const Json::exception&) override { return false; }

 private:
  bool Count() {
    exceeded_ = exceeded_ || ++value_count_ > kJsonValueCountMax;
    return !exceeded_;
  }
  bool Enter() {
    exceeded_ = exceeded_ || ++depth_ > kJsonDepthMax;
    return Count();
  }
  bool Leave() {
    --depth_;
    return true;
  }

  size_t value_count_ = 0;
  int depth_ = 0;
  bool exceeded_ = false;
};

}  // namespace

absl::StatusOr<std::string> ReadTextFile(const std::string& path, size_t bytes_max) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be opened"));
  const auto size = static_cast<int64_t>(file.tellg());
  if (size < 0) return absl::InvalidArgumentError(absl::StrCat(path, ": is not a regular file"));
  if (static_cast<uint64_t>(size) > bytes_max) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": ", size, " bytes, more than the limit of ", bytes_max));
  }
  std::string text(static_cast<size_t>(size), '\0');
  file.seekg(0);
  file.read(text.data(), static_cast<std::streamsize>(size));
  if (!file) return absl::InvalidArgumentError(absl::StrCat(path, ": cannot be read"));
  return text;
}

absl::StatusOr<Json> ReadJsonFile(const std::string& path, size_t bytes_max) {
  BATON_ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path, bytes_max));
  return ParseJson(text, path);
}

absl::StatusOr<Json> ParseJson(const std::string& text, const std::string& name) {
  LimitChecker checker;
  try {
    Json::sax_parse(text, &checker);
    if (checker.exceeded()) {
      return absl::InvalidArgumentError(absl::StrCat(name, ": more than ", kJsonValueCountMax,
                                                     " values or ", kJsonDepthMax, " levels"));
    }
    return Json::parse(text);
  } catch (const Json::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": ", error.what()));
  }
}

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
