// A worker's end of the handoff, with leases open and a transfer under way, and a peer that sends
// whatever it likes, now and then something well-formed.
//
// Nothing is written outside the granted blocks; a lease counts as filled only with every row as it
// was sent; every lease is quiesced once and every transfer released once.
#include <array>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "common/base/check.h"
#include "common/kv_transfer/testing/handoff_rig.h"
#include "common/kv_transfer/transfer_core.h"
#include "common/transport/testing/inproc_transport.h"
#include "tests/fuzz/fuzz_input.h"

namespace baton {
namespace {

constexpr uint32_t kBlockCount = 12;
constexpr std::byte kUntouched{0xEE};
constexpr size_t kStepsMax = 200;
constexpr size_t kEagerBytesMax = 300;
constexpr std::array kMemories = {Memory::kHost, Memory::kGuarded, Memory::kGuardedReached};

// What a peer may have meant for one row of a lease's epoch: K or V of a layer, head and token.
using Cell = std::array<uint32_t, 3>;
using EpochKey = std::pair<LeaseId, Epoch>;

class Handoff {
 public:
  explicit Handoff(FuzzInput input)
      : input_(input),
        memory_(kMemories[input_.Below(kMemories.size())]),
        rig_(SmallLayout(), kBlockCount, memory_),
        peer_(network_.Open("inproc:peer")) {
    network_.CopyWith(GuardedDevice::CopyAnywhere, kEagerBytesMax);
    rig_.Fill(kUntouched);
    auto transport = network_.Open("inproc:worker");
    const std::string address = transport->address();
    core_ = std::make_unique<TransferCore>(
        std::move(transport), TransferCoreOptions{}, MakeStaging(),
        [this](TransferEvent event) { OnEvent(std::move(event)); },
        [this] { return std::exchange(commands_, {}); }, [this] { return now_; });
    to_worker_ = peer_->Connect(address).value();
    peer_->OnMessage(static_cast<MessageType>(HandoffType::kKv),
                     [](const IncomingMessage&) { return std::nullopt; });
  }

  void Run() {
    Open({LeaseId{1}, kNonce, Epoch{1}, Blocks({0, 1, 2}), 0, 10});
    Open({LeaseId{2}, kNonce, Epoch{7}, Blocks({3, 4, 5}), 4, 12});
    for (size_t step = 0; step < kStepsMax && !input_.empty(); ++step) Step();
    Settle();
    core_->Finish();
    BATON_CHECK(!core_->busy());
    BATON_CHECK(open_.empty());
    BATON_CHECK(transfers_.empty());
    BATON_CHECK(core_->staging().receives->bytes_used() == 0);
    BATON_CHECK(core_->staging().sends->bytes_used() == 0);
    CheckUntouched();
    core_.reset();
  }

 private:
  static constexpr Nonce kNonce{5, 6};

  // Small, so that pieces have to wait for room.
  TransferStaging MakeStaging() {
    return TransferStaging::Create(*rig_.arena, 2048, StagingOf(memory_)).value();
  }

  void Step() {
    switch (input_.Below(9)) {
      case 0:
      case 1:
        SendRaw();
        break;
      case 2:
      case 3:
        SendPiece();
        break;
      case 4:
        SendCommit();
        break;
      case 5:
        RetireAndReopen();
        break;
      case 6:
        BeginTransfer();
        break;
      case 7:
        now_ += std::chrono::milliseconds(input_.Byte() * 50);
        core_->Advance();
        break;
      case 8:
        Settle();
        break;
    }
  }

  void Settle() {
    core_->Advance();
    // Bounded: a message that is postponed for ever does not count as work.
    for (int i = 0; i < 1000; ++i) {
      const bool worker = core_->Poll();
      if (!peer_->Poll() && !worker) return;
    }
  }

  // --- What the peer says -----------------------------------------------------------------------

  void Send(HandoffType type, const std::vector<std::byte>& header, std::string payload) {
    auto bytes = std::make_shared<std::string>(std::move(payload));
    std::vector<ConstSpan> spans;
    if (!bytes->empty()) spans.push_back(std::as_bytes(std::span(*bytes)));
    peer_->Send(to_worker_, static_cast<MessageType>(type), header, std::move(spans),
                [bytes](const absl::Status&) {});
  }

  void SendRaw() {
    const auto type = static_cast<HandoffType>(1 + input_.Below(7));
    const std::string header = input_.Bytes(input_.Byte());
    const auto bytes = std::as_bytes(std::span(header));
    Send(type, {bytes.begin(), bytes.end()}, input_.Bytes(input_.Byte()));
  }

