#include "common/engine/testing/fake_model.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/sampling/sample_plan.h"
#include "common/sampling/sampler.h"

namespace baton {
namespace {

using Row = std::array<uint32_t, FakeModel::kHeadDim>;

uint32_t Mix(uint64_t value) {
  value = (value ^ (value >> 31)) * 0x9E3779B97F4A7C15ull;
  value = (value ^ (value >> 29)) * 0xBF58476D1CE4E5B9ull;
  return static_cast<uint32_t>(value >> 32);
}

// What the cache holds for a token at a position.
Row MakeRow(TokenId token, uint32_t position, uint32_t layer, bool value, uint32_t head) {
  Row row;
  const uint64_t seed = (static_cast<uint64_t>(position) << 32) ^
                        (static_cast<uint64_t>(token) << 8) ^ (layer << 4) ^ (head << 1) ^
                        (value ? 1u : 0u);
  for (uint32_t i = 0; i < row.size(); ++i) row[i] = Mix(seed * 8 + i);
  return row;
}

uint64_t Absorb(uint64_t state, const Row& row) {
  for (const uint32_t word : row) state = (state ^ word) * 0x100000001B3ull;
  return state;
}

constexpr uint64_t kStart = 0xCBF29CE484222325ull;

TokenId Choose(uint64_t state, uint32_t vocab_size) {
  return static_cast<TokenId>(Mix(state) % vocab_size);
}

template <typename Visit>
void ForEachRow(const Visit& visit) {
  for (uint32_t layer = 0; layer < FakeModel::kLayers; ++layer) {
    for (const bool value : {false, true}) {
      for (uint32_t head = 0; head < FakeModel::kKvHeads; ++head) visit(layer, value, head);
    }
  }
}

}  // namespace

FakeModel::FakeModel(uint32_t vocab_size, uint32_t context_tokens, uint32_t window) {
  config_.architecture = "Fake";
  config_.vocab_size = vocab_size;
  config_.context_tokens = context_tokens;
  config_.layers = kLayers;
  config_.heads = kKvHeads;
  config_.kv_heads = kKvHeads;
  config_.head_dim = kHeadDim;
  config_.layer_attention.assign(kLayers, {.window = window});
}

KvLayout FakeModel::Layout(uint32_t block_tokens) const {
  return {.layers = kLayers,
          .kv_heads = kKvHeads,
          .head_dim = kHeadDim,
          .block_tokens = block_tokens,
          .dtype = DType::kF32};
}

void FakeModel::WriteRow(KvArena& cache, const BatchRow& row, uint32_t layer,
                         uint32_t index) const {
  const uint32_t block_tokens = cache.layout().block_tokens;
  const uint32_t position = row.start + index;
  for (const bool value : {false, true}) {
    for (uint32_t head = 0; head < kKvHeads; ++head) {
      const Row data = MakeRow(row.tokens[index], position, layer, value, head);
      std::memcpy(cache.RowData(row.blocks[position / block_tokens], layer, value, head,
                                position % block_tokens),
                  data.data(), sizeof(data));
    }
  }
}

absl::Status FakeModel::Forward(std::span<const BatchRow> rows, KvArena& cache,
                                std::span<float> logits, const LayerDone& layer_done) {
  BATON_CHECK(started_.empty());
  return ForwardNow(rows, cache, logits, layer_done);
}

absl::Status FakeModel::ForwardNow(std::span<const BatchRow> rows, KvArena& cache,
                                   std::span<float> logits, const LayerDone& layer_done) {
  if (!next_error_.ok()) return std::exchange(next_error_, absl::OkStatus());
  for (uint32_t layer = 0; layer < kLayers; ++layer) {
    for (const BatchRow& row : rows) {
      for (uint32_t i = 0; i < row.tokens.size(); ++i) WriteRow(cache, row, layer, i);
    }
    if (layer_done) layer_done(layer);
  }
  std::fill(logits.begin(), logits.end(), 0.0f);
  const uint32_t block_tokens = cache.layout().block_tokens;
  size_t logit_row = 0;
  for (const BatchRow& row : rows) {
    BATON_CHECK(row.logit_count <= 1);
    if (row.logit_count == 0) continue;
    uint64_t state = kStart;
    const uint32_t end = row.start + static_cast<uint32_t>(row.tokens.size());
    for (uint32_t position = config_.FirstVisible(end - 1); position < end; ++position) {
      ForEachRow([&](uint32_t layer, bool value, uint32_t head) {
        Row data;
        std::memcpy(data.data(),
                    cache.RowData(row.blocks[position / block_tokens], layer, value, head,
                                  position % block_tokens),
                    sizeof(data));
        state = Absorb(state, data);
      });
    }
    logits[logit_row++ * config_.vocab_size +
           static_cast<size_t>(Choose(state, config_.vocab_size))] = 10.0f;
  }
  BATON_CHECK(logit_row * config_.vocab_size == logits.size());
  return absl::OkStatus();
}

absl::Status FakeModel::ForwardAndSample(std::span<const BatchRow> rows, KvArena& cache,
                                         const TokenChoice& choice, const LayerDone& layer_done) {
  BATON_CHECK(started_.empty());
  return SampleNow(rows, cache, choice, layer_done);
}

absl::Status FakeModel::SampleNow(std::span<const BatchRow> rows, KvArena& cache,
                                  const TokenChoice& choice, const LayerDone& layer_done) {
  const size_t vocab = config_.vocab_size;
  std::vector<float> logits(choice.samples.size() * vocab);
  BATON_RETURN_IF_ERROR(ForwardNow(rows, cache, logits, layer_done));
  for (size_t i = 0; i < choice.raw_rows.size(); ++i) {
    std::copy_n(logits.begin() + static_cast<ptrdiff_t>(choice.raw_rows[i] * vocab), vocab,
                choice.raw_logits.begin() + static_cast<ptrdiff_t>(i * vocab));
  }
  for (size_t i = 0; i < choice.samples.size(); ++i) {
    const SampleRow& row = choice.samples[i];
    const SamplePlan plan = {
        .row = row,
        .edits = {choice.edits.begin() + row.edits_begin, choice.edits.begin() + row.edits_end}};
    choice.tokens[i] = Sample(std::span(logits).subspan(i * vocab, vocab), plan, std::nullopt).id;
  }
  return absl::OkStatus();
}

absl::Status FakeModel::StartStep(std::span<const DecodeRow> rows, KvArena& cache,
                                  std::span<const SampleRow> samples,
                                  std::span<const LogitEdit> edits) {
  BATON_CHECK(starts_steps_ && started_.size() < 2 && samples.size() == rows.size());
  draws_ = draws_ * 0x5851F42D4C957F2Dull + 0x14057B7EF767814Full;
  const uint64_t drawn = draws_ >> 33;
  // An error shows at once, or when the step is waited for.
  if (!next_error_.ok() && drawn % 4 == 0) return std::exchange(next_error_, absl::OkStatus());
  StartedStep& step = started_.emplace_back();
  ++started_steps_;
  step.cache = &cache;
  step.samples.assign(samples.begin(), samples.end());
  step.edits.assign(edits.begin(), edits.end());
  for (const DecodeRow& row : rows) {
    step.rows.push_back({.token = row.token,
                         .chosen_by = row.chosen_by,
                         .start = row.start,
                         .blocks = {row.blocks.begin(), row.blocks.end()}});
  }
  if (drawn % 2 == 0) ComputeStarted(started_.size());
  return absl::OkStatus();
}

void FakeModel::ComputeStarted(size_t count) {
  for (size_t i = 0; i < count; ++i) {
    StartedStep& step = started_[i];
    if (!std::exchange(step.done, true)) step.status = Compute(step);
  }
}

absl::Status FakeModel::Compute(StartedStep& step) {
  std::vector<BatchRow> rows;
  for (StartedRow& row : step.rows) {
    if (row.chosen_by.has_value()) row.token = chosen_.at(*row.chosen_by);
    rows.push_back(
        {.tokens = {&row.token, 1}, .start = row.start, .blocks = row.blocks, .logit_count = 1});
  }
  // As of a device that fails, but for what comes next: that has something to begin with.
  chosen_.assign(rows.size(), 0);
  step.tokens = chosen_;
  const TokenChoice choice = {.samples = step.samples, .edits = step.edits, .tokens = step.tokens};
  BATON_RETURN_IF_ERROR(SampleNow(rows, *step.cache, choice, nullptr));
  chosen_ = step.tokens;
  return absl::OkStatus();
}

absl::Status FakeModel::FinishStep(std::span<TokenId> tokens) {
  ComputeStarted(1);
  const StartedStep step = std::move(started_.front());
  started_.pop_front();
  BATON_CHECK(tokens.size() == step.tokens.size());
  std::copy(step.tokens.begin(), step.tokens.end(), tokens.begin());
  return step.status;
}

std::vector<TokenId> FakeContinuation(std::vector<TokenId> tokens, uint32_t count,
                                      uint32_t vocab_size, uint32_t window) {
  const size_t prompt = tokens.size();
  while (tokens.size() < prompt + count) {
    uint64_t state = kStart;
    const uint32_t end = static_cast<uint32_t>(tokens.size());
    for (uint32_t position = window == 0 || end <= window ? 0 : end - window; position < end;
         ++position) {
      ForEachRow([&](uint32_t layer, bool value, uint32_t head) {
        state = Absorb(state, MakeRow(tokens[position], position, layer, value, head));
      });
    }
    tokens.push_back(Choose(state, vocab_size));
  }
  return {tokens.begin() + static_cast<std::ptrdiff_t>(prompt), tokens.end()};
}

}  // namespace baton
