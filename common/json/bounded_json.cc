#include "common/json/bounded_json.h"

#include <cstdint>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace baton {
namespace {

// Reads a document without keeping it, to refuse one that would take too much memory to keep.
class LimitChecker : public nlohmann::json_sax<Json> {
 public:
  // Empty, or which limit was passed.
  const std::string& excess() const { return excess_; }

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
  bool parse_error(size_t, const std::string&, const Json::exception&) override { return false; }

 private:
  bool Count() {
    if (++value_count_ > kJsonValueCountMax) {
      excess_ = absl::StrCat("more than ", kJsonValueCountMax, " values");
    }
    return excess_.empty();
  }
  bool Enter() {
    if (++depth_ > kJsonDepthMax) {
      excess_ = absl::StrCat("nested deeper than ", kJsonDepthMax, " levels");
    }
    return excess_.empty() && Count();
  }
  bool Leave() {
    --depth_;
    return true;
  }

  size_t value_count_ = 0;
  int depth_ = 0;
  std::string excess_;
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

absl::Status CheckJsonLimits(absl::string_view text, const std::string& name) {
  LimitChecker checker;
  Json::sax_parse(text.begin(), text.end(), &checker);
  if (checker.excess().empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, ": ", checker.excess()));
}

absl::StatusOr<Json> ParseJson(absl::string_view text, const std::string& name) {
  BATON_RETURN_IF_ERROR(CheckJsonLimits(text, name));
  try {
    return Json::parse(text.begin(), text.end());
  } catch (const Json::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": ", error.what()));
  }
}

absl::StatusOr<Json> ReadJsonFile(const std::string& path, size_t bytes_max) {
  BATON_ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path, bytes_max));
  return ParseJson(text, path);
}

}  // namespace baton
