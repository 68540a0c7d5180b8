#include "router/placement.h"

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"

namespace baton {
namespace {

// Blocks that may be had, as far as the router knows. Unknown load counts as room: the worker
// decides.
int64_t Room(const WorkerEntry& decode) {
  if (decode.load.blocks_total() == 0) return INT64_MAX;
  return static_cast<int64_t>(decode.load.blocks_free()) + decode.load.blocks_cached() -
         static_cast<int64_t>(decode.blocks_pledged);
}

// Workers that may be used, even if they are away just now.
bool Counts(const WorkerEntry& worker, v1::Role role) {
  return worker.role == role && worker.state != WorkerState::kRefused;
}

// One that has not said yet what it is may be of any size.
bool IsKnown(const WorkerEntry& worker) { return worker.hello.incarnation() != 0; }

// Whether so many tokens fit into an empty KV cache of this worker.
bool Fits(const WorkerEntry& worker, uint64_t tokens) {
  return worker.hello.blocks_total() == 0 ||
         BlocksFor(worker, tokens) <= worker.hello.blocks_total();
}

bool AtSequencesMax(const WorkerEntry& worker) {
  return worker.hello.sequences_max() != 0 && worker.attempts >= worker.hello.sequences_max();
}

bool MayAdmit(const WorkerEntry& decode, const PlacementNeed& need, Instant now) {
  if (decode.role != v1::ROLE_DECODE || !decode.ready() || now < decode.full_until) return false;
  if (!Fits(decode, need.total_tokens_max)) return false;
  if (AtSequencesMax(decode)) return false;
  // With nothing on it the worker is asked whatever the load says: it may be stale.
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
    const bool home = need.home.has_value() && need.home->worker == worker->id &&
                      need.home->incarnation == worker->incarnation();
    return std::tuple(need.avoid == worker->id, !home, worker->attempts, -Room(*worker),
                      worker->id);
  };
  std::sort(candidates.begin(), candidates.end(),
            [&rank](const WorkerEntry* a, const WorkerEntry* b) { return rank(a) < rank(b); });
  return candidates;
}

// Prefill workers that can take the prompt, best first. `limited`: those with work take no more
// than need.prefill_tokens_max.
std::vector<const WorkerEntry*> PrefillCandidates(const WorkerTable& workers,
                                                  const PlacementNeed& need, bool limited,
                                                  Instant now) {
  std::vector<const WorkerEntry*> candidates;
  for (const auto& [id, worker] : workers.all()) {
    if (worker.role != v1::ROLE_PREFILL || !worker.ready() || now < worker.full_until) continue;
    if (!Fits(worker, need.tokens) || AtSequencesMax(worker)) continue;
    if (limited && worker.prefill_tokens != 0 &&
        worker.prefill_tokens + need.prefill_tokens > need.prefill_tokens_max) {
      continue;
    }
    candidates.push_back(&worker);
  }
  const auto rank = [&need](const WorkerEntry* worker) {
    return std::tuple(need.avoid == worker->id,
                      std::max(worker->prefill_tokens, worker->load.tokens_queued()),
                      worker->attempts, worker->id);
  };
  std::sort(candidates.begin(), candidates.end(),
            [&rank](const WorkerEntry* a, const WorkerEntry* b) { return rank(a) < rank(b); });
  return candidates;
}

// The first that reaches `decode`.
std::optional<WorkerId> FirstReaching(const std::vector<const WorkerEntry*>& prefills,
                                      const PairTable& pairs, WorkerId decode) {
  for (const WorkerEntry* prefill : prefills) {
    if (pairs.state(prefill->id, decode) == PairState::kHealthy) return prefill->id;
  }
  return std::nullopt;
}

// Whether waiting for a prefill worker makes sense: one is there and its pair is not known to be
// broken.
bool PrefillMayCome(const WorkerTable& workers, const PairTable& pairs, WorkerId decode,
                    const PlacementNeed& need) {
  for (const auto& [id, worker] : workers.all()) {
    if (worker.role == v1::ROLE_PREFILL && worker.ready() && Fits(worker, need.tokens) &&
        !pairs.broken(id, decode)) {
      return true;
    }
  }
  return false;
}

bool AnyPrefillReady(const WorkerTable& workers, const PlacementNeed& need) {
  return std::any_of(workers.all().begin(), workers.all().end(), [&need](const auto& item) {
    return item.second.role == v1::ROLE_PREFILL && item.second.ready() &&
           Fits(item.second, need.tokens);
  });
}

}  // namespace

uint64_t BlocksFor(const WorkerEntry& worker, uint64_t tokens) {
  const uint64_t block_tokens = worker.hello.model().block_tokens();
  return block_tokens == 0 ? 0 : (tokens + block_tokens - 1) / block_tokens;
}

