// What an engine needs from outside: somewhere to send events, and KV transfers. Engines are pure;
// the process gives them gRPC sessions and a TransferAgent, tests and simulation something simpler.
#ifndef BATON_COMMON_ENGINE_PORTS_H_
#define BATON_COMMON_ENGINE_PORTS_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/base/ids.h"
#include "common/kv_transfer/ticket.h"
#include "common/kv_transfer/transfer_agent.h"
#include "common/kv_transfer/transfer_event.h"
#include "proto/worker.pb.h"

namespace baton {

class EventPort {
 public:
  virtual ~EventPort() = default;
  // To the session of that router; dropped if it has none.
  virtual void Send(Incarnation router, v1::Event event) = 0;
};

// As TransferAgent; the answers come back as TransferEvents.
class TransferPort {
 public:
  virtual ~TransferPort() = default;
  virtual const std::string& address() const = 0;
  virtual absl::Status OpenLease(LeaseGrant grant) = 0;
  virtual void RetireLease(LeaseId lease, Epoch epoch) = 0;
  virtual absl::Status BeginTransfer(TransferId id, Ticket ticket, std::vector<BlockId> blocks) = 0;
  virtual absl::Status PushTransfer(TransferId id, IndexRange layers, IndexRange tokens) = 0;
  virtual absl::Status CommitTransfer(TransferId id, CommittedToken first_token) = 0;
  virtual void AbortTransfer(TransferId id) = 0;
  virtual absl::Status Probe(ProbeId id, std::string address) = 0;
};

}  // namespace baton

#endif  // BATON_COMMON_ENGINE_PORTS_H_
