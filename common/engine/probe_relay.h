// Carries out the probes that routers ask a worker for, and tells each what came of its own.
//
// Engine thread only.
#ifndef BATON_COMMON_ENGINE_PROBE_RELAY_H_
#define BATON_COMMON_ENGINE_PROBE_RELAY_H_

#include <cstdint>
#include <map>
#include <utility>

#include "common/base/ids.h"
#include "common/engine/ports.h"
#include "common/kv_transfer/transfer_event.h"
#include "proto/worker.pb.h"

namespace baton {

class ProbeRelay {
 public:
  // Both outlive the relay.
  ProbeRelay(EventPort* events, TransferPort* transfers) : events_(events), transfers_(transfers) {}

  void Start(Incarnation router, const v1::Probe& probe);
  // One that nobody asked for is ignored.
  void OnFinished(const ProbeFinished& finished);

 private:
  EventPort* const events_;
  TransferPort* const transfers_;
  uint64_t next_probe_ = 1;
  std::map<ProbeId, std::pair<Incarnation, uint64_t>> asked_;  // By whom, and its number there.
};

}  // namespace baton

#endif  // BATON_COMMON_ENGINE_PROBE_RELAY_H_
