#include "common/kv_transfer/staging_choice.h"

#include <poll.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/kv_transfer/handoff_codec.h"

namespace baton {
namespace {

constexpr size_t kTrialBytesMax = size_t{1} << 20;
constexpr int kSleepMilliseconds = 10;

// A message to oneself, out of one run of memory of a GPU into another. While it is under way
// another one is the thread's, as when messages of several pass.
class Trial {
 public:
  Trial(Transport& transport, Device& device, Device& selected, MutableSpan from, MutableSpan to)
      : transport_(transport),
        device_(device),
        selected_(selected),
        bytes_(std::min(from.size(), kTrialBytesMax)),
        from_(from.first(bytes_)),
        to_(to.first(bytes_)) {}

  absl::Status Run(Duration timeout) {
    std::vector<std::byte> sent(bytes_);
    for (size_t i = 0; i < bytes_; ++i) sent[i] = static_cast<std::byte>(i * 167 >> 3);
    BATON_RETURN_IF_ERROR(device_.Scatter({&from_, 1}, sent.data()));
    BATON_RETURN_IF_ERROR(selected_.Select());
    BATON_RETURN_IF_ERROR(Send(timeout));
    BATON_RETURN_IF_ERROR(device_.SeeRemoteWrites());
    std::vector<std::byte> received(bytes_);
    const ConstSpan landed = to_;
    BATON_RETURN_IF_ERROR(device_.Gather(received.data(), {&landed, 1}));
    if (received != sent) return absl::DataLossError("a message between GPU memory came damaged");
    return absl::OkStatus();
  }

 private:
  static constexpr auto kType = static_cast<MessageType>(HandoffType::kTrial);

  absl::Status Send(Duration timeout) {
    transport_.OnMessage(kType, [this](const IncomingMessage&) { return Take(); });
    const Instant deadline = Now() + timeout;
    BATON_ASSIGN_OR_RETURN(const PeerId self, transport_.Connect(transport_.address()));
    const std::byte header{};
    transport_.Send(self, kType, {&header, 1}, {from_}, [this](const absl::Status& status) {
      sent_ = true;
      if (!status.ok()) status_ = status;
    });
    while (!(sent_ && landed_) && status_.ok() && Now() < deadline) Poll();
    const bool in_time = (sent_ && landed_) || !status_.ok();
    // Then nothing lands any more.
    if (!in_time || !status_.ok()) transport_.ForceClose(self);
    while (!sent_ || posted_) Poll();
    transport_.OnMessage(kType, [](const IncomingMessage&) { return std::nullopt; });
    if (in_time) return status_;
    return absl::DeadlineExceededError(
        absl::StrCat("a message of ", bytes_, " bytes between GPU memory did not arrive"));
  }

  std::optional<Landing> Take() {
    if (posted_ || landed_) return std::nullopt;
    posted_ = true;
    Landing landing;
    landing.spans = {to_};
    landing.copy = [this](ConstSpan payload) { return device_.Scatter({&to_, 1}, payload.data()); };
    landing.landed = [this](const absl::Status& status) {
      posted_ = false;
      landed_ = true;
      if (!status.ok()) status_ = status;
    };
    return landing;
  }

  void Poll() {
    if (transport_.Poll() || !transport_.Arm()) return;
    pollfd descriptor = {.fd = transport_.event_fd(), .events = POLLIN, .revents = 0};
    poll(&descriptor, 1, kSleepMilliseconds);
  }

  Transport& transport_;
  Device& device_;
  Device& selected_;
  const size_t bytes_;
  const MutableSpan from_;
  const MutableSpan to_;
  bool sent_ = false;
  bool posted_ = false;  // And not landed.
  bool landed_ = false;
  absl::Status status_;
};

// One for each of the worker's GPUs.
absl::Status TryAll(Transport& transport, const TransferStaging& staging, Duration timeout) {
  const KvArena& arena = staging.sends->arena();
  const std::vector<MutableSpan> from = staging.sends->buffers();
  const std::vector<MutableSpan> to = staging.receives->buffers();
  for (uint32_t shard = 0; shard < arena.shard_count(); ++shard) {
    Device& device = arena.device(shard);
    Device& next = arena.device((shard + 1) % arena.shard_count());
    const absl::Status tried = Trial(transport, device, next, from[shard], to[shard]).Run(timeout);
    if (!tried.ok()) {
      return absl::Status(tried.code(), absl::StrCat(device.name(), ": ", tried.message()));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<TransferStaging> StageOnDevice(Transport& transport, const KvArena& arena,
                                              size_t bytes, Duration trial) {
  const uint32_t devices = arena.shard_count();
  BATON_RETURN_IF_ERROR(transport.UseDeviceMemory(devices, {}));  // Whether it knows GPUs at all.
  BATON_ASSIGN_OR_RETURN(TransferStaging staging,
                         TransferStaging::Create(arena, bytes, StagingMemory::kDevice));
  std::vector<MutableSpan> regions = staging.sends->buffers();
  const std::vector<MutableSpan> receiving = staging.receives->buffers();
  regions.insert(regions.end(), receiving.begin(), receiving.end());
  BATON_RETURN_IF_ERROR(transport.UseDeviceMemory(devices, regions));
  if (const absl::Status tried = TryAll(transport, staging, trial); !tried.ok()) {
    static_cast<void>(transport.UseDeviceMemory(devices, {}));  // Before it goes.
    return tried;
  }
  return staging;
}

}  // namespace

absl::StatusOr<ChosenStaging> ChooseStaging(Transport& transport, const KvArena& arena,
                                            size_t bytes, std::optional<StagingMemory> wanted,
                                            Duration trial) {
  ChosenStaging chosen;
  const bool on_host = arena.device().kind() == DeviceKind::kCpu;
  if (!on_host && wanted != StagingMemory::kPinned) {
    absl::StatusOr<TransferStaging> staging = StageOnDevice(transport, arena, bytes, trial);
    if (staging.ok()) {
      chosen.staging = *std::move(staging);
      return chosen;
    }
    if (wanted == StagingMemory::kDevice) return staging.status();
    chosen.reason = std::string(staging.status().message());
  }
  BATON_ASSIGN_OR_RETURN(chosen.staging, TransferStaging::Create(arena, bytes));
  return chosen;
}

}  // namespace baton
