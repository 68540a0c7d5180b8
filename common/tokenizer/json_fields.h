// Typed access to JSON from a model folder, which nobody vouches for: every error names the field.
//
// Pure functions; any thread. `where` is the path of the object, for messages.
#ifndef BATON_COMMON_TOKENIZER_JSON_FIELDS_H_
#define BATON_COMMON_TOKENIZER_JSON_FIELDS_H_

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/json/bounded_json.h"

namespace baton {

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
