#include "common/tokenizer/incremental_decoder.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "common/tokenizer/json_fields.h"

namespace baton {
namespace {

constexpr const char* kReplacement = "\xEF\xBF\xBD";

std::unique_ptr<Tokenizer> Load(const std::string& name) {
  auto spec = ReadJsonFile("tests/goldens/tokenizers/" + name, 1 << 20);
  EXPECT_TRUE(spec.ok()) << spec.status();
  auto tokenizer = Tokenizer::Create(*spec, Json());
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *std::move(tokenizer);
}

// With the byte tokens <0xNN> of SentencePiece-style vocabularies.
class ByteFallbackDecoderTest : public testing::Test {
 protected:
  TokenId Byte(unsigned char byte) const {
    return *tokenizer_->Find(absl::StrFormat("<0x%02X>", byte));
  }
  TokenId Piece(const std::string& token) const { return *tokenizer_->Find(token); }
  std::string PushBytes(IncrementalDecoder* decoder, const std::string& bytes) const {
    std::string text;
    for (const char byte : bytes) text += decoder->Push(Byte(static_cast<unsigned char>(byte)));
    return text;
  }

  std::unique_ptr<Tokenizer> tokenizer_ = Load("llama2.json");
};

TEST(IncrementalDecoderTest, HoldsHalfACharacter) {
  const std::unique_ptr<Tokenizer> tokenizer = Load("gpt2.json");
  const auto ids = tokenizer->Encode("a😀", false);
  ASSERT_EQ(ids->size(), 5u);
  IncrementalDecoder decoder(tokenizer.get(), {});

  EXPECT_EQ(decoder.Push((*ids)[0]), "a");
  for (size_t i = 1; i < 4; ++i) EXPECT_EQ(decoder.Push((*ids)[i]), "");
  EXPECT_EQ(decoder.Push((*ids)[4]), "😀");
  EXPECT_EQ(decoder.Flush(), "");
}

TEST(IncrementalDecoderTest, ReplacesAnUnfinishedCharacterOnce) {
  const std::unique_ptr<Tokenizer> tokenizer = Load("gpt2.json");
  const auto ids = tokenizer->Encode("😀", false);
  IncrementalDecoder decoder(tokenizer.get(), {});
  decoder.Push((*ids)[0]);
  decoder.Push((*ids)[1]);

  EXPECT_EQ(decoder.Push(*tokenizer->Find("a")), std::string(kReplacement) + "a");
  decoder.Push((*ids)[0]);
  EXPECT_EQ(decoder.Flush(), kReplacement);
}

TEST(IncrementalDecoderTest, LeavesOutSpecialTokensWhenAsked) {
  const std::unique_ptr<Tokenizer> tokenizer = Load("gpt2.json");
  const TokenId end = *tokenizer->Find("<|endoftext|>");
  IncrementalDecoder without(tokenizer.get(), {.skip_special_tokens = true});
  IncrementalDecoder with(tokenizer.get(), {.skip_special_tokens = false});

  EXPECT_EQ(without.Push(end), "");
  EXPECT_EQ(with.Push(end), "<|endoftext|>");
}

TEST_F(ByteFallbackDecoderTest, StripsTheSpaceOnlyWhereTheTextBegins) {
  IncrementalDecoder whole(tokenizer_.get(), {});
  EXPECT_EQ(whole.Push(Piece("▁the")), "the");
  EXPECT_EQ(whole.Push(Piece("▁the")), " the");

  IncrementalDecoder continuing(tokenizer_.get(), {.continues_text = true});
  EXPECT_EQ(continuing.Push(Piece("▁the")), " the");
}

TEST_F(ByteFallbackDecoderTest, ShowsARunOfBytesWhenItEnds) {
  IncrementalDecoder decoder(tokenizer_.get(), {});
  EXPECT_EQ(PushBytes(&decoder, "é€"), "");
  EXPECT_EQ(decoder.Push(Piece("▁the")), "é€ the");
  EXPECT_EQ(PushBytes(&decoder, "é"), "");
  EXPECT_EQ(decoder.Flush(), "é");
}

TEST_F(ByteFallbackDecoderTest, ReplacesEachByteOfABrokenRun) {
  IncrementalDecoder decoder(tokenizer_.get(), {});
  const std::string r = kReplacement;
  EXPECT_EQ(PushBytes(&decoder, "é"), "");
  EXPECT_EQ(decoder.Push(Byte(0xFF)), r + r + r);
  EXPECT_EQ(decoder.Push(Byte('a')), r);
  EXPECT_EQ(decoder.Push(Piece("▁the")), " the");
  EXPECT_EQ(PushBytes(&decoder, "\xE2\x82"), "");
  EXPECT_EQ(decoder.Flush(), r + r);
}

TEST_F(ByteFallbackDecoderTest, HoldsNoMoreThanItsLimit) {
  IncrementalDecoder decoder(tokenizer_.get(), {});
  std::string shown;
  for (size_t i = 0; i < IncrementalDecoder::kByteRunBytesMax; ++i) {
    EXPECT_EQ(shown, "");
    shown += decoder.Push(Byte('x'));
  }
  EXPECT_EQ(shown, std::string(IncrementalDecoder::kByteRunBytesMax, 'x'));

  // From here on each character counts by itself.
  EXPECT_EQ(decoder.Push(Byte('y')), "y");
  EXPECT_EQ(PushBytes(&decoder, "é"), "é");
  EXPECT_EQ(decoder.Push(Byte(0xFF)), kReplacement);
  EXPECT_EQ(decoder.Push(Byte('z')), "z");
  EXPECT_EQ(decoder.Push(Byte(0xC3)), "");
  EXPECT_EQ(decoder.Push(Piece("▁the")), std::string(kReplacement) + " the");
}

TEST_F(ByteFallbackDecoderTest, GoesOnAfterAFlush) {
  IncrementalDecoder decoder(tokenizer_.get(), {});
  EXPECT_EQ(decoder.Push(Piece("▁the")), "the");
  EXPECT_EQ(decoder.Flush(), "");
  EXPECT_EQ(decoder.Push(Piece("▁the")), " the");
}

}  // namespace
}  // namespace baton
