#include "common/collective/collective.h"

#include "absl/strings/str_cat.h"
#include "common/collective/thread_collective.h"

namespace baton {

absl::StatusOr<std::vector<std::unique_ptr<Collective>>> MakeCollectives(
    std::span<Device* const> devices) {
  if (devices.empty()) return absl::InvalidArgumentError("a group needs a device");
  for (const Device* device : devices) {
    if (device->kind() == devices[0]->kind()) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(device->name(), " and ", devices[0]->name(), " are of different kinds"));
  }
  if (devices[0]->kind() == DeviceKind::kCpu) {
    return MakeThreadCollectives(static_cast<uint32_t>(devices.size()));
  }
  const CollectiveTable* table = devices[0]->collectives();
  if (table != nullptr) return table->make(devices);
  return absl::UnimplementedError(absl::StrCat(
      devices[0]->name(), " was built without NCCL, which several GPUs need to add up results"));
}

}  // namespace baton
