#include "router/pair_table.h"

#include <algorithm>

namespace baton {
namespace {

bool SendsKv(const WorkerEntry& worker) {
  return worker.role == v1::ROLE_PREFILL
             ? worker.ready()
             : worker.state == WorkerState::kDraining && worker.attempts > 0;
}

}  // namespace

PairState PairTable::state(WorkerId prefill, WorkerId decode) const {
  const auto it = pairs_.find(Key(prefill, decode));
  return it == pairs_.end() ? PairState::kUnknown : it->second.state;
}

bool PairTable::broken(WorkerId prefill, WorkerId decode) const {
  const auto it = pairs_.find(Key(prefill, decode));
  return it != pairs_.end() && it->second.failures > 0;
}

void PairTable::Forget(WorkerId worker) {
  std::erase_if(pairs_, [worker](const auto& item) {
    return item.first.first == worker || item.first.second == worker;
  });
}

void PairTable::Succeeded(WorkerId prefill, WorkerId decode) {
  Pair& pair = pairs_[Key(prefill, decode)];
  LeaveState(pair.state);
  pair.state = PairState::kHealthy;
  pair.failures = 0;
  pair.probe = 0;
  pair.reason.clear();
}

void PairTable::Failed(WorkerId prefill, WorkerId decode, const std::string& why, Instant now) {
  Pair& pair = pairs_[Key(prefill, decode)];
  if (pair.state == PairState::kDown) return;  // One cause fails many transfers at once.
  LeaveState(pair.state);
  Duration backoff = options_.backoff_min;
  for (uint32_t i = 0; i < pair.failures && backoff < options_.backoff_max; ++i) backoff *= 2;
  pair.state = PairState::kDown;
  pair.failures += 1;
  pair.next = now + std::min(backoff, options_.backoff_max);
  next_due_ = std::min(next_due_, pair.next);
  pair.probe = 0;
  pair.reason = why;
}

void PairTable::ProbeAnswered(WorkerId prefill, uint64_t probe, bool ok, const std::string& why,
                              double bytes_per_second, Instant now) {
  if (probe == 0) return;
  for (auto it = pairs_.lower_bound(Key(prefill, WorkerId{})); it != pairs_.end(); ++it) {
    auto& [key, pair] = *it;
    if (key.first != prefill) return;
    if (pair.state != PairState::kProbing || pair.probe != probe) continue;
    if (ok) {
      Succeeded(key.first, key.second);
      pair.bytes_per_second = bytes_per_second;
    } else {
      Failed(key.first, key.second, why, now);
    }
    return;
  }
}

void PairTable::LeaveState(PairState state) {
  if (state == PairState::kProbing) next_due_ = Instant::min();
}

PairTable::Load PairTable::InFlight(Instant now) {
  Load in_flight;
  for (auto& [key, pair] : pairs_) {
    if (pair.state != PairState::kProbing) continue;
    if (pair.next <= now) {
      Failed(key.first, key.second, "the probe was not answered", now);
    } else {
      next_due_ = std::min(next_due_, pair.next);
      ++in_flight[key.first];
      ++in_flight[key.second];
    }
  }
  return in_flight;
}

std::vector<PairTable::Key> PairTable::Waiting(const WorkerTable& workers, Instant now) {
  std::vector<WorkerId> decodes;
  for (const auto& [id, worker] : workers.all()) {
    if (worker.role == v1::ROLE_DECODE && worker.ready()) decodes.push_back(id);
  }
  std::vector<std::pair<Instant, Key>> waiting;
  for (const auto& [prefill, worker] : workers.all()) {
    if (!SendsKv(worker)) continue;
    auto row = pairs_.lower_bound(Key(prefill, WorkerId{}));
    for (const WorkerId decode : decodes) {
      const Key key(prefill, decode);
      row = pairs_.try_emplace(row, key);
      const Pair& pair = row++->second;
      if (pair.state == PairState::kUnknown) waiting.emplace_back(Instant::min(), key);
      if (pair.state != PairState::kDown) continue;
      if (pair.next <= now) {
        waiting.emplace_back(pair.next, key);
      } else {
        next_due_ = std::min(next_due_, pair.next);
      }
    }
  }
  std::sort(waiting.begin(), waiting.end());
  std::vector<Key> keys;
  for (const auto& [since, key] : waiting) keys.push_back(key);
  return keys;
}

std::vector<PairTable::ProbeOrder> PairTable::Due(const WorkerTable& workers, Instant now) {
  next_due_ = kNever;
  Load in_flight = InFlight(now);
  std::vector<ProbeOrder> orders;
  for (const Key& key : Waiting(workers, now)) {
    uint32_t& from = in_flight[key.first];
    uint32_t& to = in_flight[key.second];
    if (std::max(from, to) >= options_.probes_per_worker_max) continue;
    ++from;
    ++to;
    Pair& pair = pairs_[key];
    pair.state = PairState::kProbing;
    pair.next = now + options_.probe_timeout;
    next_due_ = std::min(next_due_, pair.next);
    pair.probe = next_probe_++;
    orders.push_back({pair.probe, key.first, key.second});
  }
  return orders;
}

}  // namespace baton
