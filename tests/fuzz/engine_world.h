// What the fuzz targets of both engines share: surroundings that answer as a transfer agent would,
// in any order, and a listener that knows what may be heard of a request.
#ifndef BATON_TESTS_FUZZ_ENGINE_WORLD_H_
#define BATON_TESTS_FUZZ_ENGINE_WORLD_H_

#include <cmath>
#include <map>
#include <set>
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
inline void CheckToken(const v1::Token& token, uint32_t vocab_size) {
  BATON_CHECK(token.id() >= 0 && static_cast<uint32_t>(token.id()) < vocab_size);
  BATON_CHECK(token.top_logprobs_size() <= static_cast<int>(kLogprobsMax));
  BATON_CHECK(!std::isnan(token.logprob()));
}

}  // namespace baton

#endif  // BATON_TESTS_FUZZ_ENGINE_WORLD_H_
