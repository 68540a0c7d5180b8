// What the fuzz targets of both engines share: surroundings that answer as a transfer agent would,
// in any order, and a listener that knows what may be heard of a request.
#ifndef BATON_TESTS_FUZZ_ENGINE_WORLD_H_
#define BATON_TESTS_FUZZ_ENGINE_WORLD_H_

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "common/base/check.h"
#include "common/engine/testing/engine_fixture.h"
#include "common/engine/ticket_codec.h"
#include "common/kv_transfer/kv_receiver.h"
#include "common/kv_transfer/kv_sender.h"
#include "tests/fuzz/fuzz_input.h"
#include "tests/fuzz/wire_message.h"

namespace baton {

// FakeModel reads its whole context at every step, which is most of a target's time. Here the next
// token depends on the last one alone, and what is in the blocks does not matter.
class QuickModel final : public Model {
 public:
  static constexpr uint32_t kVocabSize = 29;

  explicit QuickModel(uint32_t window) : like_(kVocabSize, 256, window) {}

  const ModelConfig& config() const override { return like_.config(); }
  const std::string& fingerprint() const override { return like_.fingerprint(); }
  const std::string& numerics() const override { return like_.numerics(); }
  uint64_t parameter_count() const override { return like_.parameter_count(); }
  KvLayout Layout(uint32_t block_tokens) const { return like_.Layout(block_tokens); }
  void FailNext(absl::Status status) { next_error_ = std::move(status); }

  absl::Status Forward(std::span<const BatchRow> rows, KvArena& cache, std::span<float> logits,
                       const LayerDone& layer_done) override {
    if (!next_error_.ok()) return std::exchange(next_error_, absl::OkStatus());
    std::fill(logits.begin(), logits.end(), 0.0f);
    for (uint32_t layer = 0; layer_done && layer < config().layers; ++layer) layer_done(layer);
    for (const BatchRow& row : rows) {
      const size_t end = row.start + row.tokens.size();
      BATON_CHECK(!row.tokens.empty() && end <= config().context_tokens);
      BATON_CHECK(row.blocks.size() * cache.layout().block_tokens >= end);
      if (row.logit_count == 0) continue;
      logits[static_cast<size_t>(row.tokens.back() * 7 + 1) % kVocabSize] = 5.0f;
      logits = logits.subspan(kVocabSize);
    }
    BATON_CHECK(logits.empty());
    return absl::OkStatus();
  }

 private:
  const FakeModel like_;
  absl::Status next_error_;
};

// As EngineFixture.
struct EngineSurroundings {
  static constexpr uint32_t kBlockTokens = 4;
  static constexpr uint32_t kBlockCount = 24;

  explicit EngineSurroundings(uint32_t window)
      : model(window),
        device(MakeHostDevice()),
        arena(KvArena::Create(*device, model.Layout(kBlockTokens), kBlockCount).value()),
        pool(kBlockCount),
        executor(&starting_model, arena.get()) {}

  QuickModel model;
  StartingModel starting_model{&model};
  std::unique_ptr<Device> device;
  std::unique_ptr<KvArena> arena;
  BlockPool pool;
  Executor executor;
  RecordedEvents events;
  Instant now{};
};

// As TransferAgent: checks what it is asked, and owes an answer to what it took.
class OwingTransfers final : public TransferPort {
 public:
  explicit OwingTransfers(const KvArena* arena) : arena_(arena) {}

  const std::string& address() const override { return address_; }
  absl::Status OpenLease(LeaseGrant grant) override {
    if (refuses) return absl::ResourceExhaustedError("too many leases");
    BATON_CHECK_OK(KvReceiver::CheckGrant(*arena_, grant));
    const std::pair key{grant.lease, grant.epoch};
    BATON_CHECK(leases.emplace(key, std::move(grant)).second);
    return absl::OkStatus();
  }
  void RetireLease(LeaseId lease, Epoch epoch) override {
    BATON_CHECK(leases.erase({lease, epoch}) == 1);
    retired.push_back({lease, epoch});
  }
  absl::Status BeginTransfer(TransferId id, Ticket ticket, std::vector<BlockId> blocks) override {
    if (refuses) return absl::ResourceExhaustedError("too many transfers");
    absl::Status fits = KvSender::CheckTicket(*arena_, ticket, blocks, {});
    if (!fits.ok()) return fits;
    BATON_CHECK(transfers.emplace(id, ticket.prompt_tokens).second);
    return absl::OkStatus();
  }
  absl::Status PushTransfer(TransferId id, IndexRange layers, IndexRange tokens) override {
    if (refuses) return absl::ResourceExhaustedError("too many commands");
    BATON_CHECK(layers.end <= arena_->layout().layers && tokens.end <= transfers.at(id));
    return absl::OkStatus();
  }
  absl::Status CommitTransfer(TransferId id, CommittedToken first_token) override {
    BATON_CHECK(transfers.contains(id) && committed.insert(id).second);
    BATON_CHECK(first_token.token >= 0);
    return absl::OkStatus();
  }
  void AbortTransfer(TransferId id) override { BATON_CHECK(transfers.contains(id)); }
  absl::Status Probe(ProbeId id, std::string /*address*/) override {
    if (refuses) return absl::ResourceExhaustedError("too many probes");
    probes.push_back(id);
    return absl::OkStatus();
  }

  bool refuses = false;
  std::map<std::pair<LeaseId, Epoch>, LeaseGrant> leases;  // Open.
  std::vector<std::pair<LeaseId, Epoch>> retired;          // Not quiesced.
  std::map<TransferId, uint32_t> transfers;                // Not released; their tokens.
  std::set<TransferId> committed;
  std::vector<ProbeId> probes;

 private:
  const KvArena* const arena_;
  std::string address_ = "worker";
};

// A map's element of any number.
template <typename Map>
auto PickFrom(Map& map, uint32_t number) {
  return std::next(map.begin(), static_cast<std::ptrdiff_t>(number % map.size()));
}

// What holds of any token that an engine shows.
inline void CheckToken(const v1::Token& token, const v1::SamplingOptions& asked) {
  BATON_CHECK(token.id() >= 0 && static_cast<uint32_t>(token.id()) < QuickModel::kVocabSize);
  BATON_CHECK(!std::isnan(token.logprob()) && (asked.has_logprobs() || !token.has_logprob()));
  BATON_CHECK(token.top_logprobs_size() <=
              static_cast<int>(std::min(asked.logprobs(), kLogprobsMax)));
}

}  // namespace baton

#endif  // BATON_TESTS_FUZZ_ENGINE_WORLD_H_
