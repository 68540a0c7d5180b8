#include "common/model/decoder.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/model/fingerprint.h"

namespace baton {
namespace {

// Rows of logits computed at a time: a vocabulary of 128k takes half a megabyte per row. A step
// that a GPU records computes all of its rows at once.
constexpr uint32_t kLogitRowsMax = 64;
constexpr uint32_t kRecordedRowsMax = kStartedRowsMax;
constexpr uint32_t kRecordedEndMin = 1024;

absl::Status BatchError(const std::string& reason) {
  return absl::InvalidArgumentError(absl::StrCat("batch: ", reason));
}

KvPages LayerPages(const KvArena& cache, uint32_t shard, uint32_t layer) {
  const KvLayout& layout = cache.shard_layout();
  return {.data = cache.BlockData(BlockId{0}, shard) + layer * layout.layer_bytes(),
          .block_bytes = layout.block_bytes(),
          .dtype = layout.dtype,
          .kv_heads = layout.kv_heads,
          .head_dim = layout.head_dim,
          .block_tokens = layout.block_tokens};
}

// Those that the samples make, which refer to these then.
std::span<const LogitEdit> TakeEdits(std::span<const LogitEdit> edits,
                                     std::span<SampleRow> samples) {
  uint32_t begin = static_cast<uint32_t>(edits.size());
  uint32_t end = 0;
  for (const SampleRow& sample : samples) {
    if (sample.edits_begin == sample.edits_end) continue;
    begin = std::min(begin, sample.edits_begin);
    end = std::max(end, sample.edits_end);
  }
  if (begin >= end) begin = end = 0;
  for (SampleRow& sample : samples) {
    const uint32_t count = sample.edits_end - sample.edits_begin;
    sample.edits_begin = count == 0 ? 0 : sample.edits_begin - begin;
    sample.edits_end = sample.edits_begin + count;
  }
  return edits.subspan(begin, end - begin);
}

bool HasLocalRotation(const ModelConfig& config) {
  return std::any_of(config.layer_attention.begin(), config.layer_attention.end(),
                     [](const LayerAttention& layer) { return layer.local_rope; });
}

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> Model::Load(Device& device, const ModelOptions& options) {
  return Decoder::Load(device, options);
}

absl::StatusOr<std::unique_ptr<Decoder>> Decoder::Load(Device& device, const ModelOptions& options,
                                                       Collective* collective) {
  WeightOptions weight_options = {.activation_bytes = options.activation_bytes,
                                  .progress = options.progress};
  if (collective != nullptr) weight_options.shard = {collective->rank(), collective->size()};
  if (!options.weights.empty()) {
    BATON_ASSIGN_OR_RETURN(weight_options.form, ParseWeightForm(options.weights));
  }
  BATON_ASSIGN_OR_RETURN(const ModelConfig config, ModelConfig::Load(options.directory));
  BATON_ASSIGN_OR_RETURN(ModelConfig own, ConfigOfShard(config, weight_options.shard.count));
  BATON_ASSIGN_OR_RETURN(
      const DType activations,
      ModelWeights::ActivationsFor(device, config, options.directory, weight_options));
  BATON_ASSIGN_OR_RETURN(std::unique_ptr<KernelContext> context,
                         KernelContext::Create({.device = &device,
                                                .threads = options.threads,
                                                .pin_threads = options.pin_threads,
                                                .activations = activations}));
  BATON_ASSIGN_OR_RETURN(
      std::unique_ptr<ModelWeights> weights,
      ExplainMemory(ModelWeights::Load(device, *context, config, options.directory, weight_options),
                    "the weights", "--weights of fewer bits, or more devices (--tp), need less"));
  own.stored_dtype = weights->stored_dtype();
  BATON_ASSIGN_OR_RETURN(std::string fingerprint,
                         ModelFingerprint(options.directory, weights->files()));
  return Create(device, own, std::move(weights), std::move(context), options.batch_tokens_max,
                std::move(fingerprint), collective);
}

absl::StatusOr<std::unique_ptr<Decoder>> Decoder::Create(Device& device, const ModelConfig& config,
                                                         std::unique_ptr<ModelWeights> weights,
                                                         std::unique_ptr<KernelContext> context,
                                                         uint32_t batch_tokens_max,
                                                         std::string fingerprint,
                                                         Collective* collective) {
  if (batch_tokens_max == 0) return absl::InvalidArgumentError("batch_tokens_max must not be 0");
  std::unique_ptr<Decoder> decoder(new Decoder(device, config, std::move(weights),
                                               std::move(context), batch_tokens_max,
                                               std::move(fingerprint), collective));
  constexpr char kPurpose[] = "what a step computes";
  constexpr char kHelp[] = "a smaller --chunk_tokens or --sequences_max needs less";
  BATON_RETURN_IF_ERROR(ExplainMemory(decoder->AllocateScratch(), kPurpose, kHelp));
  if (config.experts.count > 0) {
    BATON_ASSIGN_OR_RETURN(decoder->experts_,
                           ExplainMemory(ExpertMixture::Create(device, *decoder->context_, config,
                                                               batch_tokens_max, collective),
                                         kPurpose, kHelp));
  }
  return decoder;
}

Decoder::Decoder(Device& device, const ModelConfig& config, std::unique_ptr<ModelWeights> weights,
                 std::unique_ptr<KernelContext> context, uint32_t batch_tokens_max,
                 std::string fingerprint, Collective* collective)
    : device_(device),
      config_(config),
      weights_(std::move(weights)),
      context_(std::move(context)),
      collective_(collective),
      batch_tokens_max_(batch_tokens_max),
      fingerprint_(std::move(fingerprint)),
      numerics_(absl::StrCat(weights_->format_names(), "/", context_->numerics())),
      angles_(config.rope),
      local_angles_(config.local_rope) {}

absl::Status Decoder::AllocateScratch() {
  const auto allocate = [this](DType type, size_t rows, size_t columns,
                               TensorView* view) -> absl::Status {
    BATON_ASSIGN_OR_RETURN(DeviceMemory memory,
                           device_.Allocate(rows * columns * DTypeBytes(type)));
    *view = TensorView(memory.data(), type, device_.kind(), {rows, columns});
    memory_.push_back(std::move(memory));
    return absl::OkStatus();
  };
  const size_t tokens = batch_tokens_max_;
  const DType type = context_->activations();
  const size_t q_size = static_cast<size_t>(config_.heads) * config_.head_dim;
  const size_t kv_size = static_cast<size_t>(config_.kv_heads) * config_.head_dim;
  const size_t half = config_.rope.dim / 2;
  const size_t local_half = config_.local_rope.dim / 2;
  BATON_RETURN_IF_ERROR(allocate(DType::kF32, tokens, config_.hidden_size, &scratch_.x));
  BATON_RETURN_IF_ERROR(allocate(DType::kF32, tokens, config_.hidden_size, &scratch_.narrow_x));
  BATON_RETURN_IF_ERROR(allocate(type, tokens, config_.hidden_size, &scratch_.h));
  BATON_RETURN_IF_ERROR(allocate(type, tokens, q_size, &scratch_.q));
  BATON_RETURN_IF_ERROR(allocate(type, tokens, q_size, &scratch_.attention));
  BATON_RETURN_IF_ERROR(allocate(type, tokens, kv_size, &scratch_.k));
  BATON_RETURN_IF_ERROR(allocate(type, tokens, kv_size, &scratch_.v));
  bool some_dense = false;
  for (uint32_t i = 0; i < config_.layers; ++i) some_dense = some_dense || !config_.HasExperts(i);
  const size_t inner = some_dense ? config_.intermediate_size : 0;
  BATON_RETURN_IF_ERROR(allocate(type, tokens, config_.gated_network ? inner : 0, &scratch_.gate));
  BATON_RETURN_IF_ERROR(allocate(type, tokens, inner, &scratch_.up));
  BATON_RETURN_IF_ERROR(allocate(DType::kF32, tokens, half, &scratch_.rotation.cosines));
  BATON_RETURN_IF_ERROR(allocate(DType::kF32, tokens, half, &scratch_.rotation.sines));
  if (HasLocalRotation(config_)) {
    BATON_RETURN_IF_ERROR(
        allocate(DType::kF32, tokens, local_half, &scratch_.local_rotation.cosines));
    BATON_RETURN_IF_ERROR(
        allocate(DType::kF32, tokens, local_half, &scratch_.local_rotation.sines));
  }
  const auto place = [&](const RopeAngles& angles, TensorView* view) -> absl::Status {
    const std::vector<float>& numbers = angles.frequencies();
    if (numbers.empty()) return absl::OkStatus();  // Positions are learned.
    const absl::Status status = allocate(DType::kF32, numbers.size(), 1, view);
    if (!status.ok()) return status;
    *view = view->Reshaped({numbers.size()});
    return device_.CopyFromHost(view->data(), reinterpret_cast<const std::byte*>(numbers.data()),
                                view->bytes());
  };
  BATON_RETURN_IF_ERROR(place(angles_, &frequencies_));
  BATON_RETURN_IF_ERROR(place(local_angles_, &local_frequencies_));
  const uint32_t logit_rows = device_.kind() == DeviceKind::kCpu ? kLogitRowsMax : kRecordedRowsMax;
  const size_t rows = std::min(batch_tokens_max_, logit_rows);
  const size_t vocab = rank() == 0 ? config_.vocab_size : 0;
  BATON_RETURN_IF_ERROR(allocate(DType::kF32, rows, vocab, &logits_));
  if (collective_ == nullptr) return absl::OkStatus();
  const size_t part = rank() == 0 ? vocab : ShardOf(rank()).VocabSize(config_.vocab_size);
  return allocate(DType::kF32, rows, part, &logit_parts_);
}

absl::Status Decoder::Reserve(const KvArena& cache, uint32_t sequences_max) {
  const uint64_t cache_tokens = uint64_t{cache.block_count()} * cache.layout().block_tokens;
  const StepBounds bounds = {.tokens = batch_tokens_max_,
                             .sequences = std::min(sequences_max, batch_tokens_max_),
                             .sequence_tokens = static_cast<uint32_t>(
                                 std::min<uint64_t>(config_.context_tokens, cache_tokens)),
                             .heads = config_.heads,
                             .pages = LayerPages(cache, rank(), 0),
                             .logit_rows = static_cast<uint32_t>(logits_.dim(0)),
                             .vocab_size = config_.vocab_size};
  return context_->Reserve(bounds);
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
                                size_t logit_rows) const {
  const KvLayout& layout = cache.shard_layout();
  const uint32_t ranks = collective_ == nullptr ? 1 : collective_->size();
  if (cache.shard_count() != ranks || layout.layers != config_.layers ||
      layout.kv_heads != config_.kv_heads || layout.head_dim != config_.head_dim ||
      layout.block_tokens == 0) {
    return BatchError("the cache is of another model");
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
  if (logit_rows != logit_count) {
    return BatchError(
        absl::StrCat("room for ", logit_rows, " rows of logits instead of ", logit_count));
  }
  return absl::OkStatus();
}

Decoder::Batch Decoder::PrepareBatch(std::span<const BatchRow> rows, uint32_t block_tokens) {
  Batch batch;
  for (const BatchRow& row : rows) {
    const uint32_t count = static_cast<uint32_t>(row.tokens.size());
    const uint32_t first = static_cast<uint32_t>(batch.tokens.size());
    // Of a prompt that is read in chunks all blocks are there already.
    const uint32_t block_count = (row.start + count + block_tokens - 1) / block_tokens;
    const std::span<const BlockId> blocks = row.blocks.first(block_count);
    batch.sequences.push_back(
        {.row = first, .count = count, .position = row.start, .blocks = blocks});
    batch.tokens.insert(batch.tokens.end(), row.tokens.begin(), row.tokens.end());
    if (row.logit_count == 0) continue;
    batch.logit_sequences.push_back({.row = static_cast<uint32_t>(batch.logit_rows.size()),
                                     .count = row.logit_count,
                                     .position = row.start + count - row.logit_count,
                                     .blocks = blocks});
    for (uint32_t i = count - row.logit_count; i < count; ++i) {
      batch.logit_rows.push_back(first + i);
    }
  }
  return batch;
}

Decoder::Step Decoder::PlaceBatch(Batch& batch, const std::optional<StepShape>& shape) {
  Step step;
  if (shape.has_value()) {
    for (auto row = static_cast<uint32_t>(batch.tokens.size()); row < shape->rows; ++row) {
      batch.tokens.push_back(TokenId{0});
      batch.sequences.push_back({.row = row, .count = 0, .position = 0, .blocks = {}});
      batch.logit_rows.push_back(row);
    }
  }
  context_->BeginStep();
  step.ids = context_->Place(batch.tokens);
  if (config_.learned_positions) {
    for (const SequenceRows& sequence : batch.sequences) {
      for (uint32_t i = 0; i < sequence.count; ++i) {
        batch.positions.push_back(static_cast<TokenId>(sequence.position + i));
      }
    }
    batch.positions.resize(batch.tokens.size());
    step.positions = context_->Place(batch.positions);
  }
  step.narrow = batch.logit_rows.size() < batch.tokens.size();
  if (step.narrow) {
    step.logit_rows = context_->Place(batch.logit_rows);
    step.logit_sequences = context_->Place(batch.logit_sequences);
  }
  step.sequences = context_->Place(batch.sequences, shape.has_value() ? shape->end_max : 0);
  return step;
}

bool Decoder::RunsOnDevice(size_t rows) const {
  const uint32_t padded = context_->PaddedRows(static_cast<uint32_t>(rows));
  if (padded > std::min<size_t>(batch_tokens_max_, logits_.dim(0))) return false;
  for (uint32_t i = 0; i < config_.layers; ++i) {
    // Otherwise experts are chosen on the host.
    if (config_.HasExperts(i) && !experts_->RunsOnDevice(weights_->layer(i).experts, padded)) {
      return false;
    }
  }
  return true;
}

std::optional<StepShape> Decoder::ShapeOf(std::span<const BatchRow> rows, const KvArena& cache,
                                          const LayerDone& layer_done) const {
  if (layer_done != nullptr || !RunsOnDevice(rows.size())) return std::nullopt;
  uint32_t end = kRecordedEndMin;
  for (const BatchRow& row : rows) {
    if (row.tokens.size() != 1 || row.logit_count != 1) return std::nullopt;
    end = std::max(end, row.start + 1);
  }
  return StepShape{.rows = context_->PaddedRows(static_cast<uint32_t>(rows.size())),
                   .end_max = std::bit_ceil(end),
                   .cache = cache.BlockData(BlockId{0}, rank()),
                   .layout = cache.layout().Fingerprint()};
}

absl::Status Decoder::RunStep(const std::optional<StepShape>& shape,
                              absl::FunctionRef<absl::Status()> body) {
  // NCCL does not give up a group that a recording knows.
  const bool recordable = shape.has_value() && collective_ == nullptr;
  return context_->RunStep(recordable ? &*shape : nullptr, body);
}

void Decoder::FillAngles(const Step& step, const Activations& all) {
  const auto fill = [&](const RopeAngles& angles, const TensorView& frequencies,
                        const Rotation& rotation) {
    if (rotation.cosines.elements() == 0) return;  // Nothing rotates so.
    RotaryAngles(*context_, step.sequences, frequencies, angles.attention_factor(),
                 rotation.cosines, rotation.sines);
  };
  fill(angles_, frequencies_, all.rotation);
  fill(local_angles_, local_frequencies_, all.local_rotation);
}

Decoder::Activations Decoder::Cut(size_t tokens) const {
  const auto cut = [tokens](const Rotation& rotation) {
    if (rotation.cosines.empty()) return Rotation{};
    return Rotation{.cosines = rotation.cosines.Rows(0, tokens),
                    .sines = rotation.sines.Rows(0, tokens)};
  };
  return {.x = scratch_.x.Rows(0, tokens),
          .narrow_x = scratch_.narrow_x.Rows(0, tokens),
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
  const size_t vocab = config_.vocab_size;
  if (logits.size() % vocab != 0) return BatchError("room for half a row of logits");
  BATON_RETURN_IF_ERROR(CheckCall(rows, cache, logits.size() / vocab));
  return Run(rows, cache, layer_done, [&](size_t begin, size_t count) {
    return device_.CopyToHost(reinterpret_cast<std::byte*>(logits.data() + begin * vocab),
                              logits_.data(), count * vocab * sizeof(float));
  });
}

absl::Status Decoder::ForwardAndSample(std::span<const BatchRow> rows, KvArena& cache,
                                       const TokenChoice& choice, const LayerDone& layer_done) {
  BATON_CHECK(choice.samples.size() == choice.tokens.size());
  BATON_CHECK(choice.raw_logits.size() == choice.raw_rows.size() * config_.vocab_size);
  BATON_RETURN_IF_ERROR(CheckCall(rows, cache, choice.samples.size()));
  return Run(rows, cache, layer_done, [&](size_t begin, size_t count) {
    // Edits overwrite them.
    BATON_RETURN_IF_ERROR(TakeRawLogits(choice, begin, count));
    // Each edit is uploaded once.
    std::vector<SampleRow> samples(choice.samples.begin() + begin,
                                   choice.samples.begin() + begin + count);
    const std::span<const LogitEdit> edits = TakeEdits(choice.edits, samples);
    return SampleTokens(*context_, logits_.Rows(0, count), samples, edits,
                        choice.tokens.subspan(begin, count));
  });
}

bool Decoder::CanStart(size_t rows) const {
  return samples_tokens() && rows > 0 && RunsOnDevice(rows);
}

std::vector<BatchRow> Decoder::RowsOf(std::span<const DecodeRow> rows) {
  std::vector<BatchRow> batch_rows;
  for (const DecodeRow& row : rows) {
    batch_rows.push_back(
        {.tokens = {&row.token, 1}, .start = row.start, .blocks = row.blocks, .logit_count = 1});
  }
  return batch_rows;
}

absl::Status Decoder::StartStep(std::span<const DecodeRow> rows, KvArena& cache,
                                std::span<const SampleRow> samples,
                                std::span<const LogitEdit> edits) {
  BATON_RETURN_IF_ERROR(CheckCall(RowsOf(rows), cache, samples.size()));
  return StartPart(rows, cache, samples, edits);
}

absl::Status Decoder::StartPart(std::span<const DecodeRow> rows, KvArena& cache,
                                std::span<const SampleRow> samples,
                                std::span<const LogitEdit> edits) {
  BATON_CHECK(CanStart(rows.size()));
  const std::vector<BatchRow> batch_rows = RowsOf(rows);
  Batch batch = PrepareBatch(batch_rows, cache.layout().block_tokens);
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i].chosen_by.has_value()) batch.tokens[i] = ChosenBy(*rows[i].chosen_by);
  }
  const std::optional<StepShape> shape = ShapeOf(batch_rows, cache, nullptr);
  const Step step = PlaceBatch(batch, shape);
  const Placed<SampleRow> placed_samples = context_->Place(samples);
  const Placed<LogitEdit> placed_edits = context_->Place(edits);
  const size_t tokens = batch.tokens.size();
  BATON_RETURN_IF_ERROR(RunStep(shape, [&]() -> absl::Status {
    const absl::Status status = RunLayers(step, cache, Cut(tokens), nullptr);
    return status.ok() ? RunHead(scratch_.h.Rows(0, tokens)) : status;
  }));
  const absl::Status started = ChooseTokens(rows.size(), placed_samples, placed_edits);
  if (!started.ok()) AwaitDevice().IgnoreError();  // What came before may be running.
  return started;
}

absl::Status Decoder::ChooseTokens(size_t rows, const Placed<SampleRow>& samples,
                                   const Placed<LogitEdit>& edits) {
  if (rank() == 0) {
    BATON_RETURN_IF_ERROR(StartSampling(*context_, logits_.Rows(0, rows), samples, edits));
  }
  if (collective_ != nullptr) {
    BATON_RETURN_IF_ERROR(collective_->Broadcast(StartedTokens(*context_, rows)));
  }
  return BringTokens(*context_, rows);
}

absl::Status Decoder::FinishStep(std::span<TokenId> tokens) {
  return FinishSampling(*context_, tokens);
}

absl::Status Decoder::TakeRawLogits(const TokenChoice& choice, size_t begin, size_t count) {
  const size_t vocab = config_.vocab_size;
  for (size_t i = 0; i < choice.raw_rows.size(); ++i) {
    const size_t row = choice.raw_rows[i];
    if (row < begin || row >= begin + count) continue;
    float* const to = choice.raw_logits.data() + i * vocab;
    BATON_RETURN_IF_ERROR(device_.CopyToHost(reinterpret_cast<std::byte*>(to),
                                             logits_.Rows(row - begin, 1).data(),
                                             vocab * sizeof(float)));
  }
  return absl::OkStatus();
}

absl::Status Decoder::RunBeside(std::span<const BatchRow> rows, KvArena& cache,
                                const LayerDone& layer_done) {
  BATON_CHECK(rank() > 0);
  // Nothing is taken, but a device that fails is noticed by nobody else.
  return Run(rows, cache, layer_done, [this](size_t, size_t) { return AwaitDevice(); });
}

absl::Status Decoder::Run(std::span<const BatchRow> rows, KvArena& cache,
                          const LayerDone& layer_done, TakeLogits take) {
  Batch batch = PrepareBatch(rows, cache.layout().block_tokens);
  if (batch.tokens.empty()) return absl::OkStatus();
  const size_t wanted = batch.logit_rows.size();
  const std::optional<StepShape> shape = ShapeOf(rows, cache, layer_done);
  const Step step = PlaceBatch(batch, shape);
  const size_t logit_rows = batch.logit_rows.size();  // Some may have been filled up.
  const bool at_once = logit_rows > 0 && logit_rows <= logits_.dim(0);
  const TensorView h = scratch_.h.Rows(0, logit_rows);
  BATON_RETURN_IF_ERROR(RunStep(shape, [&]() -> absl::Status {
    const absl::Status status = RunLayers(step, cache, Cut(batch.tokens.size()), layer_done);
    return status.ok() && at_once ? RunHead(h) : status;
  }));
  for (size_t begin = 0; begin < wanted; begin += logits_.dim(0)) {
    const size_t count = std::min(logits_.dim(0), wanted - begin);
    if (!at_once) {
      BATON_RETURN_IF_ERROR(RunStep(std::nullopt, [&] { return RunHead(h.Rows(begin, count)); }));
    }
    BATON_RETURN_IF_ERROR(take(begin, count));
  }
  // What was taken has been waited for. Otherwise blocks must not be given away before they are
  // written.
  return wanted > 0 ? absl::OkStatus() : context_->Finish();
}

absl::Status Decoder::RunLayers(const Step& step, KvArena& cache, Activations all,
                                const LayerDone& layer_done) {
  FillAngles(step, all);
  Embed(step, all);
  Normalize(all.x, weights_->layer(0).input_norm, all.h);
  for (uint32_t index = 0; index < config_.layers; ++index) {
    const KvPages pages = LayerPages(cache, rank(), index);
    RunQkv(index, step, pages, all);
    // As early as K and V are complete, so that their transfer hides under the rest of the layer.
    if (layer_done) context_->WhenDone([&layer_done, index] { layer_done(index); });
    const bool last = index + 1 == config_.layers;
    if (!last || !step.narrow) {
      BATON_RETURN_IF_ERROR(RunRest(index, step.sequences, pages, all));
    } else if (!step.logit_rows.host.empty()) {
      // After the last K and V, only tokens that want logits are of interest.
      BATON_RETURN_IF_ERROR(RunRest(index, step.logit_sequences, pages, Narrow(step, all)));
    }
  }
  return absl::OkStatus();
}

void Decoder::Embed(const Step& step, const Activations& all) {
  Embedding(*context_, weights_->embedding(), step.ids, all.x);
  if (config_.scaled_embedding) Scale(*context_, weights_->embedding_scale(), all.x);
  if (!config_.learned_positions) return;
  // Before anything else is in it.
  const TensorView positions = all.narrow_x;
  Embedding(*context_, weights_->positions(), step.positions, positions);
  Add(*context_, positions, all.x);
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

void Decoder::RunQkv(uint32_t index, const Step& step, const KvPages& pages,
                     const Activations& part) {
  const LayerWeights& layer = weights_->layer(index);
  const size_t tokens = part.x.dim(0);
  const size_t head_dim = config_.head_dim;
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
  const TensorView q = part.q.Reshaped({tokens, config_.heads, head_dim});
  const TensorView k = part.k.Reshaped({tokens, config_.kv_heads, head_dim});
  const TensorView v = part.v.Reshaped({tokens, config_.kv_heads, head_dim});
  if (config_.learned_positions) {
    WriteKv(*context_, k, v, step.sequences, pages);
    return;
  }
  const Rotation& rotation =
      config_.layer_attention[index].local_rope ? part.local_rotation : part.rotation;
  RopeWriteKv(*context_, rotation.cosines, rotation.sines, q, k, v, step.sequences, pages);
}

AttentionOptions Decoder::AttentionOf(uint32_t index) const {
  return {.scale = config_.attention_scale,
          .window = config_.layer_attention[index].window,
          .soft_cap = config_.attention_soft_cap};
}

absl::Status Decoder::RunRest(uint32_t index, const PlacedSequences& sequences,
                              const KvPages& pages, const Activations& part) {
  const LayerWeights& layer = weights_->layer(index);
  const size_t tokens = part.x.dim(0);
  Attention(*context_, part.q.Reshaped({tokens, config_.heads, config_.head_dim}), pages, sequences,
            AttentionOf(index), part.attention.Reshaped({tokens, config_.heads, config_.head_dim}));
  const LinearOutput o[] = {{&layer.o, layer.o_bias, part.h}};
  Linear(*context_, part.attention, o);
  BATON_RETURN_IF_ERROR(SumOverRanks(part.h));
  AddAndNormalize(layer.attention_output_norm, layer.network_norm, part);
  BATON_RETURN_IF_ERROR(RunNetwork(layer, sequences, part));
  BATON_RETURN_IF_ERROR(SumOverRanks(part.h));
  const bool last = index + 1 == config_.layers;
  AddAndNormalize(layer.network_output_norm,
                  last ? weights_->final_norm() : weights_->layer(index + 1).input_norm, part);
  return absl::OkStatus();
}

absl::Status Decoder::SumOverRanks(const TensorView& h) {
  return collective_ == nullptr ? absl::OkStatus() : collective_->AllReduceSum(h);
}

void Decoder::AddAndNormalize(const ConstTensorView& output_norm, const NormWeights& next,
                              const Activations& part) {
  if (!output_norm.empty()) {
    RmsNorm(*context_, part.h, output_norm, config_.norm_epsilon, part.h);
  }
  if (config_.norm_kind == NormKind::kRms) {
    AddRmsNorm(*context_, part.h, part.x, next.weight, config_.norm_epsilon, part.h);
  } else {
    Add(*context_, part.h, part.x);
    Normalize(part.x, next, part.h);
  }
}

absl::Status Decoder::RunNetwork(const LayerWeights& layer, const PlacedSequences& sequences,
                                 const Activations& part) {
  if (!layer.experts.networks.empty()) {
    return experts_->Run(layer.experts, sequences, part.h, part.h);
  }
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

Decoder::Activations Decoder::Narrow(const Step& step, const Activations& all) {
  Activations part = Cut(step.logit_rows.host.size());
  std::swap(part.x, part.narrow_x);
  std::swap(part.q, part.attention);
  GatherRows(*context_, all.x, step.logit_rows, part.x);
  GatherRows(*context_, all.q, step.logit_rows, part.q);
  return part;
}

absl::Status Decoder::RunHead(const TensorView& h) {
  const TensorView out = logits_.Rows(0, h.dim(0));
  if (collective_ == nullptr) {
    RunOwnHead(h, out);
  } else {
    BATON_RETURN_IF_ERROR(RunDividedHead(h, out));
  }
  if (rank() == 0 && config_.logit_soft_cap != 0.0f) {
    SoftCap(*context_, config_.logit_soft_cap, out);
  }
  return absl::OkStatus();
}

void Decoder::RunOwnHead(const TensorView& h, const TensorView& out) {
  const LinearOutput head[] = {{&weights_->head(), {}, out}};
  if (out.elements() > 0) Linear(*context_, h, head);
}

absl::Status Decoder::RunDividedHead(const TensorView& h, const TensorView& out) {
  const std::vector<TensorView> parts = LogitParts(h.dim(0));
  const TensorView& own = parts.front();
  RunOwnHead(h, own);
  if (rank() != 0) return collective_->GatherParts(own, {});
  BATON_RETURN_IF_ERROR(collective_->GatherParts(own, parts));
  JoinColumns(*context_, std::vector<ConstTensorView>(parts.begin(), parts.end()), out);
  return absl::OkStatus();
}

std::vector<TensorView> Decoder::LogitParts(size_t rows) const {
  std::vector<TensorView> parts;
  float* data = logit_parts_.f32();
  const uint32_t end = rank() == 0 ? collective_->size() : rank() + 1;
  for (uint32_t rank = this->rank(); rank < end; ++rank) {
    const size_t columns = ShardOf(rank).VocabSize(config_.vocab_size);
    parts.push_back(TensorView(reinterpret_cast<std::byte*>(data), DType::kF32, device_.kind(),
                               {rows, columns}));
    data += rows * columns;
  }
  return parts;
}

}  // namespace baton
