#include "common/model/json_file.h"

#include <cmath>
#include <limits>
#include <set>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace baton {

absl::StatusOr<nlohmann::json> ParseJsonObject(absl::string_view text, const std::string& name) {
  BATON_RETURN_IF_ERROR(CheckJsonLimits(text, name));
  std::set<std::string> keys;
  std::string repeated;
  const auto note_key = [&](int depth, nlohmann::json::parse_event_t event,
                            nlohmann::json& parsed) {
    if (depth == 1 && event == nlohmann::json::parse_event_t::key) {
      std::string key = parsed.get<std::string>();
      if (!keys.insert(key).second) repeated = std::move(key);
    }
    return true;
  };
  nlohmann::json json =
      nlohmann::json::parse(text.begin(), text.end(), note_key, /*allow_exceptions=*/false);
  if (json.is_discarded()) return absl::InvalidArgumentError(absl::StrCat(name, ": not JSON"));
  if (!json.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": not a JSON object"));
  }
  if (!repeated.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": '", repeated, "' is there twice"));
  }
  return json;
}

const nlohmann::json* JsonReader::Find(const char* key) const {
  const auto found = object_->find(key);
  return found == object_->end() || found->is_null() ? nullptr : &*found;
}

bool JsonReader::IsNull(const char* key) const {
  const auto found = object_->find(key);
  return found != object_->end() && found->is_null();
}

bool JsonReader::Has(const char* key) const { return Find(key) != nullptr; }

absl::StatusOr<uint32_t> JsonReader::Integer(const char* key, uint32_t low, uint32_t high,
                                             std::optional<uint32_t> default_value) const {
  const nlohmann::json* value = Find(key);
  if (value == nullptr) {
    if (default_value.has_value()) return *default_value;
    return Error(key, "is missing");
  }
  if (!value->is_number()) return Error(key, "is not a number");
  const double number = value->get<double>();
  if (!(number >= low && number <= high) || number != std::floor(number)) {
    return Error(key, absl::StrCat("must be a whole number from ", low, " to ", high, ", not ",
                                   value->dump()));
  }
  return static_cast<uint32_t>(number);
}

absl::StatusOr<double> JsonReader::Number(const char* key,
                                          std::optional<double> default_value) const {
  const nlohmann::json* value = Find(key);
  if (value == nullptr) {
    if (default_value.has_value()) return *default_value;
    return Error(key, "is missing");
  }
  if (!value->is_number()) return Error(key, "is not a number");
  const double number = value->get<double>();
  if (!std::isfinite(number)) return Error(key, "is not a finite number");
  return number;
}

absl::StatusOr<float> JsonReader::PositiveNumber(const char* key,
                                                 std::optional<double> default_value) const {
  BATON_ASSIGN_OR_RETURN(const double value, Number(key, default_value));
  // What is too small for a float becomes zero in one.
  const bool fits = value > 0.0 && value <= std::numeric_limits<float>::max();
  if (!fits || static_cast<float>(value) == 0.0f) return Error(key, "must be positive");
  return static_cast<float>(value);
}

absl::StatusOr<bool> JsonReader::Boolean(const char* key, bool default_value) const {
  const nlohmann::json* value = Find(key);
  if (value == nullptr) return default_value;
  if (!value->is_boolean()) return Error(key, "is neither true nor false");
  return value->get<bool>();
}

absl::StatusOr<std::string> JsonReader::String(const char* key,
                                               std::optional<std::string> default_value) const {
  const nlohmann::json* value = Find(key);
  if (value == nullptr) {
    if (default_value.has_value()) return *default_value;
    return Error(key, "is missing");
  }
  if (!value->is_string()) return Error(key, "is not a string");
  return value->get<std::string>();
}

absl::Status JsonReader::Error(const char* key, const std::string& reason) const {
  return absl::InvalidArgumentError(absl::StrCat(name_, ": ", key, " ", reason));
}

}  // namespace baton
