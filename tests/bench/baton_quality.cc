// baton_quality: what a form of the weights or of the KV cache costs in quality, against float32.
//
// Over the same tokens: the mean and the largest Kullback-Leibler divergence of the next token's
// distribution, and how often the likeliest token is the same. For a model with the demo model's
// questions also how many of them it answers.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "common/base/command_line.h"
#include "common/base/status_macros.h"
#include "common/base/version.h"
#include "common/tokenizer/tokenizer.h"
#include "common/worker/engine_parts.h"
#include "decode_worker/local_runner.h"
#include "tests/bench/random_model.h"

ABSL_FLAG(std::string, shape, "",
          "Random weights of a shape instead of --model: 135m, 0.5b or 1b.");
ABSL_FLAG(
    std::string, questions, "",
    "A file of questions as deploy/demo_model/recall.jsonl: their prompts are the tokens that "
    "are compared, and their answers are counted. Empty: random tokens.");
ABSL_FLAG(uint32_t, tokens, 512, "How many random tokens.");

namespace baton {
namespace {

constexpr uint32_t kAnswerTokens = 24;
// Of random weights: the layers keep the scale of what passes through them, and logits spread as
// those of trained models do.
constexpr float kDeviation = 0.06f;
constexpr uint32_t kQuestionsCompared = 20;

struct Form {
  const char* weights;
  uint32_t activation_bits;
  DType kv_dtype;
};
constexpr Form kForms[] = {
    {"f32", 32, DType::kF32},  {"bf16", 32, DType::kBF16}, {"bf16", 32, DType::kF32},
    {"bf16", 16, DType::kF32}, {"f32", 32, DType::kBF16},  {"f32", 32, DType::kI8},
    {"f32", 32, DType::kFp8},  {"fp8", 32, DType::kF32},   {"fp8", 32, DType::kFp8},
    {"int8", 16, DType::kF32}, {"int8", 8, DType::kF32},   {"int8", 16, DType::kBF16},
    {"int8", 16, DType::kI8},  {"int4", 16, DType::kF32},  {"int4", 8, DType::kF32},
    {"int4", 16, DType::kI8},
};

struct Question {
  std::vector<TokenId> prompt;
  std::string answer;
};

absl::StatusOr<std::vector<Question>> ReadQuestions(const std::string& path,
                                                    const Tokenizer& tokenizer) {
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(absl::StrCat("--questions=", path, " cannot be read"));
  std::vector<Question> questions;
  for (std::string line; std::getline(file, line);) {
    const nlohmann::json json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object() || !json.contains("prompt") || !json.contains("answer")) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": no question: ", line));
    }
    Question question{.prompt = {}, .answer = json["answer"]};
    BATON_ASSIGN_OR_RETURN(question.prompt, tokenizer.Encode(std::string(json["prompt"]), true));
    questions.push_back(std::move(question));
  }
  return questions;
}

// Logits of every token of every prompt.
absl::StatusOr<std::vector<float>> Logits(EngineParts& parts,
                                          const std::vector<std::vector<TokenId>>& prompts) {
  const uint32_t vocab = parts.model->config().vocab_size;
  std::vector<BlockId> blocks;
  for (uint32_t i = 0; i < parts.pool->counts().total; ++i) blocks.push_back(BlockId{i});
  std::vector<float> all;
  for (const std::vector<TokenId>& prompt : prompts) {
    for (size_t begin = 0; begin < prompt.size(); begin += parts.options.chunk_tokens) {
      const size_t count = std::min<size_t>(parts.options.chunk_tokens, prompt.size() - begin);
      const BatchRow row = {.tokens = std::span(prompt).subspan(begin, count),
                            .start = static_cast<uint32_t>(begin),
                            .blocks = blocks,
                            .logit_count = static_cast<uint32_t>(count)};
      all.resize(all.size() + count * vocab);
      BATON_RETURN_IF_ERROR(parts.model->Forward({&row, 1}, *parts.arena,
                                                 std::span(all).last(count * vocab), nullptr));
    }
  }
  return all;
}

struct Difference {
  double mean_divergence = 0;
  double highest_divergence = 0;
  double same_likeliest = 0;  // Share of all tokens.
};

// Of the distributions after softmax, in nats, of `reference` from `other`.
Difference Compare(std::span<const float> reference, std::span<const float> other, size_t vocab) {
  const auto log_sum = [](std::span<const float> logits) {
    const double highest = *std::max_element(logits.begin(), logits.end());
    double sum = 0;
    for (const float logit : logits) sum += std::exp(logit - highest);
    return highest + std::log(sum);
  };
  Difference difference;
  const size_t rows = reference.size() / vocab;
  for (size_t row = 0; row < rows; ++row) {
    const auto p = reference.subspan(row * vocab, vocab);
    const auto q = other.subspan(row * vocab, vocab);
    const double p_sum = log_sum(p);
    const double q_sum = log_sum(q);
    double divergence = 0;
    for (size_t i = 0; i < vocab; ++i) {
      divergence += std::exp(p[i] - p_sum) * ((p[i] - p_sum) - (q[i] - q_sum));
    }
    difference.mean_divergence += divergence / static_cast<double>(rows);
    difference.highest_divergence = std::max(difference.highest_divergence, divergence);
    const bool same = std::max_element(p.begin(), p.end()) - p.begin() ==
                      std::max_element(q.begin(), q.end()) - q.begin();
    difference.same_likeliest += same ? 1.0 / static_cast<double>(rows) : 0.0;
  }
  return difference;
}

