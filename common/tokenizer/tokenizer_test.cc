#include "common/tokenizer/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/tokenizer/incremental_decoder.h"
#include "common/tokenizer/json_fields.h"
#include "common/tokenizer/utf8.h"

namespace baton {
namespace {

using ::testing::HasSubstr;

constexpr const char* kGoldens = "tests/goldens/tokenizers/";

Json ReadGolden(const std::string& name) {
  absl::StatusOr<Json> json = ReadJsonFile(absl::StrCat(kGoldens, name), Tokenizer::kFileBytesMax);
  EXPECT_TRUE(json.ok()) << json.status();
  return json.ok() ? *std::move(json) : Json();
}

const Json& Vectors() {
  static const Json vectors = ReadGolden("vectors.json");
  return vectors;
}

// The tokenizer of a case: its base with some fields replaced.
std::unique_ptr<Tokenizer> Make(const Json& test_case) {
  Json spec = ReadGolden(absl::StrCat(test_case["base"].get<std::string>(), ".json"));
  for (const auto& [key, value] : test_case["fields"].items()) spec[key] = value;
  for (const auto& [key, value] : test_case["model_fields"].items()) spec["model"][key] = value;
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Create(spec, Json());
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

std::unique_ptr<Tokenizer> MakeBase(const std::string& base) {
  return Make(Json{{"base", base}, {"fields", Json::object()}, {"model_fields", Json::object()}});
}

const Json& CaseOf(const std::string& name) {
  for (const Json& test_case : Vectors()["cases"]) {
    if (test_case["name"] == name) return test_case;
  }
  ADD_FAILURE() << "no case " << name;
  return Vectors();
}

std::vector<std::string> CaseNames() {
  std::vector<std::string> names;
  for (const Json& test_case : Vectors()["cases"]) names.push_back(test_case["name"]);
  return names;
}

class GoldenTest : public testing::TestWithParam<std::string> {};

TEST_P(GoldenTest, EncodesEachTextAsHuggingFaceDoes) {
  const Json& test_case = CaseOf(GetParam());
  const Json& base = CaseOf(test_case["base"]);
  const std::unique_ptr<Tokenizer> tokenizer = Make(test_case);
  ASSERT_NE(tokenizer, nullptr);

  const Json& texts = Vectors()["texts"];
  for (size_t i = 0; i < texts.size(); ++i) {
    const std::string key = absl::StrCat(i);
    const Json& expected =
        test_case["encode"].contains(key) ? test_case["encode"][key] : base["encode"][key];
    const auto ids = tokenizer->Encode(texts[i], /*add_special_tokens=*/false);
    ASSERT_TRUE(ids.ok()) << ids.status() << " text " << texts[i];
    EXPECT_EQ(*ids, expected.get<std::vector<TokenId>>()) << "text " << texts[i];
  }
  const auto hello = tokenizer->Encode("Hello world", /*add_special_tokens=*/true);
  EXPECT_EQ(*hello, test_case["hello_world_with_special"].get<std::vector<TokenId>>());
}

TEST_P(GoldenTest, DecodesIdsAsHuggingFaceDoes) {
  const Json& test_case = CaseOf(GetParam());
  const std::unique_ptr<Tokenizer> tokenizer = Make(test_case);
  ASSERT_NE(tokenizer, nullptr);

  for (const Json& vector : test_case["decode"]) {
    const auto ids = vector[0].get<std::vector<TokenId>>();
    EXPECT_EQ(tokenizer->Decode(ids, /*skip_special_tokens=*/true), vector[1]) << vector[0];
    EXPECT_EQ(tokenizer->Decode(ids, /*skip_special_tokens=*/false), vector[2]) << vector[0];
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, GoldenTest, testing::ValuesIn(CaseNames()),
                         [](const auto& test) { return test.param; });

// Text of characters that tokenizers trip over, and of stretches of the goldens' texts.
std::string RandomText(std::mt19937_64* rng) {
  static const std::vector<std::string> kParts = {
      " ",    "  ",   "\n",     "\t",     "a",    "the", "Hello",        "é",    "e\u0301", "한",
      "世界", "😀",    "\u200d", "\u00a0", "1234", "'s",  "<|im_start|>", "</s>", "<s>",     "[L]",
      "[R]",  "word", ".",      "▁",      "Ġ"};
  std::string text;
  for (uint64_t n = (*rng)() % 24; n > 0; --n) {
    if ((*rng)() % 4 == 0) {
      AppendUtf8(static_cast<char32_t>(1 + (*rng)() % 0xD7FF), &text);
    } else {
      text += kParts[(*rng)() % kParts.size()];
    }
  }
  return text;
}

class RandomTest : public testing::TestWithParam<uint64_t> {};

TEST_P(RandomTest, ByteLevelDecodingGivesBackAnyText) {
  std::mt19937_64 rng(GetParam());
  for (const char* base : {"gpt2", "llama3"}) {
    const std::unique_ptr<Tokenizer> tokenizer = MakeBase(base);
    for (int i = 0; i < 200; ++i) {
      const std::string text = RandomText(&rng);
      const auto ids = tokenizer->Encode(text, false);
      ASSERT_TRUE(ids.ok()) << ids.status();
      EXPECT_EQ(tokenizer->Decode(*ids, false), text);
    }
  }
}

TEST_P(RandomTest, SentencePieceDecodingGivesBackTextWithoutSpecialTokens) {
  std::mt19937_64 rng(GetParam());
  const std::unique_ptr<Tokenizer> tokenizer = MakeBase("llama2");
  for (int i = 0; i < 200; ++i) {
    std::string text = RandomText(&rng);
    if (text.find('<') != std::string::npos || text.find("▁") != std::string::npos) continue;
    const auto ids = tokenizer->Encode(text, false);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(tokenizer->Decode(*ids, false), text);
  }
}

TEST_P(RandomTest, StreamingGivesTheTextOfTheWholeAndOnlyWholeCharacters) {
  std::mt19937_64 rng(GetParam());
  for (const char* name : {"gpt2", "qwen", "llama2", "llama2_legacy_metaspace", "gemma"}) {
    const std::unique_ptr<Tokenizer> tokenizer = Make(CaseOf(name));
    for (int i = 0; i < 100; ++i) {
      std::vector<TokenId> ids(rng() % 40);
      // Mostly the lower ids: there are the bytes.
      for (TokenId& id : ids) id = static_cast<TokenId>(rng() % (rng() % 3 == 0 ? 600 : 259));
      const bool skip = rng() % 2 == 0;

      IncrementalDecoder decoder(tokenizer.get(), {.skip_special_tokens = skip});
      std::string streamed;
      for (const TokenId id : ids) {
        const std::string piece = decoder.Push(id);
        EXPECT_EQ(ValidUtf8Prefix(piece), piece.size());
        streamed += piece;
      }
      streamed += decoder.Flush();

      EXPECT_EQ(streamed, tokenizer->Decode(ids, skip));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, RandomTest, testing::Range<uint64_t>(0, 10));

TEST(TokenizerTest, RefusesTextThatIsNotUtf8) {
  const std::unique_ptr<Tokenizer> tokenizer = MakeBase("gpt2");
  for (const std::string text :
       {"ab\xff", "\xc0\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "a\xe2\x82"}) {
    const auto ids = tokenizer->Encode(text, true);
    EXPECT_TRUE(absl::IsInvalidArgument(ids.status()));
    EXPECT_THAT(std::string(ids.status().message()), HasSubstr("not UTF-8 at byte"));
  }
}

TEST(TokenizerTest, NamesTheCharacterThatTheVocabularyCannotExpress) {
  Json spec = ReadGolden("llama2.json");
  spec["model"]["byte_fallback"] = false;
  spec["model"]["unk_token"] = nullptr;
  const auto tokenizer = Tokenizer::Create(spec, Json());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();

  const auto ids = (*tokenizer)->Encode("a😀", false);

  EXPECT_TRUE(absl::IsInvalidArgument(ids.status()));
  EXPECT_THAT(std::string(ids.status().message()), HasSubstr("U+1F600"));
}

TEST(TokenizerTest, KnowsItsTokens) {
  const std::unique_ptr<Tokenizer> tokenizer = MakeBase("llama3");
  const TokenId bos = *tokenizer->Find("<|begin_of_text|>");

  EXPECT_TRUE(tokenizer->IsSpecial(bos));
  EXPECT_FALSE(tokenizer->IsSpecial(0));
  EXPECT_EQ(tokenizer->TokenBytes(*tokenizer->Find("Ġzebra")), " zebra");
  EXPECT_EQ(tokenizer->vocab_size(), *tokenizer->Find("<|eot_id|>") + 1);
  EXPECT_FALSE(tokenizer->HasToken(tokenizer->vocab_size()));
  EXPECT_FALSE(tokenizer->HasToken(-1));
  EXPECT_FALSE(tokenizer->IsSpecial(tokenizer->vocab_size()));
  EXPECT_EQ(tokenizer->TokenBytes(-1), "");
  EXPECT_EQ(tokenizer->Decode(std::vector<TokenId>{-1, 1 << 30}, false), "");
  EXPECT_EQ(tokenizer->Find("no such token"), std::nullopt);
}

// Goal: what stands around a prompt is what transformers puts there. Method: its ids for many
// tokenizer_config.json (tests/goldens/tokenizers/generate_configs.py).
TEST(TokenizerTest, PutsAroundATextWhatTheConfiguredClassDoes) {
  const Json vectors = ReadGolden("config_vectors.json");
  for (const Json& vector : vectors["cases"]) {
    SCOPED_TRACE(vector["config"].dump());
    const Json spec = ReadGolden(absl::StrCat(vector["base"].get<std::string>(), ".json"));
    const auto tokenizer = Tokenizer::Create(spec, vector["config"]);
    if (vector["ids"].is_null()) {
      EXPECT_TRUE(absl::IsInvalidArgument(tokenizer.status()));
      EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr("os_token, which is null"));
      continue;
    }
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();

    const auto ids = (*tokenizer)->Encode(vectors["text"], /*add_special_tokens=*/true);

    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, vector["ids"].get<std::vector<TokenId>>());
  }
}

TEST(TokenizerTest, RefusesAConfigThatNamesUnknownTokens) {
  const auto wrong = Tokenizer::Create(ReadGolden("llama2.json"), {{"eos_token", "<nowhere>"}});
  const auto absent =
      Tokenizer::Create(ReadGolden("llama2.json"), {{"tokenizer_class", "GemmaTokenizer"}});
  const auto malformed = Tokenizer::Create(ReadGolden("llama2.json"), {{"add_bos_token", "yes"}});

  EXPECT_THAT(std::string(wrong.status().message()), HasSubstr("eos_token \"<nowhere>\""));
  EXPECT_THAT(std::string(absent.status().message()), HasSubstr("bos_token \"<bos>\""));
  EXPECT_TRUE(malformed.ok());  // No class asks for it.
}

// The class makes a post-processor of its own, so what the file has does not matter.
TEST(TokenizerTest, APostProcessorThatTheClassReplacesIsNotRead) {
  Json spec = ReadGolden("llama2.json");
  spec["post_processor"] = {{"type", "BertProcessing"}};
  const Json config = {{"tokenizer_class", "LlamaTokenizer"}};

  EXPECT_TRUE(Tokenizer::Create(spec, config).ok());
  EXPECT_TRUE(absl::IsUnimplemented(Tokenizer::Create(spec, Json()).status()));
}

TEST(TokenizerTest, CleansUpSpacesWhereTheConfigSaysSo) {
  const Json config = {{"clean_up_tokenization_spaces", true}};
  const auto tokenizer = Tokenizer::Create(ReadGolden("gpt2.json"), config);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const std::string text = "a . b ? c ! d , e ' f do n't I 'm it 's we 've you 're . . x  .";
  const auto ids = (*tokenizer)->Encode(text, false);

  // As transformers' clean_up_tokenization gives it.
  const std::string clean = "a. b? c! d, e'f don't I'm it's we've you're.. x .";
  EXPECT_EQ((*tokenizer)->Decode(*ids, false), clean);
  IncrementalDecoder raw(tokenizer->get(), {.clean_up_spaces = false});
  std::string streamed;
  for (const TokenId id : *ids) streamed += raw.Push(id);
  EXPECT_EQ(streamed + raw.Flush(), text);
}

TEST(TokenizerTest, EncodesUpToSoManyIds) {
  const std::unique_ptr<Tokenizer> tokenizer = MakeBase("qwen");
  const std::string text = "One two three<|im_end|> four";
  const size_t count = tokenizer->Encode(text, false)->size();

  EXPECT_EQ(tokenizer->Encode(text, false, count)->size(), count);
  for (size_t ids_max = 0; ids_max < count; ++ids_max) {
    EXPECT_TRUE(absl::IsOutOfRange(tokenizer->Encode(text, false, ids_max).status()));
  }
}

TEST(TokenizerTest, ThreadsShareOneTokenizer) {
  const std::unique_ptr<Tokenizer> tokenizer = MakeBase("qwen");
  const Json& texts = Vectors()["texts"];
  const Json& expected = CaseOf("qwen")["encode"];
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (size_t i = 0; i < texts.size(); ++i) {
        const auto ids = tokenizer->Encode(texts[i], false);
        EXPECT_EQ(*ids, expected[absl::StrCat(i)].get<std::vector<TokenId>>());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// Goal: no text takes more than about linear time.
// Method: a megabyte of each kind that is quadratic for a simple implementation; ctest's time limit
// is the judge.
TEST(TokenizerTest, MegabytesOfAnythingFinish) {
  const std::vector<std::string> units = {"a",           " ", " \n", "wordword", "\u0301\u0323",
                                          "<|im_start|", "'", "世",  " [R] ",    "▁",
                                          "\u1100"};
  for (const char* name : {"qwen", "llama2", "gpt2_no_regex"}) {
    const std::unique_ptr<Tokenizer> tokenizer = Make(CaseOf(name));
    for (const std::string& unit : units) {
      std::string text;
      while (text.size() < (1 << 20)) text += unit;
      const auto ids = tokenizer->Encode(text, true);
      ASSERT_TRUE(ids.ok()) << ids.status();
      EXPECT_FALSE(tokenizer->Decode(*ids, false).empty());
    }
  }
}

// Each edit breaks tokenizer.json in one way; the error must name it.
struct Broken {
  const char* base;
  const char* pointer;  // Of the field that is replaced.
  Json value;
  const char* message;
};

class BrokenFileTest : public testing::TestWithParam<Broken> {};

TEST_P(BrokenFileTest, IsRefusedByName) {
  Json spec = ReadGolden(GetParam().base);
  spec[Json::json_pointer(GetParam().pointer)] = GetParam().value;

  const auto tokenizer = Tokenizer::Create(spec, Json());

  ASSERT_FALSE(tokenizer.ok());
  EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr(GetParam().message));
}

// As T5's: its normalizer, its vocabulary and its decoder are of other kinds, too.
TEST(TokenizerTest, RefusesUnigramBeforeAnythingElseOfSuchAFile) {
  Json spec = {
      {"added_tokens", Json::array()},
      {"normalizer", {{"type", "Precompiled"}, {"precompiled_charsmap", "ALQCAACEAAAAAACAAQ=="}}},
      {"pre_tokenizer",
       {{"type", "Metaspace"}, {"replacement", "▁"}, {"prepend_scheme", "always"}}},
      {"decoder", {{"type", "Metaspace"}, {"replacement", "▁"}, {"prepend_scheme", "always"}}},
      {"model",
       {{"type", "Unigram"},
        {"unk_id", 0},
        {"vocab", Json::array({Json::array({"<unk>", 0.0}), Json::array({"▁", -2.0122})})},
        {"byte_fallback", false}}}};
  const std::string message =
      "tokenizer.json: model: type \"Unigram\" is not supported; supported is BPE";

  EXPECT_EQ(std::string(Tokenizer::Create(spec, Json()).status().message()), message);

  spec["model"].erase("type");  // As older files have it.
  EXPECT_EQ(std::string(Tokenizer::Create(spec, Json()).status().message()), message);
}

Json Nested(const char* key, int depth) {
  Json spec = {{"type", "Sequence"}, {key, Json::array()}};
  for (int i = 0; i < depth; ++i) spec = {{"type", "Sequence"}, {key, Json::array({spec})}};
  return spec;
}

Json SplitBy(const char* regex) {
  return {{"type", "Split"}, {"pattern", {{"Regex", regex}}}, {"behavior", "Isolated"}};
}

Json Twice(const char* key, const Json& step) {
  return {{"type", "Sequence"}, {key, Json::array({step, step})}};
}

// One alone is fine; two in a row multiply.
Json ReplaceByNine() {
  return {{"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", "aaaaaaaaa"}};
}

Json MetaspaceStep() { return {{"type", "Metaspace"}, {"replacement", "_"}}; }

INSTANTIATE_TEST_SUITE_P(
    Fields, BrokenFileTest,
    testing::Values(
        Broken{"gpt2.json", "/model", nullptr, "no model"},
        Broken{"gpt2.json", "/model/type", "Unigram", "\"Unigram\""},
        Broken{"gpt2.json", "/model/dropout", 0.5, "model.dropout"},
        Broken{"gpt2.json", "/model/end_of_word_suffix", "</w>", "end_of_word_suffix"},
        Broken{"gpt2.json", "/model/vocab", Json::array(), "model.vocab"},
        Broken{"gpt2.json", "/model/vocab", Json::object(), "model.vocab"},
        Broken{"gpt2.json", "/model/vocab/the", -1, "\"the\""},
        Broken{"gpt2.json", "/model/vocab/the", 1 << 30, "\"the\""},
        Broken{"gpt2.json", "/model/vocab/the", 0, "belongs to two"},
        Broken{"gpt2.json", "/model/merges/0", "a b c", "merges[0]"},
        Broken{"gpt2.json", "/model/merges/0", "zz yy", "merges[0]"},
        Broken{"gpt2.json", "/model/merges/0", 7, "merges[0]"},
        Broken{"gpt2.json", "/model/unk_token", "<nowhere>", "<nowhere>"},
        Broken{"gpt2.json", "/model/ignore_merges", "yes", "ignore_merges"},
        Broken{"gpt2.json", "/normalizer", {{"type", "Lowercase"}}, "\"Lowercase\""},
        Broken{"gpt2.json", "/normalizer", {{"type", 1}}, "normalizer.type"},
        Broken{"gpt2.json", "/normalizer", Nested("normalizers", 20), "deep"},
        Broken{"gpt2.json", "/normalizer", Twice("normalizers", ReplaceByNine()), "longer"},
        Broken{"gpt2.json", "/pre_tokenizer", {{"type", "BertPreTokenizer"}}, "BertPreTokenizer"},
        Broken{"gpt2.json", "/pre_tokenizer", Twice("pretokenizers", MetaspaceStep()), "second"},
        Broken{"gpt2.json", "/pre_tokenizer", Nested("pretokenizers", 20), "deep"},
        Broken{"gpt2.json", "/pre_tokenizer", SplitBy("(a"), "pattern \"(a\""},
        Broken{"gpt2.json", "/pre_tokenizer", SplitBy("a{1,3}+"), "{1,3}+"},
        Broken{"gpt2.json", "/pre_tokenizer", SplitBy("[a&&b]"), "&&"},
        Broken{"gpt2.json", "/pre_tokenizer", SplitBy("a\\b"), "\\b"},
        Broken{"gpt2.json", "/pre_tokenizer", SplitBy("(*UTF)a"), "(*"},
        Broken{"gpt2.json", "/decoder", nullptr, "decoder"},
        Broken{"gpt2.json", "/decoder", {{"type", "WordPiece"}}, "WordPiece"},
        Broken{"gpt2.json", "/decoder", Twice("decoders", ReplaceByNine()), "longer"},
        Broken{"gpt2.json", "/decoder", Nested("decoders", 20), "deep"},
        Broken{"llama2.json", "/decoder/decoders/2", {{"type", "ByteLevel"}}, "decoders[2]"},
        Broken{"llama2.json", "/decoder/decoders/3/stop", 1, "decoders[3]"},
        Broken{"llama2.json", "/post_processor", {{"type", "BertProcessing"}}, "BertProcessing"},
        Broken{"llama2.json", "/post_processor/single", Json::array(), "single"},
        Broken{"llama2.json", "/post_processor/special_tokens", Json::object(), "\"<s>\""},
        Broken{"llama2.json", "/post_processor/special_tokens/<s>/ids/0", 99999, "\"<s>\""},
        Broken{"llama2.json", "/added_tokens", "x", "added_tokens"},
        Broken{"llama2.json", "/added_tokens/1/id", 5, "\"<s>\""},
        Broken{"llama2.json", "/added_tokens/1/content", "new", "\"new\""},
        Broken{"llama2.json", "/added_tokens/1/content", std::string(5000, 'x'), "5000 bytes"},
        Broken{"llama2.json", "/added_tokens/1/id", 1 << 30, "added_tokens[1].id"}));

TEST(TokenizerTest, LoadNamesTheFileThatIsMissing) {
  const auto tokenizer = Tokenizer::Load("/nonexistent");
  EXPECT_TRUE(absl::IsNotFound(tokenizer.status()));
  EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr("/nonexistent/tokenizer.json"));
}

}  // namespace
}  // namespace baton
