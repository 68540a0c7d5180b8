// Typed access to JSON from a model folder, which nobody vouches for: every error names the field.
//
// Pure functions; any thread. `where` is the path of the object, for messages.
#ifndef BATON_COMMON_TOKENIZER_JSON_FIELDS_H_
#define BATON_COMMON_TOKENIZER_JSON_FIELDS_H_

#include <cstddef>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace baton {

using Json = nlohmann::json;

// The largest published tokenizer.json has about 3 million values, 8 levels deep.
inline constexpr size_t kJsonValueCountMax = size_t{8} << 20;
inline constexpr int kJsonDepthMax = 64;

// Reads a file of at most `bytes_max` bytes. kNotFound when there is none, kInvalidArgument when it
// is larger or not JSON, with the place.
absl::StatusOr<Json> ReadJsonFile(const std::string& path, size_t bytes_max);

// The same of a text in memory; `name` is for messages.
absl::StatusOr<Json> ParseJson(const std::string& text, const std::string& name);

// As ReadJsonFile, but the text itself.
absl::StatusOr<std::string> ReadTextFile(const std::string& path, size_t bytes_max);

// nullptr when `object` is no object, or has no such key, or has null there.
const Json* FindField(const Json& object, const char* key);

absl::StatusOr<std::string> StringField(const Json& object, const char* key,
                                        const std::string& where);

// `absent` when the field is missing or null.
absl::StatusOr<bool> BoolField(const Json& object, const char* key, bool absent,
                               const std::string& where);

// The number when `value` is a whole one in [0, max].
std::optional<int> WholeNumber(const Json& value, int max);

// A field that is a whole number in [0, max].
absl::StatusOr<int> IntField(const Json& object, const char* key, int max,
                             const std::string& where);

// kUnimplemented: "tokenizer.json: <where>: <what> is not supported".
absl::Status Unsupported(const std::string& where, const std::string& what);

}  // namespace baton

#endif  // BATON_COMMON_TOKENIZER_JSON_FIELDS_H_
