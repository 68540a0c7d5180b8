// Apart from log.cc, so that only programs have the flag: libbaton_cuda.so logs too, and a flag
// that comes a second time, with a module, ends the process.
#include "absl/flags/flag.h"
#include "common/telemetry/log.h"

ABSL_FLAG(std::string, log_level, "info",
          "The least severe log lines shown: debug, info, warning, error or off.");

namespace baton {

absl::Status InitLogFromFlags(const std::string& program) {
  return InitLog(program, absl::GetFlag(FLAGS_log_level));
}

}  // namespace baton
