#include "common/kv_transfer/handoff_codec.h"

#include <gtest/gtest.h>

#include <functional>
#include <random>
#include <vector>

namespace baton {
namespace {

using Bytes = std::vector<std::byte>;

const EpochName kName = {
    LeaseId{0x1122334455667788}, {0xa1a2a3a4a5a6a7a8, 0xb1b2b3b4b5b6b7b8}, Epoch{0xc1c2c3c4}, 3};

KvMessage SomeKv() {
  return {kName, {{1, 4}, {16, 100}, {0, 8}}, 123456, 65536, 0xfedcba9876543210};
}
CommitMessage SomeCommit() { return {kName, 4, 77, 987654321, {-5, 9, "log-probabilities"}}; }
const ProbeMessage kProbe = {5, 2, 1 << 20, 0x1234};

// Every message, and whether its own decoder takes some bytes.
struct Case {
  const char* name;
  Bytes bytes;
  std::function<bool(ConstSpan)> decodes;
};
std::vector<Case> AllMessages() {
  return {
      {"kv", Encode(SomeKv()), [](ConstSpan b) { return DecodeKv(b).has_value(); }},
      {"commit", Encode(SomeCommit()), [](ConstSpan b) { return DecodeCommit(b).has_value(); }},
      {"abort", Encode(AbortMessage{kName}),
       [](ConstSpan b) { return DecodeAbort(b).has_value(); }},
      {"ack", Encode(AckMessage{kName}), [](ConstSpan b) { return DecodeAck(b).has_value(); }},
      {"nak", Encode(NakMessage{kName, NakReason::kChecksum}),
       [](ConstSpan b) { return DecodeNak(b).has_value(); }},
      {"probe", EncodeProbe(HandoffType::kProbe, kProbe),
       [](ConstSpan b) { return DecodeProbe(HandoffType::kProbe, b).has_value(); }},
      {"probe reply", EncodeProbe(HandoffType::kProbeReply, kProbe),
       [](ConstSpan b) { return DecodeProbe(HandoffType::kProbeReply, b).has_value(); }},
  };
}

TEST(HandoffCodecTest, KvSurvivesTheRoundTrip) {
  const KvMessage message = SomeKv();

  const std::optional<KvMessage> decoded = DecodeKv(Encode(message));

  ASSERT_TRUE(decoded.has_value());
  EXPECT_EQ(decoded->name, message.name);
  EXPECT_EQ(decoded->piece, message.piece);
  EXPECT_EQ(decoded->payload_bytes, message.payload_bytes);
  EXPECT_EQ(decoded->checked_bytes, message.checked_bytes);
  EXPECT_EQ(decoded->checksum, message.checksum);
}

TEST(HandoffCodecTest, CommitSurvivesTheRoundTrip) {
  const CommitMessage message = SomeCommit();

  const std::optional<CommitMessage> decoded = DecodeCommit(Encode(message));

  ASSERT_TRUE(decoded.has_value());
  EXPECT_EQ(decoded->name, message.name);
  EXPECT_EQ(decoded->rank_count, message.rank_count);
  EXPECT_EQ(decoded->message_count, message.message_count);
  EXPECT_EQ(decoded->byte_count, message.byte_count);
  EXPECT_EQ(decoded->first_token, message.first_token);
}

TEST(HandoffCodecTest, AnswersAndProbesSurviveTheRoundTrip) {
  EXPECT_EQ(DecodeAck(Encode(AckMessage{kName}))->name, kName);
  EXPECT_EQ(DecodeAbort(Encode(AbortMessage{kName}))->name, kName);
  for (uint32_t reason = 1; reason <= 8; ++reason) {
    const std::optional<NakMessage> nak =
        DecodeNak(Encode(NakMessage{kName, static_cast<NakReason>(reason)}));
    ASSERT_TRUE(nak.has_value());
    EXPECT_EQ(static_cast<uint32_t>(nak->reason), reason);
  }
  const std::optional<ProbeMessage> probe =
      DecodeProbe(HandoffType::kProbe, EncodeProbe(HandoffType::kProbe, kProbe));
  ASSERT_TRUE(probe.has_value());
  EXPECT_EQ(probe->round, kProbe.round);
  EXPECT_EQ(probe->checksum, kProbe.checksum);
}

// The bytes are a format: two builds must agree on them.
TEST(HandoffCodecTest, TheBytesOfAnAckAreFixed) {
  const unsigned char expected[] = {
      'B',  'T',  'K',  'V',  2,    0,    4,    0,     // magic, version, type
      0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11,  // lease
      0xa8, 0xa7, 0xa6, 0xa5, 0xa4, 0xa3, 0xa2, 0xa1,  // nonce, high
      0xb8, 0xb7, 0xb6, 0xb5, 0xb4, 0xb3, 0xb2, 0xb1,  // nonce, low
      0xc4, 0xc3, 0xc2, 0xc1, 3,    0,    0,    0};    // epoch, rank
  const Bytes bytes = Encode(AckMessage{kName});

  ASSERT_EQ(bytes.size(), sizeof(expected));
  for (size_t i = 0; i < bytes.size(); ++i) {
    EXPECT_EQ(static_cast<unsigned char>(bytes[i]), expected[i]) << i;
  }
}

TEST(HandoffCodecTest, EveryHeaderFitsTheTransport) {
  CommitMessage longest = SomeCommit();
  longest.first_token.logprobs.assign(CommittedToken::kLogprobBytesMax, 'x');
  EXPECT_LE(Encode(longest).size(), Transport::kHeaderBytesMax);
  EXPECT_TRUE(DecodeCommit(Encode(longest)).has_value());
  for (const Case& message : AllMessages()) {
    EXPECT_LE(message.bytes.size(), Transport::kHeaderBytesMax) << message.name;
  }
}

TEST(HandoffCodecTest, AMessageCutShortOrTooLongIsNone) {
  for (const Case& message : AllMessages()) {
    EXPECT_TRUE(message.decodes(message.bytes)) << message.name;
    for (size_t size = 0; size < message.bytes.size(); ++size) {
      EXPECT_FALSE(message.decodes(ConstSpan(message.bytes).first(size))) << message.name << size;
    }
    Bytes longer = message.bytes;
    longer.push_back(std::byte{0});
    EXPECT_FALSE(message.decodes(longer)) << message.name;
  }
}

TEST(HandoffCodecTest, OneDecoderDoesNotTakeTheMessagesOfAnother) {
  const std::vector<Case> messages = AllMessages();
  for (size_t i = 0; i < messages.size(); ++i) {
    for (size_t j = 0; j < messages.size(); ++j) {
      EXPECT_EQ(messages[i].decodes(messages[j].bytes), i == j)
          << messages[i].name << " takes " << messages[j].name;
    }
  }
}

TEST(HandoffCodecTest, FieldsOutOfTheirBoundsAreRefused) {
  KvMessage empty_layers = SomeKv();
  empty_layers.piece.layers = {4, 4};
  EXPECT_FALSE(DecodeKv(Encode(empty_layers)).has_value());
  KvMessage backwards = SomeKv();
  backwards.piece.tokens = {9, 3};
  EXPECT_FALSE(DecodeKv(Encode(backwards)).has_value());
  CommitMessage rank_beyond = SomeCommit();
  rank_beyond.rank_count = rank_beyond.name.rank;
  EXPECT_FALSE(DecodeCommit(Encode(rank_beyond)).has_value());
  CommitMessage many_ranks = SomeCommit();
  many_ranks.rank_count = TransferShare::kRankCountMax + 1;
  EXPECT_FALSE(DecodeCommit(Encode(many_ranks)).has_value());
  CommitMessage long_logprobs = SomeCommit();
  long_logprobs.first_token.logprobs.assign(CommittedToken::kLogprobBytesMax + 1, 'x');
  EXPECT_FALSE(DecodeCommit(Encode(long_logprobs)).has_value());
  EXPECT_FALSE(DecodeNak(Encode(NakMessage{kName, static_cast<NakReason>(0)})).has_value());
  EXPECT_FALSE(DecodeNak(Encode(NakMessage{kName, static_cast<NakReason>(9)})).has_value());
}

class HandoffCodecFuzzTest : public testing::TestWithParam<uint64_t> {};

// Goal: no bytes crash a decoder, whatever it says of them. Method: messages with random damage,
// and noise, under the sanitizers.
TEST_P(HandoffCodecFuzzTest, NoBytesCrashADecoder) {
  std::mt19937_64 random(GetParam());
  const std::vector<Case> messages = AllMessages();
  for (int i = 0; i < 2000; ++i) {
    Bytes bytes = messages[random() % messages.size()].bytes;
    if (random() % 4 == 0) bytes.resize(random() % 200);
    for (uint64_t damage = random() % 8; damage > 0 && !bytes.empty(); --damage) {
      bytes[random() % bytes.size()] = static_cast<std::byte>(random());
    }
    for (const Case& message : messages) message.decodes(bytes);
    const std::optional<KvMessage> kv = DecodeKv(bytes);
    if (kv) {
      EXPECT_LT(kv->piece.layers.begin, kv->piece.layers.end);
      EXPECT_LT(kv->piece.tokens.begin, kv->piece.tokens.end);
      EXPECT_LT(kv->piece.heads.begin, kv->piece.heads.end);
    }
    const std::optional<CommitMessage> commit = DecodeCommit(bytes);
    if (commit) {
      EXPECT_LE(commit->first_token.logprobs.size(), CommittedToken::kLogprobBytesMax);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, HandoffCodecFuzzTest, testing::Range<uint64_t>(0, 20));

}  // namespace
}  // namespace baton
