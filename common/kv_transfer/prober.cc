#include "common/kv_transfer/prober.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/kv_transfer/kv_pieces.h"

namespace baton {
namespace {

MessageType TypeOf(HandoffType type) { return static_cast<MessageType>(type); }

uint64_t ChecksumOfBuffer(std::vector<std::byte>& bytes) {
  const MutableSpan span(bytes);
  return ChecksumOf(std::span(&span, 1));
}

}  // namespace

Prober::Prober(Transport& transport, const ProberOptions& options, TransferEventSink sink,
               std::function<Instant()> clock)
    : transport_(transport), options_(options), sink_(std::move(sink)), clock_(std::move(clock)) {
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
  probe.buffer = std::make_shared<std::vector<std::byte>>(probe.round == kBandwidth ? options_.bytes
                                                                                    : size_t{0});
  for (size_t i = 0; i < probe.buffer->size(); ++i) {
    (*probe.buffer)[i] = static_cast<std::byte>(i * 131 >> 3);
  }
  probe.checksum = ChecksumOfBuffer(*probe.buffer);
  probe.round_began = clock_();
  const ProbeMessage message = {Raw(id), probe.round, probe.buffer->size(), probe.checksum};
  transport_.Send(probe.peer, TypeOf(HandoffType::kProbe),
                  EncodeProbe(HandoffType::kProbe, message), {ConstSpan(*probe.buffer)},
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
  const auto buffer = std::make_shared<std::vector<std::byte>>(incoming.payload_bytes);
  in_use_.push_back({incoming.from, buffer, clock_() + options_.deadline});
  Landing landing;
  landing.spans = {MutableSpan(*buffer)};
  landing.landed = [this, buffer, from = incoming.from,
                    message = *message](const absl::Status& status) {
    if (!status.ok()) return;
    transport_.Send(from, TypeOf(HandoffType::kProbeReply),
                    EncodeProbe(HandoffType::kProbeReply, message), {ConstSpan(*buffer)},
                    [buffer](const absl::Status&) {});
  };
  return landing;
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
  probe.buffer = std::make_shared<std::vector<std::byte>>(incoming.payload_bytes);
  Landing landing;
  landing.spans = {MutableSpan(*probe.buffer)};
  landing.landed = [this, id = found->first, round = probe.round,
                    buffer = probe.buffer](const absl::Status& status) {
    OnReplyLanded(id, round, ChecksumOfBuffer(*buffer), status);
  };
  return landing;
}

void Prober::OnReplyLanded(ProbeId id, uint32_t round, uint64_t checksum,
                           const absl::Status& status) {
  const auto found = running_.find(id);
  if (found == running_.end() || found->second.round != round) return;
  Running& probe = found->second;
  probe.landing = false;
  if (!status.ok()) return Finish(id, {id, status});
  if (checksum != probe.checksum) {
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
