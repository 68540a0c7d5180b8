#include "common/kv_transfer/transfer_core.h"

#include <algorithm>
#include <utility>

#include "common/base/check.h"

namespace baton {

TransferCore::TransferCore(std::unique_ptr<Transport> transport, const TransferCoreOptions& options,
                           TransferStaging staging, const TransferEventSink& sink,
                           TakeCommands take_commands, std::function<Instant()> clock)
    : take_commands_(std::move(take_commands)),
      clock_(std::move(clock)),
      staging_(std::move(staging)),
      transport_(std::move(transport)),
      receiver_(*transport_, *staging_.receives, options.receiver, sink,
                [this] { TakeLeaseCommands(); }),
      sender_(*transport_, *staging_.sends, options.sender, sink),
      prober_(*transport_, options.prober, *staging_.receives, sink, clock_) {
  transport_->OnPeerLost([this](PeerId peer, const absl::Status& status) {
    ++peers_lost_;
    sender_.OnPeerLost(peer, status);
    prober_.OnPeerLost(peer, status);
  });
}

TransferCore::~TransferCore() { Finish(); }

void TransferCore::Advance() {
  RunCommands();
  const Instant now = clock_();
  receiver_.Tick(now);
  sender_.Tick(now);
  prober_.Tick(now);
}

bool TransferCore::Poll() { return transport_ != nullptr && transport_->Poll(); }

bool TransferCore::Arm() { return waiting_.empty() && transport_->Arm(); }

Instant TransferCore::next_deadline() const {
  return std::min({receiver_.next_deadline(), sender_.next_deadline(), prober_.next_deadline()});
}

void TransferCore::Finish() {
  if (transport_ == nullptr) return;
  RunCommands();
  const absl::Status stopping = absl::UnavailableError("the transfer agent is stopping");
  prober_.FailAll(stopping);
  sender_.FailAll(stopping, clock_());
  receiver_.RetireAll(clock_());
  transport_.reset();  // What is under way completes.
  BATON_CHECK(sender_.open_count() == 0 && receiver_.open_count() == 0);
}

// Lease commands are carried out at once, so that a message finds its lease; the others wait for
// RunCommands: this also runs inside a callback of the transport.
void TransferCore::TakeLeaseCommands() {
  for (TransferCommand& command : take_commands_()) {
    if (const auto* open = std::get_if<OpenCommand>(&command)) {
      Apply(*open);
    } else if (const auto* retire = std::get_if<RetireCommand>(&command)) {
      Apply(*retire);
    } else {
      waiting_.push_back(std::move(command));
    }
  }
}

void TransferCore::RunCommands() {
  TakeLeaseCommands();
  for (TransferCommand& command : std::exchange(waiting_, {})) {
    std::visit([this](auto& item) { Apply(item); }, command);
  }
}

void TransferCore::Apply(const RetireCommand& command) {
  receiver_.Retire(command.lease, command.epoch, clock_());
}
void TransferCore::Apply(BeginCommand& command) {
  sender_.Begin(command.id, std::move(command.ticket), std::move(command.blocks), command.share,
                clock_());
}
void TransferCore::Apply(const PushCommand& command) {
  sender_.Push(command.id, command.layers, command.tokens, clock_());
}
void TransferCore::Apply(CommitCommand& command) {
  sender_.Commit(command.id, std::move(command.first_token), clock_());
}

}  // namespace baton
