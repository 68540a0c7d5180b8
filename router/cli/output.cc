#include "router/cli/output.h"

#include <nlohmann/json.hpp>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/request/answer.h"
#include "router/worker_table.h"

namespace baton::cli {
namespace {

using Json = nlohmann::ordered_json;

// One line; bytes that are no UTF-8 (there should be none) do not make it fail.
std::string Dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string IncarnationText(uint64_t incarnation) {
  return incarnation == 0 ? "" : absl::StrCat(absl::Hex(incarnation, absl::kZeroPad16));
}

Json LoadJson(const v1::WorkerLoad& load) {
  return {{"blocks_total", load.blocks_total()},
          {"blocks_free", load.blocks_free()},
          {"blocks_cached", load.blocks_cached()},
          {"blocks_in_use", load.blocks_in_use()},
          {"blocks_receiving", load.blocks_receiving()},
          {"blocks_quarantined", load.blocks_quarantined()},
          {"sequences_running", load.sequences_running()},
          {"sequences_waiting", load.sequences_waiting()},
          {"tokens_queued", load.tokens_queued()},
          {"prefill_tokens_per_second", load.prefill_tokens_per_second()},
          {"decode_tokens_per_second", load.decode_tokens_per_second()},
          {"swap_blocks_total", load.swap_blocks_total()},
          {"swap_blocks_used", load.swap_blocks_used()}};
}

}  // namespace

std::string TextJson(const std::string& text) { return Dump({{"text", text}}); }

std::string ClusterJson(const v1::GetClusterResponse& cluster, const v1::ModelInfo& model) {
  Json workers = Json::array();
  for (const v1::WorkerStatus& worker : cluster.workers()) {
    workers.push_back({{"address", worker.address()},
                       {"role", RoleName(worker.role())},
                       {"state", worker.state()},
                       {"reason", worker.reason()},
                       {"incarnation", IncarnationText(worker.incarnation())},
                       {"version", worker.version()},
                       {"load", LoadJson(worker.load())}});
  }
  return Dump({{"model", model.name()},
               {"architecture", model.architecture()},
               {"model_fingerprint", absl::BytesToHexString(model.model_fingerprint())},
               {"numerics", model.numerics()},
               {"context_tokens", model.context_tokens()},
               {"requests_queued", cluster.requests_queued()},
               {"requests_running", cluster.requests_running()},
               {"router_incarnation", IncarnationText(cluster.router_incarnation())},
               {"version", cluster.version()},
               {"workers", std::move(workers)}});
}

std::string ClusterTable(const v1::GetClusterResponse& cluster, const v1::ModelInfo& model) {
  std::string text =
      absl::StrFormat("model %s (%s, context %d)   router %s   queued %d   running %d\n",
                      model.name(), model.architecture(), model.context_tokens(), cluster.version(),
                      cluster.requests_queued(), cluster.requests_running());
  std::vector<std::vector<std::string>> rows = {{"WORKER", "ROLE", "STATE", "BLOCKS", "FREE",
                                                 "CACHED", "IN USE", "RUNNING", "WAITING",
                                                 "REASON"}};
  for (const v1::WorkerStatus& worker : cluster.workers()) {
    const v1::WorkerLoad& load = worker.load();
    const uint32_t in_use =
        load.blocks_in_use() + load.blocks_receiving() + load.blocks_quarantined();
    rows.push_back({worker.address(), RoleName(worker.role()), worker.state(),
                    absl::StrCat(load.blocks_total()), absl::StrCat(load.blocks_free()),
                    absl::StrCat(load.blocks_cached()), absl::StrCat(in_use),
                    absl::StrCat(load.sequences_running()), absl::StrCat(load.sequences_waiting()),
                    worker.reason()});
  }
  if (cluster.workers().empty()) return text + "no workers\n";
  return text + Table(rows);
}

DrainProgress ProgressOfDrain(const v1::GetClusterResponse& cluster, const std::string& address,
                              uint64_t incarnation) {
  using State = DrainProgress::State;
  for (const v1::WorkerStatus& worker : cluster.workers()) {
    if (worker.address() != address) continue;
    // A router that has just begun does not know yet who is there.
    const bool unknown = worker.state() == "connecting";
    if (worker.incarnation() != incarnation && !unknown) continue;
    const bool there = worker.state() == "ready" || worker.state() == "draining";
    if (worker.drained()) return {State::kDrained, there, address + " has drained"};
    if (!there) {
      return {State::kSilent, there,
              absl::StrCat(address, " is ", worker.state(), " (", worker.reason(),
                           "); what was left on it goes on at other workers")};
    }
    if (worker.state() == "ready") {
      return {State::kForgotten, there,
              absl::StrCat("the router has begun anew and lets ", address, " work on; ask again")};
    }
    const v1::WorkerLoad& load = worker.load();
    return {State::kDraining, there,
            absl::StrFormat("%s drains: %d sequences running, %d waiting", address,
                            load.sequences_running(), load.sequences_waiting())};
  }
  return {State::kGone, false,
          absl::StrCat(address, " is gone; what was left on it, if anything, goes on elsewhere")};
}

}  // namespace baton::cli
