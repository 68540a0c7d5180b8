// What the ranks of a group do together, each of which computes a part of one result.
//
// A group has one object per rank, for the one thread that computes there. All ranks call the same
// operations with the same shapes in the same order. See "Tensor parallelism" in DESIGN_NOTES.md.
#ifndef BATON_COMMON_COLLECTIVE_COLLECTIVE_H_
#define BATON_COMMON_COLLECTIVE_COLLECTIVE_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/device/device.h"
#include "common/tensor/tensor_view.h"

namespace baton {

class Collective {
 public:
  virtual ~Collective() = default;

  virtual uint32_t rank() const = 0;
  virtual uint32_t size() const = 0;

  // x = the sum of the ranks' x, with equal bits on all of them. Float32, and on a GPU whatever
  // type activations have. A GPU puts it into the queue of the rank's device, and waits only for
  // room there. Not while a step is recorded. kAborted: after Abort.
  virtual absl::Status AllReduceSum(const TensorView& x) = 0;
  // x = the first rank's x, on all, bit for bit. Otherwise as AllReduceSum.
  virtual absl::Status Broadcast(const TensorView& x) = 0;
  // On the first rank parts[r] = rank r's `part`; parts[0] is its own already. Elsewhere `parts` is
  // empty. REQUIRES: both sides of a part have as many elements, which may be 0, of one type.
  // Otherwise as AllReduceSum.
  virtual absl::Status GatherParts(const TensorView& part, std::span<const TensorView> parts) = 0;

  // Ends the group: no rank waits for another any more, now or later. What was being added up is
  // lost. For a rank that cannot go on. Any thread; again is without effect.
  virtual void Abort() = 0;
};

// A group with one rank per device, rank 0 first. The devices outlive it; the objects may go in any
// order. kInvalidArgument: devices of different kinds. kUnimplemented, kUnavailable: the devices
// have nothing to talk to each other with.
absl::StatusOr<std::vector<std::unique_ptr<Collective>>> MakeCollectives(
    std::span<Device* const> devices);

// What a kind of device implements: see Device::collectives().
struct CollectiveTable {
  // REQUIRES: at least one device, all of this kind.
  absl::StatusOr<std::vector<std::unique_ptr<Collective>>> (*make)(
      std::span<Device* const> devices);
};

}  // namespace baton

#endif  // BATON_COMMON_COLLECTIVE_COLLECTIVE_H_