uint32_t KvTokensMax(const WorkerEntry& worker) {
  const uint64_t tokens =
      uint64_t{worker.hello.blocks_total()} * worker.hello.model().block_tokens();
  return tokens == 0 ? UINT32_MAX : static_cast<uint32_t>(std::min<uint64_t>(tokens, UINT32_MAX));
}

absl::Status CheckFits(const WorkerTable& workers, const PlacementNeed& need) {
  uint64_t largest_decode = 0;
  uint64_t largest_prefill = 0;
  bool decode_fits = false;
  bool prefill_fits = false;
  bool decode_known = false;
  bool prefill_known = false;
  for (const auto& [id, worker] : workers.all()) {
    const uint64_t capacity =
        uint64_t{worker.hello.blocks_total()} * worker.hello.model().block_tokens();
    if (Counts(worker, v1::ROLE_DECODE)) {
      const bool fits = Fits(worker, need.total_tokens_max);
      decode_known |= IsKnown(worker);
      decode_fits |= fits;
      prefill_fits |= fits && (worker.hello.local_prefill() || !IsKnown(worker));
      largest_decode = std::max(largest_decode, capacity);
    }
    if (Counts(worker, v1::ROLE_PREFILL)) {
      prefill_known |= IsKnown(worker);
      prefill_fits |= Fits(worker, need.tokens);
      largest_prefill = std::max(largest_prefill, capacity);
    }
  }
  if (decode_known && !decode_fits && !need.first_token_only) {
    const std::string asked = need.tokens >= largest_decode
                                  ? absl::StrCat("prompt: ", need.tokens, " tokens")
                                  : absl::StrCat("max_tokens: prompt and answer may grow to ",
                                                 need.total_tokens_max, " tokens");
    return absl::InvalidArgumentError(absl::StrCat(
        asked, ", but the largest KV cache of a decode worker holds ", largest_decode));
  }
  if (prefill_known && !prefill_fits) {
    return absl::InvalidArgumentError(absl::StrCat("prompt: ", need.tokens,
                                                   " tokens, but the largest KV cache of a prefill "
                                                   "worker holds ",
                                                   largest_prefill));
  }
  return absl::OkStatus();
}

bool ReadyCouldTake(const WorkerTable& workers, const PlacementNeed& need) {
  const bool prefill = AnyPrefillReady(workers, need);
  if (need.first_token_only && prefill) return true;
  return std::any_of(workers.all().begin(), workers.all().end(), [&](const auto& item) {
    const WorkerEntry& worker = item.second;
    return worker.role == v1::ROLE_DECODE && worker.ready() &&
           Fits(worker, need.total_tokens_max) && (prefill || worker.hello.local_prefill());
  });
}

std::optional<WorkerId> ChoosePrefill(const WorkerTable& workers, const PairTable& pairs,
                                      WorkerId decode, uint32_t tokens,
                                      std::optional<WorkerId> avoid, Instant now) {
  const PlacementNeed need{.tokens = tokens, .avoid = avoid};
  return FirstReaching(PrefillCandidates(workers, need, /*limited=*/false, now), pairs, decode);
}

std::optional<WorkerId> ChooseNextHome(const WorkerTable& workers, const PairTable& pairs,
                                       WorkerId from, const PlacementNeed& need, Instant now) {
  for (const WorkerEntry* decode : DecodeCandidates(workers, need, now)) {
    // One that always computes prompts itself would not take the KV.
    if (decode->id != from && !decode->hello.local_prefill_always() &&
        pairs.state(from, decode->id) == PairState::kHealthy) {
      return decode->id;
    }
  }
  return std::nullopt;
}

std::optional<Placement> ChoosePlacement(const WorkerTable& workers, const PairTable& pairs,
                                         const PlacementNeed& need, Instant now) {
  const std::vector<const WorkerEntry*> prefills =
      PrefillCandidates(workers, need, /*limited=*/true, now);
  if (need.first_token_only && AnyPrefillReady(workers, need)) {
    if (prefills.empty()) return std::nullopt;
    return Placement{.decode = std::nullopt, .prefill = prefills.front()->id};
  }
  const std::vector<const WorkerEntry*> candidates = DecodeCandidates(workers, need, now);
  for (const WorkerEntry* decode : candidates) {
    if (decode->hello.local_prefill_always()) {
      return Placement{.decode = decode->id, .prefill = std::nullopt};
    }
    const auto prefill = FirstReaching(prefills, pairs, decode->id);
    if (prefill.has_value()) return Placement{.decode = decode->id, .prefill = prefill};
  }
  for (const WorkerEntry* decode : candidates) {
    if (decode->hello.local_prefill() && !PrefillMayCome(workers, pairs, decode->id, need)) {
      return Placement{.decode = decode->id, .prefill = std::nullopt};
    }
  }
  return std::nullopt;
}

}  // namespace baton
