// Reading JSON that nobody vouches for: bounded in bytes, values and depth before any of it is
// kept.
//
// Pure functions; any thread. `name` is for messages.
#ifndef BATON_COMMON_JSON_BOUNDED_JSON_H_
#define BATON_COMMON_JSON_BOUNDED_JSON_H_

#include <cstddef>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace baton {

using Json = nlohmann::json;

// The largest published tokenizer.json has about 3 million values, 8 levels deep. A value takes
// tens of bytes of memory, for as few as two of text.
inline constexpr size_t kJsonValueCountMax = size_t{8} << 20;
inline constexpr int kJsonDepthMax = 64;

// The whole file. kNotFound when there is none, kInvalidArgument when it has more than `bytes_max`.
absl::StatusOr<std::string> ReadTextFile(const std::string& path, size_t bytes_max);

// kInvalidArgument: more values or levels than the limits. What is not JSON is left to the parser,
// which names the place.
absl::Status CheckJsonLimits(absl::string_view text, const std::string& name);

// kInvalidArgument when it is not JSON, with the place, or beyond the limits.
absl::StatusOr<Json> ParseJson(absl::string_view text, const std::string& name);

// Both in one.
absl::StatusOr<Json> ReadJsonFile(const std::string& path, size_t bytes_max);

}  // namespace baton

#endif  // BATON_COMMON_JSON_BOUNDED_JSON_H_
