// For tests: this program, run once more as the other side of a connection, to be killed or
// stopped.
//
// A process has one UCX worker (see "Living with UCX 1.13" in DESIGN_NOTES.md), so a side that dies
// while another goes on needs a process of its own. The test program's main() begins with
//   if (const std::optional<int> pipe = PeerPipe()) return Serve(*pipe);
// where Serve() tells its address by WriteAddress() and then serves until it is killed.
#ifndef BATON_COMMON_TRANSPORT_TESTING_PEER_PROCESS_H_
#define BATON_COMMON_TRANSPORT_TESTING_PEER_PROCESS_H_

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>

namespace baton {

inline constexpr char kPeerPipeVariable[] = "BATON_UCX_PEER_PIPE";

// Where the address goes, in the other process; absent in the first one.
inline std::optional<int> PeerPipe() {
  const char* pipe = std::getenv(kPeerPipeVariable);
  if (pipe == nullptr) return std::nullopt;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  return std::atoi(pipe);
}

inline bool WriteAddress(int pipe, const std::string& address) {
  const uint32_t size = static_cast<uint32_t>(address.size());
  return write(pipe, &size, sizeof(size)) == static_cast<ssize_t>(sizeof(size)) &&
         write(pipe, address.data(), size) == static_cast<ssize_t>(size);
}

class PeerProcess {
 public:
  PeerProcess() {
    int ends[2];
    EXPECT_EQ(pipe(ends), 0);
    fcntl(ends[0], F_SETFD, FD_CLOEXEC);
    std::string program = "/proc/self/exe";
    char* arguments[] = {program.data(), nullptr};
    setenv(kPeerPipeVariable, std::to_string(ends[1]).c_str(), 1);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    EXPECT_EQ(posix_spawn(&pid_, program.c_str(), &actions, nullptr, arguments, environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    unsetenv(kPeerPipeVariable);
    close(ends[1]);
    uint32_t size = 0;
    EXPECT_EQ(read(ends[0], &size, sizeof(size)), static_cast<ssize_t>(sizeof(size)));
    address_.resize(size);
    EXPECT_EQ(read(ends[0], address_.data(), size), static_cast<ssize_t>(size));
    close(ends[0]);
  }
  ~PeerProcess() { Kill(); }
  PeerProcess(const PeerProcess&) = delete;
  PeerProcess& operator=(const PeerProcess&) = delete;

  const std::string& address() const { return address_; }
  void Stop() const { kill(pid_, SIGSTOP); }
  void Continue() const { kill(pid_, SIGCONT); }
  void Kill() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }

 private:
  pid_t pid_ = 0;
  std::string address_;
};

}  // namespace baton

#endif  // BATON_COMMON_TRANSPORT_TESTING_PEER_PROCESS_H_
