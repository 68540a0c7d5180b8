#include "common/kv_transfer/handoff_codec.h"

#include <type_traits>

namespace baton {
namespace {

constexpr uint32_t kMagic = 0x564b5442;  // "BTKV"
constexpr uint16_t kVersion = 2;         // Raise when any struct changes.

class Writer {
 public:
  explicit Writer(HandoffType type) {
    Put(kMagic);
    Put(kVersion);
    Put(static_cast<uint16_t>(type));
  }

  template <typename T>
  Writer& Put(T value) {
    static_assert(std::is_unsigned_v<T>);
    for (size_t i = 0; i < sizeof(T); ++i) {
      bytes_.push_back(static_cast<std::byte>(value >> (8 * i)));
    }
    return *this;
  }
  Writer& Put(const EpochName& name) {
    return Put(Raw(name.lease))
        .Put(name.nonce.high)
        .Put(name.nonce.low)
        .Put(Raw(name.epoch))
        .Put(name.rank);
  }
  Writer& Put(const IndexRange& range) { return Put(range.begin).Put(range.end); }
  Writer& Put(const std::string& text) {
    for (const char c : text) bytes_.push_back(static_cast<std::byte>(c));
    return *this;
  }

  std::vector<std::byte> Take() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

// Reads what a Writer wrote. After the first byte too few everything reads as 0 and ok() is false.
class Reader {
 public:
  Reader(HandoffType type, ConstSpan bytes) : bytes_(bytes) {
    const auto magic = Get<uint32_t>();
    const auto version = Get<uint16_t>();
    const auto actual_type = Get<uint16_t>();
    ok_ =
        ok_ && magic == kMagic && version == kVersion && actual_type == static_cast<uint16_t>(type);
  }

  template <typename T>
  T Get() {
    if (bytes_.size() < sizeof(T)) ok_ = false;
    if (!ok_) return 0;
    T value = 0;
    for (size_t i = 0; i < sizeof(T); ++i) {
      value = static_cast<T>(value | static_cast<T>(static_cast<T>(bytes_[i]) << (8 * i)));
    }
    bytes_ = bytes_.subspan(sizeof(T));
    return value;
  }
  EpochName GetName() {
    EpochName name;
    name.lease = LeaseId{Get<uint64_t>()};
    name.nonce.high = Get<uint64_t>();
    name.nonce.low = Get<uint64_t>();
    name.epoch = Epoch{Get<uint32_t>()};
    name.rank = Get<uint32_t>();
    return name;
  }
  // Not empty.
  IndexRange GetRange() {
    IndexRange range;
    range.begin = Get<uint32_t>();
    range.end = Get<uint32_t>();
    if (range.begin >= range.end) ok_ = false;
    return range;
  }
  std::string GetText(size_t size, size_t size_max) {
    if (size > size_max || size > bytes_.size()) ok_ = false;
    if (!ok_) return {};
    std::string text(reinterpret_cast<const char*>(bytes_.data()), size);
    bytes_ = bytes_.subspan(size);
    return text;
  }
  void Require(bool condition) { ok_ = ok_ && condition; }

  // Everything was there, and nothing more.
  bool Finished() const { return ok_ && bytes_.empty(); }

