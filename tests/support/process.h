// A child process for tests: started with arguments, its stdout read line by line, its stderr in a
// file.
#ifndef BATON_TESTS_SUPPORT_PROCESS_H_
#define BATON_TESTS_SUPPORT_PROCESS_H_

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/clock.h"

namespace baton {

class Process {
 public:
  // `log` gets what the child writes to stderr. The child dies with this process.
  static absl::StatusOr<std::unique_ptr<Process>> Start(const std::vector<std::string>& command,
                                                        const std::string& log);
  // Kills it if it still runs.
  ~Process();
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  // Reads stdout until a line begins with `prefix`; returns the rest of that line. kUnavailable
  // when the child ended, kDeadlineExceeded after `timeout`; both with the log's tail.
  absl::StatusOr<std::string> WaitForLine(const std::string& prefix, Duration timeout);

  void Signal(int signal) const;
  // Waits for the end and returns the exit code, or 128 + signal. kDeadlineExceeded: it still runs.
  absl::StatusOr<int> Wait(Duration timeout);

  pid_t pid() const { return pid_; }
  const std::string& log() const { return log_; }
  // The last lines of the log.
  std::string LogTail() const;

 private:
  Process(pid_t pid, int output, std::string log)
      : pid_(pid), output_(output), log_(std::move(log)) {}

  const pid_t pid_;
  const int output_;  // The read end of the child's stdout.
  const std::string log_;
  std::string unread_;
  bool reaped_ = false;
};

}  // namespace baton

#endif  // BATON_TESTS_SUPPORT_PROCESS_H_
