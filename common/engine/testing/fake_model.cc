#include "common/engine/testing/fake_model.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "common/base/check.h"

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
