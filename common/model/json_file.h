// JSON objects of a model folder, with errors that name the file and the key. Used by this folder
// only. Any thread.
#ifndef BATON_COMMON_MODEL_JSON_FILE_H_
#define BATON_COMMON_MODEL_JSON_FILE_H_

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/json/bounded_json.h"

namespace baton {

// Parses one JSON object. `name` is for messages. kInvalidArgument: not JSON, not an object, beyond
// the limits of common/json/bounded_json.h, or the same key twice in the outermost object.
absl::StatusOr<nlohmann::json> ParseJsonObject(absl::string_view text, const std::string& name);

// Typed access to the members of one object. Borrows it. Every error names the file and the key.
class JsonReader {
 public:
  // REQUIRES: `object` is an object and outlives the reader.
  JsonReader(const nlohmann::json& object, std::string name)
      : object_(&object), name_(std::move(name)) {}

  const std::string& name() const { return name_; }

  // False for null, too.
  bool Has(const char* key) const;
  // True for null only, not if absent.
  bool IsNull(const char* key) const;
  // Null if absent.
  const nlohmann::json* Find(const char* key) const;

  // A whole number within [low, high], also when written as 1e4. Without a default the key must be
  // there.
  absl::StatusOr<uint32_t> Integer(const char* key, uint32_t low, uint32_t high,
                                   std::optional<uint32_t> default_value = std::nullopt) const;
  // A finite number.
  absl::StatusOr<double> Number(const char* key,
                                std::optional<double> default_value = std::nullopt) const;
  // A number above zero that fits into a float.
  absl::StatusOr<float> PositiveNumber(const char* key,
                                       std::optional<double> default_value = std::nullopt) const;
  absl::StatusOr<bool> Boolean(const char* key, bool default_value) const;
  absl::StatusOr<std::string> String(const char* key,
                                     std::optional<std::string> default_value = std::nullopt) const;

  // "FILE: KEY REASON", kInvalidArgument.
  absl::Status Error(const char* key, const std::string& reason) const;

 private:
  const nlohmann::json* object_;
  std::string name_;
};

}  // namespace baton

#endif  // BATON_COMMON_MODEL_JSON_FILE_H_
