// The headers of the handoff's messages, and what UCX peers greet each other with: whatever decodes
// is exactly what the encoder writes for it.
#include <algorithm>
#include <span>
#include <string>

#include "common/base/check.h"
#include "common/kv_transfer/handoff_codec.h"
#include "common/transport/ucx/ucx_address.h"
#include "common/transport/ucx/ucx_wire.h"

namespace baton {
namespace {

void CheckSame(ConstSpan encoded, ConstSpan given) {
  BATON_CHECK(std::equal(encoded.begin(), encoded.end(), given.begin(), given.end()));
}

void CheckCommit(const CommitMessage& message) {
  BATON_CHECK(message.name.rank < message.rank_count);
  BATON_CHECK(message.rank_count <= TransferShare::kRankCountMax);
  BATON_CHECK(message.first_token.logprobs.size() <= CommittedToken::kLogprobBytesMax);
}

void CheckHandoff(ConstSpan bytes) {
  if (const auto kv = DecodeKv(bytes)) {
    for (const IndexRange& range : {kv->piece.layers, kv->piece.tokens, kv->piece.heads}) {
      BATON_CHECK(range.begin < range.end);
    }
    CheckSame(Encode(*kv), bytes);
  }
  if (const auto commit = DecodeCommit(bytes)) {
    CheckCommit(*commit);
    CheckSame(Encode(*commit), bytes);
  }
  if (const auto abort = DecodeAbort(bytes)) CheckSame(Encode(*abort), bytes);
  if (const auto ack = DecodeAck(bytes)) CheckSame(Encode(*ack), bytes);
  if (const auto nak = DecodeNak(bytes)) {
    BATON_CHECK(std::string(NakReasonText(nak->reason)) != "unknown reason");
    CheckSame(Encode(*nak), bytes);
  }
  for (const HandoffType type : {HandoffType::kProbe, HandoffType::kProbeReply}) {
    if (const auto probe = DecodeProbe(type, bytes)) CheckSame(EncodeProbe(type, *probe), bytes);
  }
}

void CheckTransport(ConstSpan bytes) {
  if (const auto greeting = DecodeGreeting(bytes)) {
    const std::string encoded = EncodeGreeting(*greeting);
    CheckSame(std::as_bytes(std::span(encoded)), bytes);
  }
  const std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  const absl::StatusOr<UcxAddress> address = DecodeUcxAddress(text);
  if (!address.ok()) return;
  BATON_CHECK(!address->hosts.empty() && address->hosts.size() <= UcxAddress::kHostsMax);
  BATON_CHECK(EncodeUcxAddress(*address) == text);
  const auto ways = WaysTo(*address, address->machine, {{"10.0.0.1", 8, false}});
  BATON_CHECK(ways.size() <= address->hosts.size());
}

}  // namespace
}  // namespace baton

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const baton::ConstSpan bytes = std::as_bytes(std::span(data, size));
  baton::CheckHandoff(bytes);
  baton::CheckTransport(bytes);
  return 0;
}
