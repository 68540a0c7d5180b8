// TransferAgent as the engines' TransferPort.
#ifndef BATON_COMMON_WORKER_AGENT_PORT_H_
#define BATON_COMMON_WORKER_AGENT_PORT_H_

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/engine/ports.h"

namespace baton {

class AgentPort final : public TransferPort {
 public:
  explicit AgentPort(std::unique_ptr<TransferAgent> agent) : agent_(std::move(agent)) {}

  TransferAgent& agent() { return *agent_; }

  const std::string& address() const override { return agent_->address(); }
  absl::Status OpenLease(LeaseGrant grant) override { return agent_->OpenLease(std::move(grant)); }
  void RetireLease(LeaseId lease, Epoch epoch) override { agent_->RetireLease(lease, epoch); }
  absl::Status BeginTransfer(TransferId id, Ticket ticket, std::vector<BlockId> blocks) override {
    return agent_->BeginTransfer(id, std::move(ticket), std::move(blocks));
  }
  absl::Status PushTransfer(TransferId id, IndexRange layers, IndexRange tokens) override {
    return agent_->PushTransfer(id, layers, tokens);
  }
  absl::Status CommitTransfer(TransferId id, CommittedToken first_token) override {
    return agent_->CommitTransfer(id, std::move(first_token));
  }
  void AbortTransfer(TransferId id) override { agent_->AbortTransfer(id); }
  absl::Status Probe(ProbeId id, std::string address) override {
    return agent_->Probe(id, std::move(address));
  }

 private:
  const std::unique_ptr<TransferAgent> agent_;
};

}  // namespace baton

#endif  // BATON_COMMON_WORKER_AGENT_PORT_H_
