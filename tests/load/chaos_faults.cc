#include "tests/load/chaos_faults.h"

#include <grpcpp/client_context.h>

#include <algorithm>
#include <csignal>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "common/base/status_macros.h"

namespace baton {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

}  // namespace

std::string FaultName(Fault fault) {
  switch (fault) {
    case Fault::kKill:
      return "killed";
    case Fault::kTerminate:
      return "terminated";
    case Fault::kDrain:
      return "drained";
    case Fault::kPause:
      return "paused";
    case Fault::kLongPause:
      return "paused for long";
  }
  return "unknown";
}

ChaosFaults::ChaosFaults(Cluster* cluster, int prefill, int decode, Duration interval,
                         uint64_t seed)
    : cluster_(cluster), interval_(interval), random_(seed) {
  for (int i = 0; i < prefill; ++i) targets_.push_back({.decode = false, .index = i});
  for (int i = 0; i < decode; ++i) targets_.push_back({.decode = true, .index = i});
  next_fault_ = Now() + interval;
}

absl::Status ChaosFaults::Tick(Instant now) {
  for (Target& target : targets_) BATON_RETURN_IF_ERROR(Recover(target, now));
  if (now < next_fault_) return absl::OkStatus();
  next_fault_ = now + Between(interval_ / 2, interval_ * 3 / 2);
  std::vector<Target*> possible;
  for (Target& target : targets_) {
    if (MayFail(target)) possible.push_back(&target);
  }
  if (!possible.empty()) Strike(*possible[random_() % possible.size()], now);
  return absl::OkStatus();
}

absl::Status ChaosFaults::End(Duration timeout) {
  next_fault_ = Instant::max();
  const auto up = [](const Target& target) { return target.state == State::kUp; };
  for (const Instant deadline = Now() + timeout; Now() < deadline;) {
    BATON_RETURN_IF_ERROR(Tick(Now()));
    if (std::all_of(targets_.begin(), targets_.end(), up)) return absl::OkStatus();
    absl::Notification().WaitForNotificationWithTimeout(absl::Milliseconds(100));
  }
  return absl::DeadlineExceededError("a worker did not come back");
}

bool ChaosFaults::MayFail(const Target& target) const {
  if (target.state != State::kUp) return false;
  if (!target.decode) return true;
  return std::any_of(targets_.begin(), targets_.end(), [&target](const Target& other) {
    return other.decode && other.index != target.index && other.state == State::kUp;
  });
}

void ChaosFaults::Strike(Target& target, Instant now) {
  const Fault fault = static_cast<Fault>(random_() % kFaultCount);
  ++counts_[static_cast<size_t>(fault)];
  switch (fault) {
    case Fault::kKill:
      ProcessOf(target).Signal(SIGKILL);
      target.state = State::kLeaving;
      break;
    case Fault::kTerminate:
      ProcessOf(target).Signal(SIGTERM);
      target.state = State::kLeaving;
      break;
    case Fault::kDrain: {
      grpc::ClientContext context;
      v1::DrainWorkerRequest request;
      request.set_address(AddressOf(target));
      v1::DrainWorkerResponse response;
      const grpc::Status told = cluster_->stub().DrainWorker(&context, request, &response);
      // A session that has just broken cannot be told anything.
      if (told.ok()) target.state = State::kLeaving;
      break;
    }
    case Fault::kPause:
    case Fault::kLongPause:
      ProcessOf(target).Signal(SIGSTOP);
      target.state = State::kPaused;
      target.due = now + (fault == Fault::kPause ? Between(milliseconds(200), milliseconds(2000))
                                                 : Between(seconds(4), seconds(8)));
      break;
  }
}

absl::Status ChaosFaults::Recover(Target& target, Instant now) {
  switch (target.state) {
    case State::kUp:
      break;
    case State::kLeaving:
      if (!ProcessOf(target).Wait(Duration::zero()).ok()) break;
      target.state = State::kDown;
      target.due = now + Between(milliseconds(500), seconds(3));
      break;
    case State::kDown:
      if (now < target.due) break;
      BATON_RETURN_IF_ERROR(target.decode ? cluster_->RestartDecode(target.index)
                                          : cluster_->RestartPrefill(target.index));
      target.state = State::kComing;
      break;
    case State::kPaused:
      if (now < target.due) break;
      ProcessOf(target).Signal(SIGCONT);
      target.state = State::kComing;
      break;
    case State::kComing: {
      const absl::StatusOr<v1::GetClusterResponse> status = cluster_->Status();
      if (!status.ok()) break;
      for (const v1::WorkerStatus& worker : status->workers()) {
        const bool ready = worker.address() == AddressOf(target) && worker.state() == "ready";
        if (ready) target.state = State::kUp;
      }
      break;
    }
  }
  return absl::OkStatus();
}

Process& ChaosFaults::ProcessOf(const Target& target) {
  return target.decode ? cluster_->decode(target.index) : cluster_->prefill(target.index);
}

const std::string& ChaosFaults::AddressOf(const Target& target) const {
  return target.decode ? cluster_->decode_address(target.index)
                       : cluster_->prefill_address(target.index);
}

Duration ChaosFaults::Between(Duration least, Duration most) {
  const auto width = static_cast<uint64_t>((most - least).count());
  return least + Duration(static_cast<Duration::rep>(random_() % (width + 1)));
}

}  // namespace baton