  EpochName Name() {
    EpochName name{LeaseId{1 + input_.Below(3)}, kNonce, Epoch{input_.Below(10)}, 0};
    const uint32_t odd = input_.Byte();
    if (odd >= 250) name.nonce.low += odd;
    if (odd >= 240) name.rank = odd - 240;
    return name;
  }

  IndexRange Range(uint32_t end_max) {
    const uint32_t begin = input_.Below(end_max + 1);
    return {begin, begin + input_.Below(end_max + 2)};
  }

  // All bytes of a piece are equal, so that a row tells which message it came with.
  void SendPiece() {
    KvMessage message;
    message.name = Name();
    const uint32_t whole = input_.Byte();
    message.piece = {{0, 3}, {0, 10}, {0, 2}};
    if ((whole & 1) != 0) message.piece.layers = Range(3);
    if ((whole & 2) != 0) message.piece.tokens = Range(12);
    if ((whole & 4) != 0) message.piece.heads = Range(2);
    const KvPiece& piece = message.piece;
    const char filler = static_cast<char>(input_.Byte());
    const bool fits = PieceFits(SmallLayout(), {0, 64}, piece);
    std::string payload(fits ? PieceBytes(SmallLayout(), piece) : 64, filler);
    if ((whole & 8) != 0) payload.resize(input_.Byte());
    const MutableSpan span(reinterpret_cast<std::byte*>(payload.data()), payload.size());
    message.payload_bytes = payload.size();
    message.checked_bytes = (whole & 32) != 0 ? input_.Byte() : payload.size();
    const size_t end = std::min<size_t>(payload.size(), message.checked_bytes);
    const MutableSpan ends[] = {span.first(end), span.last(end)};
    const bool all = end >= payload.size() - end;
    const uint64_t checksum = all ? ChecksumOf(std::span(&span, 1)) : ChecksumOf(ends);
    message.checksum = (whole & 16) != 0 ? checksum ^ 1 : checksum;
    if (fits && message.checksum == checksum) Note(message, filler);
    Send(HandoffType::kKv, Encode(message), std::move(payload));
  }

  void SendCommit() {
    CommitMessage message;
    message.name = Name();
    message.rank_count = message.name.rank + 1 + input_.Below(2);
    message.message_count = input_.Byte();
    message.byte_count = uint64_t{input_.Byte()} * 2 * SmallLayout().row_bytes();
    message.first_token = {static_cast<TokenId>(input_.Byte()), input_.Byte(),
                           input_.Bytes(input_.Below(32))};
    // Mostly what was sent, for it is what fills a lease.
    const auto sent = sent_.find({message.name.lease, message.name.epoch});
    if (input_.Below(4) != 0 && sent != sent_.end()) {
      message.message_count = sent->second.messages;
      message.byte_count = sent->second.bytes;
    }
    Send(HandoffType::kCommit, Encode(message), "");
  }

  void Note(const KvMessage& message, char filler) {
    Sent& sent = sent_[{message.name.lease, message.name.epoch}];
    ++sent.messages;
    sent.bytes += message.payload_bytes;
    const KvPiece& piece = message.piece;
    for (uint32_t layer = piece.layers.begin; layer < piece.layers.end; ++layer) {
      for (uint32_t head = piece.heads.begin; head < piece.heads.end; ++head) {
        for (uint32_t token = piece.tokens.begin; token < piece.tokens.end; ++token) {
          sent.fillers[{layer, head, token}].insert(static_cast<std::byte>(filler));
        }
      }
    }
  }

  // --- What the worker's engine asks for --------------------------------------------------------

  void Open(const LeaseGrant& grant) {
    BATON_CHECK_OK(KvReceiver::CheckGrant(*rig_.arena, grant));
    for (size_t i = grant.held_tokens / SmallLayout().block_tokens; i < grant.blocks.size(); ++i) {
      granted_.insert(grant.blocks[i]);
    }
    open_[{grant.lease, grant.epoch}] = grant;
    commands_.push_back(OpenCommand{grant});
  }

  void RetireAndReopen() {
    const LeaseId lease{1 + input_.Below(2)};
    const bool reopens = input_.Below(2) == 0;
    for (const auto& [key, grant] : open_) {
      if (key.first != lease || retired_.contains(key)) continue;
      LeaseGrant next = grant;
      retired_.insert(key);
      commands_.push_back(RetireCommand{key.first, key.second});
      next.epoch = Epoch{Raw(next.epoch) + 1};
      // A pool would not give out quarantined blocks; there are enough others for one epoch more.
      if (reopens && lease == LeaseId{1} && next.epoch == Epoch{2}) {
        next.blocks = Blocks({6, 7, 8});
        Open(next);
      }
      break;
    }
  }