// How many questions are answered.
absl::StatusOr<int> Answered(EngineParts& parts, const std::vector<Question>& questions,
                             const Tokenizer& tokenizer) {
  LocalRunner runner(&parts);
  int right = 0;
  for (const Question& question : questions) {
    v1::Work work;
    work.mutable_tokens()->Assign(question.prompt.begin(), question.prompt.end());
    work.set_request(1);
    work.set_prompt_tokens(static_cast<uint32_t>(question.prompt.size()));
    work.set_total_tokens_max(work.prompt_tokens() + kAnswerTokens);
    work.mutable_sampling()->set_temperature(0);
    work.mutable_sampling()->set_seed(1);
    for (const TokenId eos : parts.model->config().eos_token_ids) {
      work.mutable_stopping()->add_stop_token_ids(eos);
    }
    const LocalResult result = runner.Run(work);
    BATON_RETURN_IF_ERROR(result.status);
    std::vector<TokenId> ids;
    for (const v1::Token& token : result.tokens) ids.push_back(token.id());
    const std::string text = tokenizer.Decode(ids, true);
    const size_t start = text.find_first_not_of(" \n");
    right += start != std::string::npos &&
                     text.compare(start, question.answer.size(), question.answer) == 0
                 ? 1
                 : 0;
  }
  return right;
}

absl::Status Run() {
  std::unique_ptr<RandomModel> random;
  EngineOptions options;
  if (const std::string shape = absl::GetFlag(FLAGS_shape); !shape.empty()) {
    BATON_ASSIGN_OR_RETURN(
        random,
        RandomModel::Create({.shape = shape, .tied_embeddings = false, .deviation = kDeviation}));
    options.model = random->path();
    options.threads = 2;
  } else {
    BATON_ASSIGN_OR_RETURN(options, EngineOptionsFromFlags());
  }
  std::unique_ptr<Tokenizer> tokenizer;
  std::vector<Question> questions;
  std::vector<std::vector<TokenId>> prompts;
  if (const std::string path = absl::GetFlag(FLAGS_questions); !path.empty()) {
    BATON_ASSIGN_OR_RETURN(tokenizer, Tokenizer::Load(options.model));
    BATON_ASSIGN_OR_RETURN(questions, ReadQuestions(path, *tokenizer));
    for (size_t i = 0; i < std::min<size_t>(kQuestionsCompared, questions.size()); ++i) {
      prompts.push_back(questions[i].prompt);
    }
  } else {
    std::mt19937 draw(1);
    prompts.emplace_back(absl::GetFlag(FLAGS_tokens));
    for (TokenId& token : prompts[0]) token = static_cast<TokenId>(draw() % 1000);
  }
  std::printf("%-22s %14s %14s %12s %10s\n", "weights/KV", "mean KL", "highest KL", "same top-1",
              "answered");
  std::vector<float> reference;
  for (const Form& form : kForms) {
    options.weights = form.weights;
    options.activation_bits = form.activation_bits;
    options.kv_dtype = form.kv_dtype;
    BATON_ASSIGN_OR_RETURN(EngineParts parts, EngineParts::Create(options));
    BATON_ASSIGN_OR_RETURN(std::vector<float> logits, Logits(parts, prompts));
    if (reference.empty()) reference = logits;
    const Difference difference = Compare(reference, logits, parts.model->config().vocab_size);
    std::string answered = "-";
    if (!questions.empty()) {
      BATON_ASSIGN_OR_RETURN(const int right, Answered(parts, questions, *tokenizer));
      answered = absl::StrCat(right, "/", questions.size());
    }
    const std::string name = absl::StrCat(
        form.weights,
        form.activation_bits < 32 ? absl::StrCat("a", form.activation_bits) : std::string(), "/",
        DTypeName(form.kv_dtype));
    std::printf("%-22s %14.3e %14.3e %11.2f%% %10s\n", name.c_str(), difference.mean_divergence,
                difference.highest_divergence, 100 * difference.same_likeliest, answered.c_str());
    std::fflush(stdout);
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace baton

int main(int argc, char** argv) {
  baton::ParseCommandLine(
      argc, argv,
      {.name = "baton_quality",
       .summary = "Measures what a form of weights and KV cache costs in quality, against float32.",
       .usage = "Usage: baton_quality --model DIR --questions FILE | --shape 135m",
       .version = baton::Version()});
  const absl::Status status = baton::Run();
  if (status.ok()) return 0;
  std::fprintf(stderr, "error: %s\n", std::string(status.message()).c_str());
  return 1;
}
