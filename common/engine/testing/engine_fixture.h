// An engine's surroundings for tests: the fake model, a small pool, and ports that write everything
// down.
#ifndef BATON_COMMON_ENGINE_TESTING_ENGINE_FIXTURE_H_
#define BATON_COMMON_ENGINE_TESTING_ENGINE_FIXTURE_H_

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/engine/executor.h"
#include "common/engine/ports.h"
#include "common/engine/testing/fake_model.h"
#include "common/engine/testing/starting_model.h"
#include "common/kv_cache/block_pool.h"

namespace baton {

// Keeps what an engine sends, per router in order.
class RecordedEvents final : public EventPort {
 public:
  void Send(Incarnation router, v1::Event event) override {
    events.push_back({router, std::move(event)});
  }

  // Takes all events out.
  std::vector<v1::Event> Take() {
    std::vector<v1::Event> taken;
    for (auto& [router, event] : events) taken.push_back(std::move(event));
    events.clear();
    return taken;
  }

  std::vector<std::pair<Incarnation, v1::Event>> events;
};

// Accepts every command, or answers with `next_error`; the test plays the other side.
class RecordedTransfers final : public TransferPort {
 public:
  struct Begun {
    TransferId id;
    Ticket ticket;
    std::vector<BlockId> blocks;
  };
  struct Pushed {
    TransferId id;
    IndexRange layers;
    IndexRange tokens;
  };

  const std::string& address() const override { return address_; }
  absl::Status OpenLease(LeaseGrant grant) override {
    if (!next_error.ok()) return std::exchange(next_error, absl::OkStatus());
    opened.push_back(std::move(grant));
    return absl::OkStatus();
  }
  void RetireLease(LeaseId lease, Epoch epoch) override { retired.push_back({lease, epoch}); }
  absl::Status BeginTransfer(TransferId id, Ticket ticket, std::vector<BlockId> blocks) override {
    if (!next_error.ok()) return std::exchange(next_error, absl::OkStatus());
    begun.push_back({id, std::move(ticket), std::move(blocks)});
    return absl::OkStatus();
  }
  absl::Status PushTransfer(TransferId id, IndexRange layers, IndexRange tokens) override {
    if (!next_error.ok()) return std::exchange(next_error, absl::OkStatus());
    pushed.push_back({id, layers, tokens});
    return absl::OkStatus();
  }
  absl::Status CommitTransfer(TransferId id, CommittedToken first_token) override {
    committed.push_back({id, std::move(first_token)});
    return absl::OkStatus();
  }
  void AbortTransfer(TransferId id) override { aborted.push_back(id); }
  absl::Status Probe(ProbeId id, std::string /*address*/) override {
    if (!next_error.ok()) return std::exchange(next_error, absl::OkStatus());
    probed.push_back(id);
    return absl::OkStatus();
  }

  std::vector<LeaseGrant> opened;
  std::vector<std::pair<LeaseId, Epoch>> retired;
  std::vector<Begun> begun;
  std::vector<Pushed> pushed;
  std::vector<std::pair<TransferId, CommittedToken>> committed;
  std::vector<TransferId> aborted;
  std::vector<ProbeId> probed;
  absl::Status next_error;

 private:
  std::string address_ = "decode";
};

// Owns what an engine borrows. `block_tokens` is 4. With BATON_TEST_STARTED_STEPS in the
// environment the model starts steps, and its number draws when they are computed.
struct EngineFixture {
  static constexpr uint32_t kBlockTokens = 4;

  explicit EngineFixture(uint32_t block_count, uint32_t window = 0)
      : model(97, 256, window),
        device(MakeHostDevice()),
        arena(KvArena::Create(*device, model.Layout(kBlockTokens), block_count).value()),
        pool(block_count),
        executor(&starting_model, arena.get()) {
    const char* const seed = std::getenv("BATON_TEST_STARTED_STEPS");
    if (seed != nullptr) starting_model.StartSteps(std::strtoull(seed, nullptr, 10));
  }

  FakeModel model;
  StartingModel starting_model{&model};
  std::unique_ptr<Device> device;
  std::unique_ptr<KvArena> arena;
  BlockPool pool;
  Executor executor;
  RecordedEvents events;
  RecordedTransfers transfers;
  Instant now{};
};

// Greedy work on `prompt` that ends after `max_tokens`.
inline v1::Work GreedyWork(uint64_t request, const std::vector<TokenId>& prompt,
                           uint32_t max_tokens) {
  v1::Work work;
  work.set_request(request);
  work.mutable_tokens()->Assign(prompt.begin(), prompt.end());
  work.set_prompt_tokens(static_cast<uint32_t>(prompt.size()));
  work.set_total_tokens_max(static_cast<uint32_t>(prompt.size()) + max_tokens);
  work.mutable_sampling()->set_temperature(0);
  return work;
}

// 0, 1, 2, … shifted by `first`.
inline std::vector<TokenId> CountingPrompt(uint32_t length, TokenId first = 0) {
  std::vector<TokenId> prompt(length);
  for (uint32_t i = 0; i < length; ++i) prompt[i] = (first + static_cast<TokenId>(i)) % 97;
  return prompt;
}

}  // namespace baton

#endif  // BATON_COMMON_ENGINE_TESTING_ENGINE_FIXTURE_H_