  void BeginTransfer() {
    if (transfers_.size() >= 4) return;
    const TransferId id{next_transfer_++};
    Ticket ticket;
    ticket.address = input_.Below(8) == 0 ? input_.Bytes(input_.Below(32)) : peer_->address();
    ticket.lease = LeaseId{input_.Below(4)};
    ticket.nonce = kNonce;
    ticket.epoch = Epoch{input_.Below(4)};
    ticket.held_tokens = input_.Below(3) * 4;
    ticket.prompt_tokens = input_.Below(13);
    ticket.layout_fingerprint = SmallLayout().Fingerprint();
    ticket.shard_heads = input_.Below(4);
    const std::vector<BlockId> blocks = Blocks({9, 10, 11});
    if (!KvSender::CheckTicket(*rig_.arena, ticket, blocks, {}).ok()) return;
    const uint32_t prompt_tokens = ticket.prompt_tokens;
    transfers_.insert(id);
    commands_.push_back(BeginCommand{id, std::move(ticket), blocks, {}});
    commands_.push_back(PushCommand{id, {0, 3}, {0, prompt_tokens}});
    if (input_.Below(4) != 0) commands_.push_back(CommitCommand{id, {1, 0, ""}});
    if (input_.Below(4) == 0) commands_.push_back(AbortCommand{id});
    if (input_.Below(4) == 0) {
      commands_.push_back(ProbeCommand{ProbeId{next_probe_++}, peer_->address()});
    }
  }

  // --- What comes of it -------------------------------------------------------------------------

  void OnEvent(TransferEvent event) {
    if (const auto* filled = std::get_if<LeaseFilled>(&event)) {
      CheckFilled(*filled);
    } else if (const auto* quiesced = std::get_if<LeaseQuiesced>(&event)) {
      BATON_CHECK(open_.erase({quiesced->lease, quiesced->epoch}) == 1);
    } else if (const auto* released = std::get_if<TransferReleased>(&event)) {
      BATON_CHECK(transfers_.erase(released->id) == 1);
    }
  }

  void CheckFilled(const LeaseFilled& filled) {
    const EpochKey key{filled.lease, filled.epoch};
    const LeaseGrant& grant = open_.at(key);
    const KvLayout layout = SmallLayout();
    for (uint32_t layer = 0; layer < layout.layers; ++layer) {
      for (uint32_t head = 0; head < layout.kv_heads; ++head) {
        for (uint32_t token = grant.held_tokens; token < grant.prompt_tokens; ++token) {
          const std::set<std::byte>& fillers = sent_[key].fillers[{layer, head, token}];
          for (const bool value : {false, true}) {
            const auto row = RowOf(*rig_.arena, grant.blocks[token / layout.block_tokens], layer,
                                   value, head, token % layout.block_tokens);
            BATON_CHECK(fillers.contains(row[0]));
            for (const std::byte byte : row) BATON_CHECK(byte == row[0]);
          }
        }
      }
    }
  }

  void CheckUntouched() const {
    const std::vector<std::byte> data = rig_.Copy();
    const size_t block_bytes = SmallLayout().block_bytes();
    for (uint32_t block = 0; block < kBlockCount; ++block) {
      if (granted_.contains(BlockId{block})) continue;
      for (size_t i = 0; i < block_bytes; ++i) {
        BATON_CHECK(data[block * block_bytes + i] == kUntouched);
      }
    }
  }

  struct Sent {
    uint64_t messages = 0;
    uint64_t bytes = 0;
    std::map<Cell, std::set<std::byte>> fillers;
  };

  FuzzInput input_;
  Instant now_{};
  InprocNetwork network_;
  const Memory memory_;
  ArenaRig rig_;
  std::vector<TransferCommand> commands_;
  std::unique_ptr<TransferCore> core_;
  std::unique_ptr<Transport> peer_;
  PeerId to_worker_{};
  std::map<EpochKey, LeaseGrant> open_;  // Not quiesced.
  std::set<EpochKey> retired_;
  std::set<BlockId> granted_;  // Ever, for writing.
  std::map<EpochKey, Sent> sent_;
  std::set<TransferId> transfers_;  // Not released.
  uint64_t next_transfer_ = 1;
  uint64_t next_probe_ = 1;
};

}  // namespace
}  // namespace baton

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  baton::Handoff(baton::FuzzInput(data, size)).Run();
  return 0;
}
