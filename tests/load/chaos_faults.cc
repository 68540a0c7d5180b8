#include "tests/load/chaos_faults.h"

#include <grpcpp/client_context.h>

#include <algorithm>
#include <csignal>
#include <utility>

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
    case Fault::kCut:
      return "pair cut";
    case Fault::kRouterKill:
      return "router killed";
  }
  return "unknown";
}

ChaosFaults::ChaosFaults(Cluster* cluster, WorkerNetwork* network, const ChaosOptions& options,
                         std::function<void(bool up)> on_router)
    : cluster_(cluster),
      network_(network),
      options_(options),
      on_router_(std::move(on_router)),
      random_(options.seed),
      kinds_{Fault::kKill, Fault::kTerminate, Fault::kDrain, Fault::kPause, Fault::kLongPause} {
  if (network != nullptr) kinds_.push_back(Fault::kCut);
  if (options.router_faults) kinds_.push_back(Fault::kRouterKill);
  for (int i = 0; i < options.prefill; ++i) targets_.push_back({.decode = false, .index = i});
  for (int i = 0; i < options.decode; ++i) targets_.push_back({.decode = true, .index = i});
  next_fault_ = Now() + options.interval;
}

absl::Status ChaosFaults::Tick(Instant now) {
  BATON_RETURN_IF_ERROR(CheckAlive());
  BATON_RETURN_IF_ERROR(RecoverRouter(now));
  BATON_RETURN_IF_ERROR(MendCuts(now));
  for (Target& target : targets_) BATON_RETURN_IF_ERROR(Recover(target, now));
  if (now < next_fault_) return absl::OkStatus();
  next_fault_ = now + Between(options_.interval / 2, options_.interval * 3 / 2);
  const Fault fault = kinds_[random_() % kinds_.size()];
  BATON_ASSIGN_OR_RETURN(const bool struck, Strike(fault, now));
  if (struck) ++counts_[static_cast<size_t>(fault)];
  return absl::OkStatus();
}

absl::Status ChaosFaults::CheckAlive() {
  const auto check = [](Process& process) {
    const absl::StatusOr<int> exit_code = process.Wait(Duration::zero());
    if (!exit_code.ok()) return absl::OkStatus();
    return absl::InternalError(absl::StrCat("a process died that nobody had killed, with status ",
                                            *exit_code, "; the end of ", process.log(), ":\n",
                                            process.LogTail()));
  };
  for (const Target& target : targets_) {
    if (target.state == State::kLeaving || target.state == State::kDown) continue;
    BATON_RETURN_IF_ERROR(check(ProcessOf(target)));
  }
  return router_up_ ? check(cluster_->router()) : absl::OkStatus();
}

absl::Status ChaosFaults::End(Duration timeout) {
  next_fault_ = Instant::max();
  for (const Instant deadline = Now() + timeout; Now() < deadline;) {
    BATON_RETURN_IF_ERROR(Tick(Now()));
    if (AllUp()) return absl::OkStatus();
    absl::Notification().WaitForNotificationWithTimeout(absl::Milliseconds(100));
  }
  return absl::DeadlineExceededError("a worker did not come back");
}

bool ChaosFaults::AllUp() const {
  return router_up_ && cuts_.empty() &&
         std::all_of(targets_.begin(), targets_.end(),
                     [](const Target& target) { return target.state == State::kUp; });
}

bool ChaosFaults::MayFail(const Target& target) const {
  if (target.state != State::kUp) return false;
  if (options_.spare_first && target.index == 0) return false;
  if (!target.decode) return true;
  return std::any_of(targets_.begin(), targets_.end(), [&target](const Target& other) {
    return other.decode && other.index != target.index && other.state == State::kUp;
  });
}

absl::StatusOr<bool> ChaosFaults::Strike(Fault fault, Instant now) {
  switch (fault) {
    case Fault::kKill:
    case Fault::kTerminate:
    case Fault::kDrain:
    case Fault::kPause:
    case Fault::kLongPause:
      return StrikeWorker(fault, now);
    case Fault::kCut:
      return CutSomePair(now);
    case Fault::kRouterKill:
      return KillRouter(now);
  }
  return false;
}

bool ChaosFaults::StrikeWorker(Fault fault, Instant now) {
  std::vector<Target*> possible;
  for (Target& target : targets_) {
    if (MayFail(target)) possible.push_back(&target);
  }
  if (possible.empty()) return false;
  Target& target = *possible[random_() % possible.size()];
  if (fault == Fault::kDrain) {
    if (!Drain(target)) return false;
    target.state = State::kLeaving;
  } else if (fault == Fault::kKill || fault == Fault::kTerminate) {
    ProcessOf(target).Signal(fault == Fault::kKill ? SIGKILL : SIGTERM);
    target.state = State::kLeaving;
  } else {
    ProcessOf(target).Signal(SIGSTOP);
    target.state = State::kPaused;
    target.due = now + (fault == Fault::kPause ? Between(milliseconds(200), milliseconds(2000))
                                               : Between(seconds(4), seconds(8)));
  }
  return true;
}

// A session that has just broken cannot be told anything.
bool ChaosFaults::Drain(const Target& target) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + seconds(5));
  v1::DrainWorkerRequest request;
  request.set_address(AddressOf(target));
  v1::DrainWorkerResponse response;
  return cluster_->stub().DrainWorker(&context, request, &response).ok();
}

absl::StatusOr<bool> ChaosFaults::CutSomePair(Instant now) {
  const CutPair pair = {
      .prefill = static_cast<int>(random_() % static_cast<uint64_t>(options_.prefill)),
      .decode = static_cast<int>(random_() % static_cast<uint64_t>(options_.decode)),
      .due = now + Between(seconds(1), seconds(15))};
  for (const CutPair& other : cuts_) {
    if (other.prefill == pair.prefill && other.decode == pair.decode) return false;
  }
  BATON_RETURN_IF_ERROR(network_->Cut(pair.prefill, pair.decode));
  cuts_.push_back(pair);
  return true;
}

absl::Status ChaosFaults::MendCuts(Instant now) {
  for (auto pair = cuts_.begin(); pair != cuts_.end();) {
    if (now < pair->due) {
      ++pair;
      continue;
    }
    BATON_RETURN_IF_ERROR(network_->Mend(pair->prefill, pair->decode));
    pair = cuts_.erase(pair);
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> ChaosFaults::KillRouter(Instant now) {
  if (!router_up_) return false;
  on_router_(false);
  cluster_->router().Signal(SIGKILL);
  BATON_RETURN_IF_ERROR(cluster_->router().Wait(seconds(10)).status());
  router_up_ = false;
  router_due_ = now + Between(milliseconds(0), seconds(2));
  return true;
}

absl::Status ChaosFaults::RecoverRouter(Instant now) {
  if (router_up_ || now < router_due_) return absl::OkStatus();
  BATON_RETURN_IF_ERROR(cluster_->RestartRouter());
  router_up_ = true;
  on_router_(true);
  return absl::OkStatus();
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
      if (!router_up_) break;
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
