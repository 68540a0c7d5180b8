// Reads files that people and their tools put beside a program: certificates, keys.
#ifndef BATON_COMMON_RPC_SMALL_FILE_H_
#define BATON_COMMON_RPC_SMALL_FILE_H_

#include <cstddef>
#include <string>

#include "absl/status/statusor.h"

namespace baton {

inline constexpr size_t kSmallFileBytesMax = 1 << 20;

// The whole of the file. The message names it and says why it could not be read: absent,
// unreadable, no file, or over kSmallFileBytesMax.
absl::StatusOr<std::string> ReadSmallFile(const std::string& path);

// The same for a file that holds keys: kInvalidArgument if others than its owner and group
// may read it. Whoever calls wipes the text when done.
absl::StatusOr<std::string> ReadSecretFile(const std::string& path);

}  // namespace baton

#endif  // BATON_COMMON_RPC_SMALL_FILE_H_
