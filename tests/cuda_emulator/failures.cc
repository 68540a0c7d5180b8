#include "tests/cuda_emulator/failures.h"

#include <poll.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <optional>

#include "tests/cuda_emulator/runtime.h"

namespace baton::emulation {
namespace {

constexpr int kNone = -1;

std::atomic<int> lost_device = kNone;
// Until a GPU is lost. Nothing: the file was not there yet.
std::optional<uint64_t> operations_left;

size_t BytesFrom(const char* variable) {
  const char* const bytes = std::getenv(variable);
  return bytes == nullptr ? std::numeric_limits<size_t>::max()
                          : static_cast<size_t>(std::strtoull(bytes, nullptr, 10));
}

void HangWhileToldTo() {
  const char* const path = std::getenv("BATON_EMULATED_GPU_HANGS_WHILE");
  while (path != nullptr && access(path, F_OK) == 0) poll(nullptr, 0, /*timeout=*/10);
}

}  // namespace

size_t GpuMemoryMax() { return BytesFrom("BATON_EMULATED_GPU_MEMORY"); }
size_t PinnedMemoryMax() { return BytesFrom("BATON_EMULATED_PINNED_MEMORY"); }

bool IsLost(int device) { return lost_device.load() == device; }

bool DoesNext(int device) {
  HangWhileToldTo();
  if (lost_device.load() != kNone) return !IsLost(device);
  const char* const path = std::getenv("BATON_EMULATED_GPU_FAILS_WHEN");
  if (path == nullptr) return true;
  if (!operations_left.has_value()) {
    std::ifstream file(path);
    if (!file) return true;
    uint64_t left = 0;
    file >> left;  // Stays 0 if there is none.
    operations_left = left;
  }
  if ((*operations_left)-- > 0) return true;
  lost_device.store(device);
  NotifyOthers();  // Who waits for this GPU waits in vain.
  return false;
}

}  // namespace baton::emulation
