#include "common/kv_transfer/prober.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/kv_transfer/kv_pieces.h"

namespace baton {
namespace {

MessageType TypeOf(HandoffType type) { return static_cast<MessageType>(type); }

}  // namespace

class Prober::Buffer {
 public:
  Buffer(KvStaging& staging, size_t bytes) : staging_(staging) {
    if (staging.memory() == StagingMemory::kDevice && bytes > 0 &&
        bytes <= staging.piece_bytes_max()) {
      staged_ = staging.TakeBytes(bytes);
    }
    if (!staged_) host_.resize(bytes);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() {
    if (staged_) staging_.Release(*staged_);
  }

  MutableSpan span() { return staged_ ? staged_->wire[0] : MutableSpan(host_); }
  size_t size() const { return staged_ ? staged_->wire[0].size() : host_.size(); }

  absl::Status Write(ConstSpan bytes) {
    if (staged_) return staging_.Land(*staged_, bytes);
    std::copy(bytes.begin(), bytes.end(), host_.begin());
    return absl::OkStatus();
  }
  absl::StatusOr<uint64_t> Checksum() const {
    if (!staged_) {
      RunningChecksum checksum;
      checksum.Add(host_.data(), host_.size());
      return checksum.Get();
    }
    BATON_RETURN_IF_ERROR(staging_.FinishLanding(*staged_));
    return staging_.Checksum(*staged_, size());
  }
  // `landed` gets what became of it.
  static Landing LandingIn(const std::shared_ptr<Buffer>& buffer,
                           std::function<void(absl::Status)> landed) {
    Landing landing;
    landing.spans = {buffer->span()};
    landing.landed = std::move(landed);
    landing.copy = [buffer](ConstSpan payload) { return buffer->Write(payload); };
    return landing;
  }

 private:
  KvStaging& staging_;
  std::optional<StagedPiece> staged_;
  std::vector<std::byte> host_;  // Otherwise.
};

Prober::Prober(Transport& transport, const ProberOptions& options, KvStaging& staging,
               TransferEventSink sink, std::function<Instant()> clock)
    : transport_(transport),
      options_(options),
      staging_(staging),
      sink_(std::move(sink)),
      clock_(std::move(clock)) {
  BATON_CHECK(options_.bytes <= kBytesMax);
  transport_.OnMessage(TypeOf(HandoffType::kProbe),
                       [this](const IncomingMessage& message) { return OnProbe(message); });
  transport_.OnMessage(TypeOf(HandoffType::kProbeReply),
                       [this](const IncomingMessage& message) { return OnReply(message); });
}

void Prober::Probe(ProbeId id, const std::string& address, Instant now) {
  if (running_.size() >= kProbesMax) {
    return sink_(ProbeFinished{
        id, absl::ResourceExhaustedError(absl::StrCat(kProbesMax, " probes are under way"))});
  }
  const absl::StatusOr<PeerId> peer = transport_.Connect(address);
  if (!peer.ok()) return sink_(ProbeFinished{id, peer.status()});
  const auto [it, inserted] = running_.try_emplace(id);
  BATON_CHECK_MSG(inserted, absl::StrCat("probe ", Raw(id)));
  it->second.peer = *peer;
  it->second.deadline = now + options_.deadline;
  SendRound(id, it->second);
}

void Prober::SendRound(ProbeId id, Running& probe) {
  std::vector<std::byte> bytes(probe.round == kBandwidth ? options_.bytes : size_t{0});
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * 131 >> 3);
  const MutableSpan all(bytes);
  probe.checksum = ChecksumOf(std::span(&all, 1));
  probe.buffer = std::make_shared<Buffer>(staging_, bytes.size());
  if (const absl::Status written = probe.buffer->Write(bytes); !written.ok()) {
    return Finish(id, {id, written});
  }
  probe.round_began = clock_();
  const ProbeMessage message = {Raw(id), probe.round, bytes.size(), probe.checksum};
  transport_.Send(probe.peer, TypeOf(HandoffType::kProbe),
                  EncodeProbe(HandoffType::kProbe, message), {probe.buffer->span()},
                  [keep = probe.buffer](const absl::Status&) {});
}

// Takes the bytes and sends the same ones back from the same buffer.
std::optional<Landing> Prober::OnProbe(const IncomingMessage& incoming) {
  const std::optional<ProbeMessage> message = DecodeProbe(HandoffType::kProbe, incoming.header);
  std::erase_if(in_use_, [](const InUse& item) { return item.buffer.expired(); });
  if (!message || message->payload_bytes != incoming.payload_bytes ||
      message->payload_bytes > kBytesMax || in_use_.size() >= kAnswersMax) {
    return std::nullopt;
  }
  const auto buffer = std::make_shared<Buffer>(staging_, incoming.payload_bytes);
  in_use_.push_back({incoming.from, buffer, clock_() + options_.deadline});
  return Buffer::LandingIn(
      buffer, [this, buffer, from = incoming.from, message = *message](const absl::Status& status) {
        if (!status.ok()) return;
        transport_.Send(from, TypeOf(HandoffType::kProbeReply),
                        EncodeProbe(HandoffType::kProbeReply, message), {buffer->span()},
                        [buffer](const absl::Status&) {});
      });
}

std::optional<Landing> Prober::OnReply(const IncomingMessage& incoming) {
  const std::optional<ProbeMessage> message =
      DecodeProbe(HandoffType::kProbeReply, incoming.header);
  if (!message || message->payload_bytes != incoming.payload_bytes) return std::nullopt;
  const auto found = running_.find(ProbeId{message->probe});
  if (found == running_.end() || found->second.landing || found->second.round != message->round ||
      found->second.buffer->size() != incoming.payload_bytes) {
    return std::nullopt;
  }
  Running& probe = found->second;
  probe.landing = true;
  // A buffer of its own: the transport may still be reading the one that was sent.
  probe.buffer = std::make_shared<Buffer>(staging_, incoming.payload_bytes);
  return Buffer::LandingIn(
      probe.buffer, [this, id = found->first, round = probe.round, buffer = probe.buffer](
                        const absl::Status& status) { OnReplyLanded(id, round, *buffer, status); });
}

void Prober::OnReplyLanded(ProbeId id, uint32_t round, const Buffer& buffer,
                           const absl::Status& status) {
  const auto found = running_.find(id);
  if (found == running_.end() || found->second.round != round) return;
  Running& probe = found->second;
  probe.landing = false;
  if (!status.ok()) return Finish(id, {id, status});
  const absl::StatusOr<uint64_t> checksum = buffer.Checksum();
  if (!checksum.ok()) return Finish(id, {id, checksum.status()});
  if (*checksum != probe.checksum) {
    return Finish(id, {id, absl::DataLossError("the probe's bytes came back damaged")});
  }
  const Duration took = clock_() - probe.round_began;
  if (round == kLatency) probe.round_trip_ms = ToMilliseconds(took);
  if (round == kBandwidth) {
    const double seconds = std::max(std::chrono::duration<double>(took).count(), 1e-9);
    return Finish(id, {id, absl::OkStatus(), probe.round_trip_ms,
                       2 * static_cast<double>(options_.bytes) / seconds});
  }
  ++probe.round;
  SendRound(id, probe);
}

void Prober::Finish(ProbeId id, ProbeFinished result) {
  running_.erase(id);
  sink_(std::move(result));
}

void Prober::OnPeerLost(PeerId peer, const absl::Status& status) {
  std::vector<ProbeId> ids;
  for (const auto& [id, probe] : running_) {
    if (probe.peer == peer) ids.push_back(id);
  }
  for (const ProbeId id : ids) Finish(id, {id, status});
}

void Prober::FailAll(const absl::Status& status) {
  while (!running_.empty()) {
    const ProbeId id = running_.begin()->first;
    Finish(id, {id, status});
  }
}

void Prober::Tick(Instant now) {
  std::vector<ProbeId> late;
  for (const auto& [id, probe] : running_) {
    if (now >= probe.deadline) late.push_back(id);
  }
  for (const ProbeId id : late) {
    const Running probe = running_.at(id);
    in_use_.push_back({probe.peer, probe.buffer, now + options_.force_close_after});
    Finish(id, {id, absl::DeadlineExceededError("the probe was not answered in time")});
  }
  std::erase_if(in_use_, [](const InUse& item) { return item.buffer.expired(); });
  for (InUse& item : in_use_) {
    if (now < item.force_close_at) continue;
    transport_.ForceClose(item.peer);
    item.force_close_at = now + options_.force_close_after;
  }
}

Instant Prober::next_deadline() const {
  Instant next = kNever;
  for (const auto& [id, probe] : running_) next = std::min(next, probe.deadline);
  for (const InUse& item : in_use_) {
    if (!item.buffer.expired()) next = std::min(next, item.force_close_at);
  }
  return next;
}

}  // namespace baton
