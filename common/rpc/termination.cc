#include "common/rpc/termination.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "absl/time/time.h"
#include "common/base/check.h"

namespace baton {
namespace {

sigset_t TerminationSet() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  return set;
}

int BlockAndOpen() {
  const sigset_t set = TerminationSet();
  BATON_CHECK(pthread_sigmask(SIG_BLOCK, &set, nullptr) == 0);
  return signalfd(-1, &set, SFD_CLOEXEC);
}

}  // namespace

TerminationSignal::TerminationSignal()
    : signal_fd_(BlockAndOpen()), stop_fd_(eventfd(0, EFD_CLOEXEC)) {
  BATON_CHECK(signal_fd_ >= 0);
  BATON_CHECK(stop_fd_ >= 0);
  thread_ = std::thread([this] { Run(); });
}

TerminationSignal::~TerminationSignal() {
  BATON_CHECK(eventfd_write(stop_fd_, 1) == 0);
  thread_.join();
  close(stop_fd_);
  close(signal_fd_);
  const sigset_t set = TerminationSet();
  pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
}

void TerminationSignal::Wait() {
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(&requested_));
}

bool TerminationSignal::WaitFor(Duration timeout) {
  absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithTimeout(absl::Condition(&requested_), absl::FromChrono(timeout));
}

bool TerminationSignal::requested() const {
  absl::MutexLock lock(&mutex_);
  return requested_;
}

void TerminationSignal::Request() {
  absl::MutexLock lock(&mutex_);
  requested_ = true;
}

void TerminationSignal::ExitAtOnce(bool on) { exit_at_once_ = on; }

void TerminationSignal::Run() {
  bool seen = false;
  for (;;) {
    pollfd fds[2] = {{signal_fd_, POLLIN, 0}, {stop_fd_, POLLIN, 0}};
    if (poll(fds, 2, -1) < 0) continue;  // EINTR: nothing else can happen to two open files.
    if (fds[1].revents != 0) return;
    signalfd_siginfo info;
    if (read(signal_fd_, &info, sizeof(info)) != sizeof(info)) continue;
    if (seen || exit_at_once_) _exit(128 + static_cast<int>(info.ssi_signo));
    seen = true;
    Request();
  }
}

}  // namespace baton
