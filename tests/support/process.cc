#include "tests/support/process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>
#include <utility>

#include "absl/strings/str_cat.h"

namespace baton {
namespace {

constexpr size_t kLogTailBytes = 4000;

int MillisecondsUntil(Instant deadline) {
  const double left = ToMilliseconds(deadline - Now());
  return left <= 0 ? 0 : static_cast<int>(left) + 1;
}

[[noreturn]] void RunChild(const std::vector<std::string>& command, int output, int log) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  dup2(output, STDOUT_FILENO);
  dup2(log, STDERR_FILENO);
  std::vector<char*> arguments;
  for (const std::string& argument : command)
    arguments.push_back(const_cast<char*>(argument.c_str()));
  arguments.push_back(nullptr);
  execvp(arguments[0], arguments.data());
  dprintf(STDERR_FILENO, "cannot execute %s: %s\n", arguments[0], std::strerror(errno));
  _exit(127);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Process>> Process::Start(const std::vector<std::string>& command,
                                                        const std::string& log) {
  int pipe_ends[2];
  if (pipe2(pipe_ends, O_CLOEXEC) != 0) return absl::InternalError("pipe failed");
  const int log_file = open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (log_file < 0) return absl::InternalError(absl::StrCat("cannot open ", log));
  const pid_t pid = fork();
  if (pid < 0) return absl::InternalError("fork failed");
  if (pid == 0) RunChild(command, pipe_ends[1], log_file);
  close(pipe_ends[1]);
  close(log_file);
  return std::unique_ptr<Process>(new Process(pid, pipe_ends[0], log));
}

Process::~Process() {
  if (!reaped_) {
    Signal(SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  close(output_);
}

absl::StatusOr<std::string> Process::WaitForLine(const std::string& prefix, Duration timeout) {
  const Instant deadline = Now() + timeout;
  for (;;) {
    for (size_t end; (end = unread_.find('\n')) != std::string::npos;) {
      const std::string line = unread_.substr(0, end);
      unread_.erase(0, end + 1);
      if (line.compare(0, prefix.size(), prefix) == 0) return line.substr(prefix.size());
    }
    pollfd poll_fd = {.fd = output_, .events = POLLIN, .revents = 0};
    const int ready = poll(&poll_fd, 1, MillisecondsUntil(deadline));
    if (ready == 0) {
      return absl::DeadlineExceededError(absl::StrCat("no line '", prefix, "'; log:\n", LogTail()));
    }
    char buffer[4096];
    const ssize_t count = read(output_, buffer, sizeof(buffer));
    if (count <= 0) {
      return absl::UnavailableError(
          absl::StrCat("the process ended before '", prefix, "'; log:\n", LogTail()));
    }
    unread_.append(buffer, static_cast<size_t>(count));
  }
}

void Process::Signal(int signal) const { kill(pid_, signal); }

absl::StatusOr<int> Process::Wait(Duration timeout) {
  const int pid_fd = static_cast<int>(syscall(SYS_pidfd_open, pid_, 0));
  if (pid_fd < 0) return absl::InternalError("pidfd_open failed");
  pollfd poll_fd = {.fd = pid_fd, .events = POLLIN, .revents = 0};
  const int ready = poll(&poll_fd, 1, MillisecondsUntil(Now() + timeout));
  close(pid_fd);
  if (ready == 0) {
    return absl::DeadlineExceededError(absl::StrCat("process ", pid_, " still runs"));
  }
  int status = 0;
  waitpid(pid_, &status, 0);
  reaped_ = true;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

std::string Process::LogTail() const {
  std::ifstream file(log_);
  std::stringstream text;
  text << file.rdbuf();
  const std::string all = text.str();
  return all.substr(all.size() - std::min(all.size(), kLogTailBytes));
}

}  // namespace baton
