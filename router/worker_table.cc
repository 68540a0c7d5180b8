#include "router/worker_table.h"

#include <algorithm>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/base/check.h"

namespace baton {
namespace {

std::string ShortHex(const std::string& bytes) {
  return absl::BytesToHexString(bytes.substr(0, 6));
}

}  // namespace

std::string WorkerStateName(WorkerState state) {
  switch (state) {
    case WorkerState::kConnecting:
      return "connecting";
    case WorkerState::kReady:
      return "ready";
    case WorkerState::kDraining:
      return "draining";
    case WorkerState::kRefused:
      return "refused";
    case WorkerState::kLost:
      return "lost";
  }
  return "unknown";
}

std::string RoleName(v1::Role role) {
  if (role == v1::ROLE_PREFILL) return "prefill";
  return role == v1::ROLE_DECODE ? "decode" : "unknown";
}

WorkerId WorkerTable::Add(std::string address, v1::Role role) {
  const WorkerId id{next_id_++};
  WorkerEntry& worker = workers_[id];
  worker.id = id;
  worker.address = std::move(address);
  worker.role = role;
  return id;
}

void WorkerTable::Remove(WorkerId id) {
  const auto it = workers_.find(id);
  BATON_CHECK(it != workers_.end());
  BATON_CHECK(it->second.attempts == 0);
  workers_.erase(it);
}

WorkerEntry* WorkerTable::Find(WorkerId id) {
  const auto it = workers_.find(id);
  return it == workers_.end() ? nullptr : &it->second;
}

bool WorkerTable::AnyReady(v1::Role role) const {
  return std::any_of(workers_.begin(), workers_.end(), [role](const auto& entry) {
    return entry.second.role == role && entry.second.ready();
  });
}

const WorkerEntry* WorkerTable::Find(WorkerId id) const {
  const auto it = workers_.find(id);
  return it == workers_.end() ? nullptr : &it->second;
}

void WorkerTable::Up(WorkerId id, const v1::WorkerHello& hello) {
  WorkerEntry* worker = Find(id);
  BATON_CHECK(worker != nullptr);
  BATON_CHECK(!worker->serving());
  const absl::Status verdict = Judge(*worker, hello);
  worker->hello = hello;
  worker->load.Clear();
  worker->attempts = 0;
  worker->prefill_tokens = 0;
  worker->blocks_pledged = 0;
  worker->full_until = Instant{};
  worker->draining = worker->told_to_drain == worker->incarnation();
  worker->drained = false;
  worker->state = !verdict.ok()      ? WorkerState::kRefused
                  : worker->draining ? WorkerState::kDraining
                                     : WorkerState::kReady;
  worker->reason = std::string(verdict.message());
  if (worker->state == WorkerState::kDraining) worker->reason = "the worker was told to go";
  worker->connected = true;
}

std::vector<WorkerId> WorkerTable::JudgeAgain() {
  std::vector<WorkerId> accepted;
  for (auto& [id, worker] : workers_) {
    if (worker.state != WorkerState::kRefused || !worker.connected) continue;
    const absl::Status verdict = Judge(worker, worker.hello);
    worker.reason = std::string(verdict.message());
    if (!verdict.ok()) continue;
    worker.state = worker.draining ? WorkerState::kDraining : WorkerState::kReady;
    accepted.push_back(id);
  }
  return accepted;
}

void WorkerTable::Down(WorkerId id, const absl::Status& why) {
  WorkerEntry* worker = Find(id);
  BATON_CHECK(worker != nullptr);
  if (absl::IsFailedPrecondition(why)) {
    worker->state = WorkerState::kRefused;  // It refused this router.
  } else if (worker->state != WorkerState::kConnecting) {
    worker->state = WorkerState::kLost;
  }
  worker->reason = std::string(why.message());
  worker->connected = false;
  worker->load.Clear();
}

absl::Status WorkerTable::Judge(const WorkerEntry& worker, const v1::WorkerHello& hello) const {
  if (hello.role() != worker.role) {
    return absl::FailedPreconditionError(
        absl::StrCat("listed as ", RoleName(worker.role), " but says ", RoleName(hello.role())));
  }
  const v1::ModelInfo& model = hello.model();
  if (policy_.vocab_size != 0 && model.vocab_size() != policy_.vocab_size) {
    return absl::FailedPreconditionError(
        absl::StrCat("another model: vocabulary of ", model.vocab_size(),
                     " tokens, the router's model has ", policy_.vocab_size));
  }
  if (policy_.context_tokens != 0 && model.context_tokens() != policy_.context_tokens) {
    return absl::FailedPreconditionError(
        absl::StrCat("another model: context of ", model.context_tokens(),
                     " tokens, the router's model has ", policy_.context_tokens));
  }
  if (!policy_.architecture.empty() && model.architecture() != policy_.architecture) {
    return absl::FailedPreconditionError(absl::StrCat(
        "another model: ", model.architecture(), ", the router's model is ", policy_.architecture));
  }
  if (!policy_.model_fingerprint.empty() &&
      model.model_fingerprint() != policy_.model_fingerprint) {
    return absl::FailedPreconditionError(
        absl::StrCat("another model: fingerprint ", ShortHex(model.model_fingerprint()),
                     ", the router requires ", ShortHex(policy_.model_fingerprint)));
  }
  for (const auto& [other_id, other] : workers_) {
    if (other_id == worker.id || !other.serving()) continue;
    const v1::ModelInfo& cluster = other.hello.model();
    if (other.incarnation() == static_cast<Incarnation>(hello.incarnation())) {
      return absl::FailedPreconditionError(absl::StrCat("the same process as ", other.address));
    }
    if (model.model_fingerprint() != cluster.model_fingerprint()) {
      return absl::FailedPreconditionError(
          absl::StrCat("another model: fingerprint ", ShortHex(model.model_fingerprint()), ", ",
                       other.address, " has ", ShortHex(cluster.model_fingerprint())));
    }
    if (model.layout_fingerprint() != cluster.layout_fingerprint()) {
      return absl::FailedPreconditionError(
          absl::StrCat("another KV layout: fingerprint ",
                       absl::Hex(model.layout_fingerprint(), absl::kZeroPad16), ", ", other.address,
                       " has ", absl::Hex(cluster.layout_fingerprint(), absl::kZeroPad16)));
    }
    if (!policy_.mixed_numerics && model.numerics() != cluster.numerics()) {
      return absl::FailedPreconditionError(absl::StrCat(
          "other numerics: ", model.numerics(), ", ", other.address, " has ", cluster.numerics()));
    }
  }
  return absl::OkStatus();
}

}  // namespace baton
