// Faults for an inproc network, drawn from a seed: messages late and overtaking each other,
// payloads that land late or never, connections that break.
#ifndef BATON_COMMON_TRANSPORT_TESTING_FAULTY_TRANSPORT_H_
#define BATON_COMMON_TRANSPORT_TESTING_FAULTY_TRANSPORT_H_

#include <cstdint>
#include <memory>
#include <string>

#include "common/transport/testing/inproc_transport.h"

namespace baton {

struct FaultOptions {
  uint64_t seed = 0;
  double late_fraction = 0.5;  // Of headers and of payloads.
  uint64_t late_steps_max = 40;
  double never_fraction = 0;  // Of payloads: they hang until the connection ends.
  double break_fraction = 0;  // Of messages: the connection breaks.
};

std::unique_ptr<DeliveryPolicy> MakeFaultyDelivery(const FaultOptions& options);

}  // namespace baton

#endif  // BATON_COMMON_TRANSPORT_TESTING_FAULTY_TRANSPORT_H_
