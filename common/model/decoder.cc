#include "common/model/decoder.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/model/fingerprint.h"

namespace baton {
namespace {

// Rows of logits computed at a time: a vocabulary of 128k takes half a megabyte per row.
constexpr uint32_t kLogitRowsMax = 64;

absl::Status BatchError(const std::string& reason) {
  return absl::InvalidArgumentError(absl::StrCat("batch: ", reason));
}

KvPages LayerPages(const KvArena& cache, uint32_t layer) {
  const KvLayout& layout = cache.layout();
  return {.data = cache.BlockData(BlockId{0}) + layer * layout.layer_bytes(),
          .block_bytes = layout.block_bytes(),
          .dtype = layout.dtype,
          .kv_heads = layout.kv_heads,
          .head_dim = layout.head_dim,
          .block_tokens = layout.block_tokens};
}

bool HasLocalRotation(const ModelConfig& config) {
  return std::any_of(config.layer_attention.begin(), config.layer_attention.end(),
                     [](const LayerAttention& layer) { return layer.local_rope; });
}

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> Model::Load(Device& device, const ModelOptions& options) {
  WeightOptions weight_options = {.activation_bytes = options.activation_bytes,
                                  .progress = options.progress};
  if (!options.weights.empty()) {
    BATON_ASSIGN_OR_RETURN(weight_options.form, ParseWeightForm(options.weights));
  }
  // First of all: without kernels there is no point in reading weights.
  BATON_ASSIGN_OR_RETURN(std::unique_ptr<KernelContext> context,
                         KernelContext::Create({.device = device.kind(),
                                                .threads = options.threads,
                                                .pin_threads = options.pin_threads}));
  BATON_ASSIGN_OR_RETURN(ModelConfig config, ModelConfig::Load(options.directory));
  BATON_ASSIGN_OR_RETURN(
      std::unique_ptr<ModelWeights> weights,
      ModelWeights::Load(device, *context, config, options.directory, weight_options));
  config.stored_dtype = weights->stored_dtype();
  BATON_ASSIGN_OR_RETURN(std::string fingerprint,
                         ModelFingerprint(options.directory, weights->files()));
  return Decoder::Create(device, config, std::move(weights), std::move(context),
                         options.batch_tokens_max, std::move(fingerprint));
}

absl::StatusOr<std::unique_ptr<Decoder>> Decoder::Create(Device& device, const ModelConfig& config,
                                                         std::unique_ptr<ModelWeights> weights,
                                                         std::unique_ptr<KernelContext> context,
                                                         uint32_t batch_tokens_max,
                                                         std::string fingerprint) {
  if (batch_tokens_max == 0) return absl::InvalidArgumentError("batch_tokens_max must not be 0");
  std::unique_ptr<Decoder> decoder(new Decoder(device, config, std::move(weights),
                                               std::move(context), batch_tokens_max,
                                               std::move(fingerprint)));
  BATON_RETURN_IF_ERROR(decoder->AllocateScratch());
  if (config.experts.count > 0) {
    BATON_ASSIGN_OR_RETURN(decoder->experts_, ExpertMixture::Create(device, *decoder->context_,
                                                                    config, batch_tokens_max));
  }
  return decoder;
}

Decoder::Decoder(Device& device, const ModelConfig& config, std::unique_ptr<ModelWeights> weights,
                 std::unique_ptr<KernelContext> context, uint32_t batch_tokens_max,
                 std::string fingerprint)
    : device_(device),
      config_(config),
      weights_(std::move(weights)),
      context_(std::move(context)),
      batch_tokens_max_(batch_tokens_max),
      fingerprint_(std::move(fingerprint)),
      numerics_(absl::StrCat(weights_->format_names(), "/", context_->numerics())),
      angles_(config.rope),
      local_angles_(config.local_rope) {}

absl::Status Decoder::AllocateScratch() {
  const auto allocate = [this](size_t rows, size_t columns, TensorView* view) -> absl::Status {
    BATON_ASSIGN_OR_RETURN(DeviceMemory memory, device_.Allocate(rows * columns * sizeof(float)));
    *view = TensorView(memory.data(), DType::kF32, device_.kind(), {rows, columns});
    memory_.push_back(std::move(memory));
    return absl::OkStatus();
  };
  const size_t tokens = batch_tokens_max_;
  const size_t q_size = static_cast<size_t>(config_.heads) * config_.head_dim;
  const size_t kv_size = static_cast<size_t>(config_.kv_heads) * config_.head_dim;
  const size_t half = config_.rope.dim / 2;
  const size_t local_half = config_.local_rope.dim / 2;
  BATON_RETURN_IF_ERROR(allocate(tokens, config_.hidden_size, &scratch_.x));
  BATON_RETURN_IF_ERROR(allocate(tokens, config_.hidden_size, &scratch_.h));
  BATON_RETURN_IF_ERROR(allocate(tokens, q_size, &scratch_.q));
  BATON_RETURN_IF_ERROR(allocate(tokens, q_size, &scratch_.attention));
  BATON_RETURN_IF_ERROR(allocate(tokens, kv_size, &scratch_.k));
  BATON_RETURN_IF_ERROR(allocate(tokens, kv_size, &scratch_.v));
  bool some_dense = false;
  for (uint32_t i = 0; i < config_.layers; ++i) some_dense = some_dense || !config_.HasExperts(i);
  const size_t inner = some_dense ? config_.intermediate_size : 0;
  BATON_RETURN_IF_ERROR(allocate(tokens, config_.gated_network ? inner : 0, &scratch_.gate));
  BATON_RETURN_IF_ERROR(allocate(tokens, inner, &scratch_.up));
  BATON_RETURN_IF_ERROR(allocate(tokens, half, &scratch_.rotation.cosines));
  BATON_RETURN_IF_ERROR(allocate(tokens, half, &scratch_.rotation.sines));
  if (HasLocalRotation(config_)) {
    BATON_RETURN_IF_ERROR(allocate(tokens, local_half, &scratch_.local_rotation.cosines));
    BATON_RETURN_IF_ERROR(allocate(tokens, local_half, &scratch_.local_rotation.sines));
  }
  host_cosines_.resize(tokens * std::max(half, local_half));
  host_sines_.resize(host_cosines_.size());
  return allocate(std::min(batch_tokens_max_, kLogitRowsMax), config_.vocab_size, &logits_);
}

absl::Status Decoder::CheckRow(const BatchRow& row, const KvArena& cache) const {
  if (row.tokens.empty()) return BatchError("a row has no tokens");
  if (row.logit_count > row.tokens.size()) return BatchError("a row wants more logits than tokens");
  const uint64_t end = static_cast<uint64_t>(row.start) + row.tokens.size();
  if (end > config_.context_tokens) {
    return BatchError(absl::StrCat("a row ends at position ", end, ", but the context has ",
                                   config_.context_tokens));
  }
  if (row.blocks.size() * uint64_t{cache.layout().block_tokens} < end) {
    return BatchError(absl::StrCat(row.blocks.size(), " blocks do not cover ", end, " positions"));
  }
  const uint32_t unseen = config_.FirstVisible(row.start) / cache.layout().block_tokens;
  for (BlockId block : row.blocks.subspan(unseen)) {
    if (Raw(block) >= cache.block_count()) {
      return BatchError(absl::StrCat("the cache has no block ", Raw(block)));
    }
  }
  for (TokenId token : row.tokens) {
    if (token < 0 || static_cast<uint32_t>(token) >= config_.vocab_size) {
      return BatchError(absl::StrCat("the vocabulary has no token ", token));
    }
  }
  return absl::OkStatus();
}

absl::Status Decoder::CheckCall(std::span<const BatchRow> rows, const KvArena& cache,
                                std::span<const float> logits) const {
  const KvLayout& layout = cache.layout();
  if (layout.layers != config_.layers || layout.kv_heads != config_.kv_heads ||
      layout.head_dim != config_.head_dim || layout.block_tokens == 0) {
    return BatchError("the cache is of another model");
  }
  if (layout.dtype == DType::kF16) {
    return BatchError(absl::StrCat("a cache of ", DTypeName(layout.dtype), " is not supported"));
  }
  size_t tokens = 0;
  size_t logit_count = 0;
  for (const BatchRow& row : rows) {
    BATON_RETURN_IF_ERROR(CheckRow(row, cache));
    tokens += row.tokens.size();
    logit_count += row.logit_count;
  }
  if (tokens > batch_tokens_max_) {
    return BatchError(absl::StrCat(tokens, " tokens; at most ", batch_tokens_max_, " fit"));
  }
  if (logits.size() != logit_count * config_.vocab_size) {
    return BatchError(absl::StrCat("room for ", logits.size(), " logits instead of ", logit_count,
                                   " x ", config_.vocab_size));
  }
  return absl::OkStatus();
}

Decoder::Batch Decoder::PrepareBatch(std::span<const BatchRow> rows) const {
  Batch batch;
  for (const BatchRow& row : rows) {
    const uint32_t count = static_cast<uint32_t>(row.tokens.size());
    const uint32_t first = static_cast<uint32_t>(batch.tokens.size());
    batch.sequences.push_back(
        {.row = first, .count = count, .position = row.start, .blocks = row.blocks});
    batch.tokens.insert(batch.tokens.end(), row.tokens.begin(), row.tokens.end());
    if (row.logit_count == 0) continue;
    batch.logit_sequences.push_back({.row = static_cast<uint32_t>(batch.logit_rows.size()),
                                     .count = row.logit_count,
                                     .position = row.start + count - row.logit_count,
                                     .blocks = row.blocks});
    for (uint32_t i = count - row.logit_count; i < count; ++i) {
      batch.logit_rows.push_back(first + i);
    }
  }
  return batch;
}

absl::Status Decoder::FillAngles(const Batch& batch, const RopeAngles& angles,
                                 const Rotation& rotation) {
  if (rotation.cosines.elements() == 0) return absl::OkStatus();  // Nothing rotates so.
  const size_t half = rotation.cosines.dim(1);
  for (const SequenceRows& sequence : batch.sequences) {
    for (uint32_t i = 0; i < sequence.count; ++i) {
      const size_t offset = (sequence.row + i) * half;
      angles.Fill(sequence.position + i, std::span(host_cosines_).subspan(offset, half),
                  std::span(host_sines_).subspan(offset, half));
    }
  }
  const auto copy = [this](const std::vector<float>& from, const TensorView& to) {
    return device_.CopyFromHost(to.data(), reinterpret_cast<const std::byte*>(from.data()),
                                to.bytes());
  };
  BATON_RETURN_IF_ERROR(copy(host_cosines_, rotation.cosines));
  return copy(host_sines_, rotation.sines);
}

Decoder::Activations Decoder::Cut(size_t tokens) const {
  const auto cut = [tokens](const Rotation& rotation) {
    if (rotation.cosines.empty()) return Rotation{};
    return Rotation{.cosines = rotation.cosines.Rows(0, tokens),
                    .sines = rotation.sines.Rows(0, tokens)};
  };
  return {.x = scratch_.x.Rows(0, tokens),
          .h = scratch_.h.Rows(0, tokens),
          .q = scratch_.q.Rows(0, tokens),
          .attention = scratch_.attention.Rows(0, tokens),
          .k = scratch_.k.Rows(0, tokens),
          .v = scratch_.v.Rows(0, tokens),
          .gate = scratch_.gate.Rows(0, tokens),
          .up = scratch_.up.Rows(0, tokens),
          .rotation = cut(scratch_.rotation),
          .local_rotation = cut(scratch_.local_rotation)};
}

absl::Status Decoder::Forward(std::span<const BatchRow> rows, KvArena& cache,
                              std::span<float> logits, const LayerDone& layer_done) {
  BATON_RETURN_IF_ERROR(CheckCall(rows, cache, logits));
  const Batch batch = PrepareBatch(rows);
  if (batch.tokens.empty()) return absl::OkStatus();
  Activations all = Cut(batch.tokens.size());
  BATON_RETURN_IF_ERROR(FillAngles(batch, angles_, all.rotation));
  BATON_RETURN_IF_ERROR(FillAngles(batch, local_angles_, all.local_rotation));
  Embed(batch, all);
  for (uint32_t index = 0; index < config_.layers; ++index) {
    const KvPages pages = LayerPages(cache, index);
    RunQkv(index, batch, pages, all);
    // As early as K and V are complete, so that their transfer hides under the rest of the layer.
    if (layer_done) layer_done(index);
    if (index + 1 < config_.layers) {
      BATON_RETURN_IF_ERROR(RunRest(index, batch.sequences, pages, all));
    } else if (!batch.logit_rows.empty()) {
      // After the last K and V, only tokens that want logits are of interest.
      all = Narrow(batch, all);
      BATON_RETURN_IF_ERROR(RunRest(index, batch.logit_sequences, pages, all));
    }
  }
  if (batch.logit_rows.empty()) return absl::OkStatus();
  return WriteLogits(all, logits);
}

void Decoder::Embed(const Batch& batch, const Activations& all) {
  Embedding(*context_, weights_->embedding(), batch.tokens, all.x);
  if (config_.scaled_embedding) Scale(*context_, weights_->embedding_scale(), all.x);
  if (!config_.learned_positions) return;
  std::vector<TokenId> positions;
  for (const SequenceRows& sequence : batch.sequences) {
    for (uint32_t i = 0; i < sequence.count; ++i) {
      positions.push_back(static_cast<TokenId>(sequence.position + i));
    }
  }
  Embedding(*context_, weights_->positions(), positions, all.h);
  Add(*context_, all.h, all.x);
}

void Decoder::Normalize(const ConstTensorView& x, const NormWeights& norm, const TensorView& out) {
  switch (config_.norm_kind) {
    case NormKind::kRms:
      RmsNorm(*context_, x, norm.weight, config_.norm_epsilon, out);
      break;
    case NormKind::kLayer:
      LayerNorm(*context_, x, norm.weight, norm.bias, config_.norm_epsilon, out);
      break;
  }
}

void Decoder::RunQkv(uint32_t index, const Batch& batch, const KvPages& pages,
                     const Activations& part) {
  const LayerWeights& layer = weights_->layer(index);
  const size_t tokens = part.x.dim(0);
  const size_t head_dim = config_.head_dim;
  Normalize(part.x, layer.input_norm, part.h);
  const LinearOutput qkv[] = {{&layer.q, layer.q_bias, part.q},
                              {&layer.k, layer.k_bias, part.k},
                              {&layer.v, layer.v_bias, part.v}};
  Linear(*context_, part.h, qkv);
  if (config_.qk_norm) {
    const TensorView q_heads = part.q.Reshaped({tokens * config_.heads, head_dim});
    const TensorView k_heads = part.k.Reshaped({tokens * config_.kv_heads, head_dim});
    RmsNorm(*context_, q_heads, layer.q_norm, config_.norm_epsilon, q_heads);
    RmsNorm(*context_, k_heads, layer.k_norm, config_.norm_epsilon, k_heads);
  }
  if (!config_.learned_positions) Rotate(index, part);
  WriteKv(*context_, part.k.Reshaped({tokens, config_.kv_heads, head_dim}),
          part.v.Reshaped({tokens, config_.kv_heads, head_dim}), batch.sequences, pages);
}

void Decoder::Rotate(uint32_t index, const Activations& part) {
  const size_t tokens = part.x.dim(0);
  const Rotation& rotation =
      config_.layer_attention[index].local_rope ? part.local_rotation : part.rotation;
  Rope(*context_, rotation.cosines, rotation.sines,
       part.q.Reshaped({tokens, config_.heads, config_.head_dim}));
  Rope(*context_, rotation.cosines, rotation.sines,
       part.k.Reshaped({tokens, config_.kv_heads, config_.head_dim}));
}

AttentionOptions Decoder::AttentionOf(uint32_t index) const {
  return {.scale = config_.attention_scale,
          .window = config_.layer_attention[index].window,
          .soft_cap = config_.attention_soft_cap};
}

absl::Status Decoder::RunRest(uint32_t index, std::span<const SequenceRows> sequences,
                              const KvPages& pages, const Activations& part) {
  const LayerWeights& layer = weights_->layer(index);
  const size_t tokens = part.x.dim(0);
  Attention(*context_, part.q.Reshaped({tokens, config_.heads, config_.head_dim}), pages, sequences,
            AttentionOf(index), part.attention.Reshaped({tokens, config_.heads, config_.head_dim}));
  const LinearOutput o[] = {{&layer.o, layer.o_bias, part.h}};
  Linear(*context_, part.attention, o);
  AddOutput(layer.attention_output_norm, part);
  Normalize(part.x, layer.network_norm, part.h);
  BATON_RETURN_IF_ERROR(RunNetwork(layer, part));
  AddOutput(layer.network_output_norm, part);
  return absl::OkStatus();
}

void Decoder::AddOutput(const ConstTensorView& norm, const Activations& part) {
  if (!norm.empty()) RmsNorm(*context_, part.h, norm, config_.norm_epsilon, part.h);
  Add(*context_, part.h, part.x);
}

absl::Status Decoder::RunNetwork(const LayerWeights& layer, const Activations& part) {
  if (!layer.experts.networks.empty()) return experts_->Run(layer.experts, part.h, part.h);
  if (config_.gated_network) {
    RunGated(layer, part);
  } else {
    RunPlain(layer, part);
  }
  return absl::OkStatus();
}

void Decoder::RunGated(const LayerWeights& layer, const Activations& part) {
  const LinearOutput gate_up[] = {{&layer.gate, {}, part.gate}, {&layer.up, {}, part.up}};
  Linear(*context_, part.h, gate_up);
  switch (config_.activation) {
    case Activation::kSilu:
      SiluMul(*context_, part.gate, part.up, part.gate);
      break;
    case Activation::kGeluTanh:
      GeluMul(*context_, part.gate, part.up, part.gate);
      break;
  }
  const LinearOutput down[] = {{&layer.down, {}, part.h}};
  Linear(*context_, part.gate, down);
}

void Decoder::RunPlain(const LayerWeights& layer, const Activations& part) {
  BATON_CHECK(config_.activation == Activation::kGeluTanh);  // No other is without a gate.
  const LinearOutput up[] = {{&layer.up, layer.up_bias, part.up}};
  Linear(*context_, part.h, up);
  Gelu(*context_, part.up, part.up);
  const LinearOutput down[] = {{&layer.down, layer.down_bias, part.h}};
  Linear(*context_, part.up, down);
}

Decoder::Activations Decoder::Narrow(const Batch& batch, const Activations& all) {
  const size_t count = batch.logit_rows.size();
  Activations part = Cut(count);
  std::swap(part.x, part.h);
  std::swap(part.q, part.attention);
  GatherRows(*context_, all.x, batch.logit_rows, part.x);
  GatherRows(*context_, all.q, batch.logit_rows, part.q);
  return part;
}

absl::Status Decoder::WriteLogits(const Activations& part, std::span<float> logits) {
  Normalize(part.x, weights_->final_norm(), part.h);
  const size_t rows = part.h.dim(0);
  for (size_t begin = 0; begin < rows; begin += logits_.dim(0)) {
    const size_t count = std::min(logits_.dim(0), rows - begin);
    const TensorView out = logits_.Rows(0, count);
    const LinearOutput head[] = {{&weights_->head(), {}, out}};
    Linear(*context_, part.h.Rows(begin, count), head);
    if (config_.logit_soft_cap != 0.0f) SoftCap(*context_, config_.logit_soft_cap, out);
    BATON_RETURN_IF_ERROR(
        device_.CopyToHost(reinterpret_cast<std::byte*>(logits.data() + begin * config_.vocab_size),
                           out.data(), out.bytes()));
  }
  return absl::OkStatus();
}

}  // namespace baton