 private:
  ConstSpan bytes_;
  bool ok_ = true;
};

template <typename Message>
std::vector<std::byte> EncodeName(HandoffType type, const Message& message) {
  return Writer(type).Put(message.name).Take();
}

template <typename Message>
std::optional<Message> DecodeName(HandoffType type, ConstSpan header) {
  Reader reader(type, header);
  Message message;
  message.name = reader.GetName();
  if (!reader.Finished()) return std::nullopt;
  return message;
}

}  // namespace

const char* NakReasonText(NakReason reason) {
  switch (reason) {
    case NakReason::kUnknownLease:
      return "the decode worker does not know the lease";
    case NakReason::kStale:
      return "another epoch of the lease is in force";
    case NakReason::kRetired:
      return "the decode worker has given the epoch up";
    case NakReason::kAborted:
      return "the epoch was aborted";
    case NakReason::kChecksum:
      return "KV bytes arrived damaged";
    case NakReason::kReceiveFailed:
      return "the decode worker could not receive the bytes";
    case NakReason::kIncomplete:
      return "all messages came, but they do not cover the lease";
    case NakReason::kCountMismatch:
      return "the commit's counts differ from what was taken";
  }
  return "unknown reason";
}

bool IsRetryable(NakReason reason) {
  switch (reason) {
    case NakReason::kUnknownLease:
    case NakReason::kStale:
    case NakReason::kRetired:
    case NakReason::kAborted:
    case NakReason::kChecksum:
    case NakReason::kReceiveFailed:
      return true;
    case NakReason::kIncomplete:
    case NakReason::kCountMismatch:
      return false;
  }
  return false;
}

absl::Status NakStatus(NakReason reason) {
  const char* text = NakReasonText(reason);
  if (reason == NakReason::kChecksum) return absl::DataLossError(text);
  return IsRetryable(reason) ? absl::AbortedError(text) : absl::InternalError(text);
}

std::vector<std::byte> Encode(const KvMessage& message) {
  return Writer(HandoffType::kKv)
      .Put(message.name)
      .Put(message.piece.layers)
      .Put(message.piece.tokens)
      .Put(message.piece.heads)
      .Put(message.payload_bytes)
      .Put(message.checked_bytes)
      .Put(message.checksum)
      .Take();
}

std::optional<KvMessage> DecodeKv(ConstSpan header) {
  Reader reader(HandoffType::kKv, header);
  KvMessage message;
  message.name = reader.GetName();
  message.piece.layers = reader.GetRange();
  message.piece.tokens = reader.GetRange();
  message.piece.heads = reader.GetRange();
  message.payload_bytes = reader.Get<uint64_t>();
  message.checked_bytes = reader.Get<uint64_t>();
  message.checksum = reader.Get<uint64_t>();
  if (!reader.Finished()) return std::nullopt;
  return message;
}

std::vector<std::byte> Encode(const CommitMessage& message) {
  const CommittedToken& token = message.first_token;
  return Writer(HandoffType::kCommit)
      .Put(message.name)
      .Put(message.rank_count)
      .Put(message.message_count)
      .Put(message.byte_count)
      .Put(static_cast<uint32_t>(token.token))
      .Put(token.index)
      .Put(static_cast<uint32_t>(token.logprobs.size()))
      .Put(token.logprobs)
      .Take();
}

std::optional<CommitMessage> DecodeCommit(ConstSpan header) {
  Reader reader(HandoffType::kCommit, header);
  CommitMessage message;
  message.name = reader.GetName();
  message.rank_count = reader.Get<uint32_t>();
  reader.Require(message.name.rank < message.rank_count &&
                 message.rank_count <= TransferShare::kRankCountMax);
  message.message_count = reader.Get<uint64_t>();
  message.byte_count = reader.Get<uint64_t>();
  message.first_token.token = static_cast<TokenId>(reader.Get<uint32_t>());
  message.first_token.index = reader.Get<uint32_t>();
  const auto logprob_bytes = reader.Get<uint32_t>();
  message.first_token.logprobs = reader.GetText(logprob_bytes, CommittedToken::kLogprobBytesMax);
  if (!reader.Finished()) return std::nullopt;
  return message;
}

std::vector<std::byte> Encode(const AbortMessage& message) {
  return EncodeName(HandoffType::kAbort, message);
}
std::optional<AbortMessage> DecodeAbort(ConstSpan header) {
  return DecodeName<AbortMessage>(HandoffType::kAbort, header);
}

std::vector<std::byte> Encode(const AckMessage& message) {
  return EncodeName(HandoffType::kAck, message);
}
std::optional<AckMessage> DecodeAck(ConstSpan header) {
  return DecodeName<AckMessage>(HandoffType::kAck, header);
}

std::vector<std::byte> Encode(const NakMessage& message) {
  return Writer(HandoffType::kNak)
      .Put(message.name)
      .Put(static_cast<uint32_t>(message.reason))
      .Take();
}

std::optional<NakMessage> DecodeNak(ConstSpan header) {
  Reader reader(HandoffType::kNak, header);
  NakMessage message;
  message.name = reader.GetName();
  const auto reason = reader.Get<uint32_t>();
  reader.Require(reason >= static_cast<uint32_t>(NakReason::kUnknownLease) &&
                 reason <= static_cast<uint32_t>(NakReason::kCountMismatch));
  message.reason = static_cast<NakReason>(reason);
  if (!reader.Finished()) return std::nullopt;
  return message;
}

std::vector<std::byte> EncodeProbe(HandoffType type, const ProbeMessage& message) {
  return Writer(type)
      .Put(message.probe)
      .Put(message.round)
      .Put(message.payload_bytes)
      .Put(message.checksum)
      .Take();
}

std::optional<ProbeMessage> DecodeProbe(HandoffType type, ConstSpan header) {
  Reader reader(type, header);
  ProbeMessage message;
  message.probe = reader.Get<uint64_t>();
  message.round = reader.Get<uint32_t>();
  message.payload_bytes = reader.Get<uint64_t>();
  message.checksum = reader.Get<uint64_t>();
  if (!reader.Finished()) return std::nullopt;
  return message;
}

}  // namespace baton
