#include "common/engine/probe_relay.h"

#include <string>

#include "common/base/wire_status.h"

namespace baton {

void ProbeRelay::Start(Incarnation router, const v1::Probe& probe) {
  const ProbeId id{next_probe_++};
  asked_[id] = {router, probe.probe()};
  const absl::Status status = transfers_->Probe(id, probe.transfer_address());
  if (!status.ok()) OnFinished({.id = id, .status = status});
}

void ProbeRelay::OnFinished(const ProbeFinished& finished) {
  const auto it = asked_.find(finished.id);
  if (it == asked_.end()) return;
  const auto [router, number] = it->second;
  asked_.erase(it);
  v1::Event event;
  v1::ProbeResult* result = event.mutable_probe_result();
  result->set_probe(number);
  result->set_ok(finished.status.ok());
  result->set_message(WireMessage(finished.status));
  result->set_round_trip_ms(finished.round_trip_ms);
  result->set_bytes_per_second(finished.bytes_per_second);
  events_->Send(router, std::move(event));
}

}  // namespace baton
