// The command line of every program: Abseil flags, set from three places. The command line wins
// over a flag file (--flagfile), which wins over the environment (BATON_<FLAG_NAME>), which wins
// over the default.
//
// Flags are defined with ABSL_FLAG beside the code that reads them. The parser is ours because
// Abseil's keeps only the last value of a repeated flag. Main thread only, before others start.
#ifndef BATON_COMMON_BASE_COMMAND_LINE_H_
#define BATON_COMMON_BASE_COMMAND_LINE_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace baton {

struct ProgramInfo {
  std::string name;     // As installed: "baton_router".
  std::string summary;  // One line.
  std::string usage;    // Free text after the summary in --help; may be empty.
  std::string version;
  bool takes_arguments = false;  // Besides flags. Otherwise one that is no flag is a mistake.
};

// Sets the flags and returns the positional arguments (everything after "--" is one). --help and
// --version print and exit 0; a mistake prints one line that names it and exits 1. The first thing
// that a program does: it also turns off Abseil's search for deadlocks in the order of locks, which
// is for tests, and which ThreadSanitizer makes too.
std::vector<std::string> ParseCommandLine(int argc, char** argv, const ProgramInfo& info);

// A flag type for amounts of memory: plain bytes, or a number with k, m, g, t (also ki, KiB: powers
// of 1024) or kB, MB, GB, TB (powers of 1000). 1.5GiB is fine where it makes whole bytes.
struct ByteSize {
  uint64_t bytes = 0;
};
absl::StatusOr<ByteSize> ParseByteSize(const std::string& text);
bool AbslParseFlag(absl::string_view text, ByteSize* size, std::string* error);
std::string AbslUnparseFlag(const ByteSize& size);

// A flag type whose every occurrence adds a value: --stop A --stop B. A value is taken literally.
struct RepeatedString {
  std::vector<std::string> values;
};
bool AbslParseFlag(absl::string_view text, RepeatedString* list, std::string* error);
std::string AbslUnparseFlag(const RepeatedString& list);

struct HostPort {
  std::string host;  // A name or an IP address, without brackets; never empty.
  uint16_t port = 0;
};
// "host:port", "1.2.3.4:port" or "[v6]:port".
absl::StatusOr<HostPort> ParseHostPort(const std::string& text);
std::string FormatHostPort(const HostPort& address);

// --- The parts of ParseCommandLine that neither print nor exit. ---

// What the environment says about a variable.
using Environment = std::function<std::optional<std::string>(const std::string& name)>;

struct CommandLine {
  std::vector<std::string> positional;
  bool help = false;
  bool version = false;
};

// `arguments` without the program's name. On error some flags may have been set.
absl::StatusOr<CommandLine> SetFlags(const std::vector<std::string>& arguments,
                                     const Environment& environment);

// All flags with their defaults, grouped by the folder that defines them, the program's own first.
std::string HelpText(const ProgramInfo& info);

}  // namespace baton

#endif  // BATON_COMMON_BASE_COMMAND_LINE_H_
