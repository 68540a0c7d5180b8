#include "router/placement.h"

#include <algorithm>
#include <tuple>
#include <vector>

namespace baton {
namespace {

// Blocks that may be had, as far as the router knows. Unknown load counts as room: the worker
// decides.
int64_t Room(const WorkerEntry& decode) {
  if (decode.load.blocks_total() == 0) return INT64_MAX;
  return static_cast<int64_t>(decode.load.blocks_free()) + decode.load.blocks_cached() -
         static_cast<int64_t>(decode.blocks_pledged);
}

bool MayAdmit(const WorkerEntry& decode, const PlacementNeed& need, Instant now) {
  if (decode.role != v1::ROLE_DECODE || !decode.ready() || now < decode.full_until) return false;
  if (decode.hello.sequences_max() != 0 && decode.attempts >= decode.hello.sequences_max())
    return false;
  // With nothing on it the worker is asked whatever the numbers say: they may be stale, and its
  // refusal of a request that can never fit carries the true ones.
  if (decode.attempts == 0) return true;
  return Room(decode) >= static_cast<int64_t>(BlocksFor(decode, need.tokens + 1));
}

// Decode workers that may admit, best first.
std::vector<const WorkerEntry*> DecodeCandidates(const WorkerTable& workers,
                                                 const PlacementNeed& need, Instant now) {
  std::vector<const WorkerEntry*> candidates;
  for (const auto& [id, worker] : workers.all()) {
    if (MayAdmit(worker, need, now)) candidates.push_back(&worker);
  }
  const auto rank = [&need](const WorkerEntry* worker) {
    return std::tuple(need.avoid == worker->id, worker->attempts, -Room(*worker), worker->id);
  };
  std::sort(candidates.begin(), candidates.end(),
            [&rank](const WorkerEntry* a, const WorkerEntry* b) { return rank(a) < rank(b); });
  return candidates;
}

// `decode` absent: any prefill worker will do. `tokens_max` absent: however much is queued.
std::optional<WorkerId> BestPrefill(const WorkerTable& workers, const PairTable& pairs,
                                    std::optional<WorkerId> decode, const PlacementNeed& need,
                                    bool limited, Instant now) {
  const WorkerEntry* best = nullptr;
  const auto rank = [&need](const WorkerEntry& worker) {
    return std::tuple(need.avoid == worker.id,
                      std::max(worker.prefill_tokens, worker.load.tokens_queued()), worker.attempts,
                      worker.id);
  };
  for (const auto& [id, worker] : workers.all()) {
    if (worker.role != v1::ROLE_PREFILL || !worker.ready() || now < worker.full_until) continue;
    if (decode.has_value() && pairs.state(id, *decode) != PairState::kHealthy) continue;
    if (limited && worker.prefill_tokens != 0 &&
        worker.prefill_tokens + need.tokens > need.prefill_tokens_max) {
      continue;
    }
    if (best == nullptr || rank(worker) < rank(*best)) best = &worker;
  }
  if (best == nullptr) return std::nullopt;
  return best->id;
}

// Whether waiting for a prefill worker makes sense: one is there and its pair is not known to be
// broken.
bool PrefillMayCome(const WorkerTable& workers, const PairTable& pairs, WorkerId decode) {
  for (const auto& [id, worker] : workers.all()) {
    if (worker.role == v1::ROLE_PREFILL && worker.ready() && !pairs.broken(id, decode)) {
      return true;
    }
  }
  return false;
}

bool AnyPrefillReady(const WorkerTable& workers) {
  return std::any_of(workers.all().begin(), workers.all().end(), [](const auto& item) {
    return item.second.role == v1::ROLE_PREFILL && item.second.ready();
  });
}

}  // namespace

uint64_t BlocksFor(const WorkerEntry& worker, uint64_t tokens) {
  const uint64_t block_tokens = worker.hello.model().block_tokens();
  return block_tokens == 0 ? 0 : (tokens + block_tokens - 1) / block_tokens;
}

std::optional<WorkerId> ChoosePrefill(const WorkerTable& workers, const PairTable& pairs,
                                      WorkerId decode, std::optional<WorkerId> avoid, Instant now) {
  return BestPrefill(workers, pairs, decode, PlacementNeed{.avoid = avoid}, /*limited=*/false, now);
}

std::optional<Placement> ChoosePlacement(const WorkerTable& workers, const PairTable& pairs,
                                         const PlacementNeed& need, Instant now) {
  if (need.first_token_only && AnyPrefillReady(workers)) {
    const auto prefill = BestPrefill(workers, pairs, std::nullopt, need, /*limited=*/true, now);
    if (!prefill.has_value()) return std::nullopt;
    return Placement{.decode = std::nullopt, .prefill = prefill};
  }
  const std::vector<const WorkerEntry*> candidates = DecodeCandidates(workers, need, now);
  for (const WorkerEntry* decode : candidates) {
    const auto prefill = BestPrefill(workers, pairs, decode->id, need, /*limited=*/true, now);
    if (prefill.has_value()) return Placement{.decode = decode->id, .prefill = prefill};
  }
  for (const WorkerEntry* decode : candidates) {
    if (decode->hello.local_prefill() && !PrefillMayCome(workers, pairs, decode->id)) {
      return Placement{.decode = decode->id, .prefill = std::nullopt};
    }
  }
  return std::nullopt;
}

}  // namespace baton
