#include "common/model/weights.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/status_macros.h"
#include "common/tensor/number_formats.h"

namespace baton {
namespace {

bool IsWeightType(std::optional<DType> dtype) {
  return dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF16;
}

// Reads element `index`; stored bytes need not be aligned.
float ReadElement(const std::byte* data, size_t index, DType dtype) {
  if (dtype == DType::kF32) {
    float value = 0.0f;
    std::memcpy(&value, data + index * sizeof(value), sizeof(value));
    return value;
  }
  uint16_t bits = 0;
  std::memcpy(&bits, data + index * sizeof(bits), sizeof(bits));
  return dtype == DType::kBF16 ? Bf16ToF32(bits) : F16ToF32(bits);
}

void StoreElement(std::byte* data, size_t index, DType dtype, float value) {
  if (dtype == DType::kF32) {
    std::memcpy(data + index * sizeof(value), &value, sizeof(value));
    return;
  }
  const uint16_t bits = dtype == DType::kBF16 ? F32ToBf16(value) : F32ToF16(value);
  std::memcpy(data + index * sizeof(bits), &bits, sizeof(bits));
}

std::vector<float> ReadVector(const StoredTensor& tensor) {
  std::vector<float> values(tensor.data.size() / DTypeBytes(*tensor.dtype));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = ReadElement(tensor.data.data(), i, *tensor.dtype);
  }
  return values;
}

float RoundTo(DType dtype, float value) {
  if (dtype == DType::kF32) return value;
  return dtype == DType::kBF16 ? Bf16ToF32(F32ToBf16(value)) : F16ToF32(F32ToF16(value));
}

// `rows` rows from `row` on.
ConstTensorView RowsOfTensor(const StoredTensor& tensor, size_t row, size_t rows, size_t columns) {
  return ConstTensorView(tensor.data.data() + row * columns * DTypeBytes(*tensor.dtype),
                         *tensor.dtype, DeviceKind::kCpu, {rows, columns});
}

// Columns [begin, begin + count) of a matrix, as rows. In squares, so that both matrices stay in
// the cache.
std::vector<std::byte> TransposedColumns(const ConstTensorView& matrix, size_t begin,
                                         size_t count) {
  constexpr size_t kSquare = 64;
  const size_t bytes = DTypeBytes(matrix.dtype());
  const size_t rows = matrix.dim(0);
  const size_t columns = matrix.dim(1);
  std::vector<std::byte> out(rows * count * bytes);
  for (size_t row = 0; row < rows; row += kSquare) {
    for (size_t column = 0; column < count; column += kSquare) {
      for (size_t r = row; r < std::min(rows, row + kSquare); ++r) {
        const std::byte* from = matrix.data() + (r * columns + begin) * bytes;
        for (size_t c = column; c < std::min(count, column + kSquare); ++c) {
          std::memcpy(&out[(c * rows + r) * bytes], from + c * bytes, bytes);
        }
      }
    }
  }
  return out;
}

// Columns [begin, begin + count) of a matrix.
std::vector<std::byte> ColumnsOf(const ConstTensorView& matrix, size_t begin, size_t count) {
  const size_t bytes = DTypeBytes(matrix.dtype());
  std::vector<std::byte> out(matrix.dim(0) * count * bytes);
  for (size_t row = 0; row < matrix.dim(0); ++row) {
    std::memcpy(&out[row * count * bytes], matrix.data() + (row * matrix.dim(1) + begin) * bytes,
                count * bytes);
  }
  return out;
}

bool IsAligned(const std::byte* data, DType dtype) {
  return reinterpret_cast<uintptr_t>(data) % DTypeBytes(dtype) == 0;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ModelWeights>> ModelWeights::Load(Device& device,
                                                                 KernelContext& context,
                                                                 const ModelConfig& config,
                                                                 const std::string& directory,
                                                                 const WeightOptions& options) {
  BATON_ASSIGN_OR_RETURN(std::unique_ptr<TensorFiles> files, TensorFiles::Open(directory));
  std::unique_ptr<ModelWeights> weights(
      new ModelWeights(device, context, std::move(files), options));
  BATON_RETURN_IF_ERROR(weights->LoadAll(config));
  return weights;
}

absl::StatusOr<DType> ModelWeights::ActivationsFor(const Device& device, const ModelConfig& config,
                                                   const std::string& directory,
                                                   const WeightOptions& options) {
  if (device.kind() == DeviceKind::kCpu) return DType::kF32;
  std::optional<WeightForm> form = options.form;
  if (!form.has_value()) {
    BATON_ASSIGN_OR_RETURN(const std::unique_ptr<TensorFiles> files, TensorFiles::Open(directory));
    const StoredTensor* embedding = files->Find("model.embed_tokens.weight");
    if (config.tensor_names == TensorNames::kGpt2) {
      embedding = files->Find("transformer.wte.weight");
      if (embedding == nullptr) embedding = files->Find("wte.weight");
    }
    // What is missing or of another type is said when weights are loaded.
    if (embedding == nullptr || !IsWeightType(embedding->dtype)) return DType::kF32;
    form = WeightFormOf(*embedding->dtype);
  }
  switch (*form) {
    case WeightForm::kF32:
      return DType::kF32;
    case WeightForm::kF16:
      return DType::kF16;
    case WeightForm::kBF16:
    case WeightForm::kInt8:
    case WeightForm::kInt4:
    case WeightForm::kFp8:
      return DType::kBF16;
  }
  return absl::InternalError("weight form out of range");
}

std::string ModelWeights::format_names() const { return absl::StrJoin(format_names_, "+"); }

absl::Status ModelWeights::LoadAll(const ModelConfig& config) {
  if (config.tensor_names == TensorNames::kGpt2) return LoadGpt2(config);
  const std::string embedding_name = "model.embed_tokens.weight";
  BATON_RETURN_IF_ERROR(LoadVocabulary(embedding_name, config));
  for (uint32_t index = 0; index < config.layers; ++index) {
    // Grown as tensors are found: the number of layers is the file's claim.
    BATON_RETURN_IF_ERROR(LoadLayer(config, index, &layers_.emplace_back()));
  }
  return LoadNorm(config, "model.norm.weight", config.hidden_size, &final_norm_.weight);
}

absl::Status ModelWeights::LoadVocabulary(const std::string& name, const ModelConfig& config) {
  const std::string head_name = config.tied_embeddings ? name : "lm_head.weight";
  BATON_RETURN_IF_ERROR(LoadHead(head_name, config));
  BATON_RETURN_IF_ERROR(LoadEmbedding(name, config));
  if (!config.tied_embeddings) parameter_count_ += embedding_.elements();
  return absl::OkStatus();
}

absl::Status ModelWeights::LoadEmbedding(const std::string& name, const ModelConfig& config) {
  const size_t rows = config.vocab_size;
  const size_t columns = config.hidden_size;
  if (config.tied_embeddings && head_.plain() && head_.outputs() == rows) {
    BATON_ASSIGN_OR_RETURN(const StoredTensor* tensor, Require(name, {rows, columns}));
    embedding_ = ConstTensorView(head_.data(), *tensor->dtype, device_.kind(), {rows, columns});
    parameter_count_ += embedding_.elements();
  } else {
    BATON_RETURN_IF_ERROR(LoadTable(name, rows, columns, &embedding_));
  }
  stored_dtype_ = embedding_.dtype();
  if (config.scaled_embedding) {
    embedding_scale_ = RoundTo(stored_dtype_, std::sqrt(static_cast<float>(config.hidden_size)));
  }
  return absl::OkStatus();
}

absl::Status ModelWeights::LoadTable(const std::string& name, size_t rows, size_t columns,
                                     ConstTensorView* table) {
  BATON_ASSIGN_OR_RETURN(const StoredTensor* tensor, Require(name, {rows, columns}));
  const std::byte* data = tensor->data.data();
  if (device_.kind() != DeviceKind::kCpu || !IsAligned(data, *tensor->dtype)) {
    BATON_ASSIGN_OR_RETURN(DeviceMemory memory, device_.Allocate(tensor->data.size()));
    BATON_RETURN_IF_ERROR(device_.CopyFromHost(memory.data(), data, tensor->data.size()));
    data = memory_.emplace_back(std::move(memory)).data();
  }
  *table = ConstTensorView(data, *tensor->dtype, device_.kind(), {rows, columns});
  parameter_count_ += table->elements();
  return absl::OkStatus();
}

// The head decides between tokens, and the error of four bits shows there first.
absl::Status ModelWeights::LoadHead(const std::string& name, const ModelConfig& config) {
  BATON_ASSIGN_OR_RETURN(const StoredTensor* tensor,
                         Require(name, {config.vocab_size, config.hidden_size}));
  WeightForm form = options_.form.value_or(WeightFormOf(*tensor->dtype));
  if (form == WeightForm::kInt4) form = WeightForm::kInt8;
  const size_t rows = options_.shard.VocabSize(config.vocab_size);
  if (rows == 0) return absl::OkStatus();
  return Pack(
      name, *tensor,
      RowsOfTensor(*tensor, options_.shard.VocabBegin(config.vocab_size), rows, config.hidden_size),
      {.form = form, .activation_bytes = options_.activation_bytes}, &head_);
}

absl::Status ModelWeights::LoadLayer(const ModelConfig& config, uint32_t index,
                                     LayerWeights* layer) {
  const std::string prefix = absl::StrCat("model.layers.", index, ".");
  const size_t hidden = config.hidden_size;
  const size_t q_size = static_cast<size_t>(config.heads) * config.head_dim;
  const size_t kv_size = static_cast<size_t>(config.kv_heads) * config.head_dim;
  const std::string attention = prefix + "self_attn.";
  BATON_RETURN_IF_ERROR(LoadNorms(config, prefix, layer));
  BATON_RETURN_IF_ERROR(LoadQkv(config, attention, layer));
  BATON_RETURN_IF_ERROR(LoadColumns(attention + "o_proj.weight", hidden, q_size, &layer->o));
  if (config.qkv_bias) {
    BATON_RETURN_IF_ERROR(LoadBiasParts(attention + "q_proj.bias", {{q_size, &layer->q_bias}}));
    BATON_RETURN_IF_ERROR(LoadBiasParts(attention + "k_proj.bias", {{kv_size, &layer->k_bias}}));
    BATON_RETURN_IF_ERROR(LoadBiasParts(attention + "v_proj.bias", {{kv_size, &layer->v_bias}}));
  }
  if (config.qk_norm) {
    BATON_RETURN_IF_ERROR(
        LoadNorm(config, attention + "q_norm.weight", config.head_dim, &layer->q_norm));
    BATON_RETURN_IF_ERROR(
        LoadNorm(config, attention + "k_norm.weight", config.head_dim, &layer->k_norm));
  }
  if (config.HasExperts(index)) return LoadExperts(config, prefix, &layer->experts);
  BATON_RETURN_IF_ERROR(LoadGateUp(config, prefix + "mlp.", layer));
  return LoadColumns(prefix + "mlp.down_proj.weight", hidden, config.intermediate_size,
                     &layer->down);
}

// "post_attention_layernorm" is two things.
absl::Status ModelWeights::LoadNorms(const ModelConfig& config, const std::string& prefix,
                                     LayerWeights* layer) {
  const size_t hidden = config.hidden_size;
  const std::string after_attention = prefix + "post_attention_layernorm.weight";
  BATON_RETURN_IF_ERROR(
      LoadNorm(config, prefix + "input_layernorm.weight", hidden, &layer->input_norm.weight));
  if (!config.output_norms)
    return LoadNorm(config, after_attention, hidden, &layer->network_norm.weight);
  BATON_RETURN_IF_ERROR(LoadNorm(config, after_attention, hidden, &layer->attention_output_norm));
  BATON_RETURN_IF_ERROR(LoadNorm(config, prefix + "pre_feedforward_layernorm.weight", hidden,
                                 &layer->network_norm.weight));
  return LoadNorm(config, prefix + "post_feedforward_layernorm.weight", hidden,
                  &layer->network_output_norm);
}

absl::Status ModelWeights::LoadNorm(const ModelConfig& config, const std::string& name, size_t size,
                                    ConstTensorView* view) {
  return LoadVector(name, size, view, config.norms_plus_one ? 1.0f : 0.0f);
}

absl::Status ModelWeights::LoadQkv(const ModelConfig& config, const std::string& prefix,
                                   LayerWeights* layer) {
  const size_t hidden = config.hidden_size;
  const size_t q_size = static_cast<size_t>(config.heads) * config.head_dim;
  const size_t kv_size = static_cast<size_t>(config.kv_heads) * config.head_dim;
  if (config.tensor_names == TensorNames::kPhi3) {
    return LoadParts(prefix + "qkv_proj.weight", hidden,
                     {{q_size, &layer->q}, {kv_size, &layer->k}, {kv_size, &layer->v}});
  }
  BATON_RETURN_IF_ERROR(LoadMatrix(prefix + "q_proj.weight", q_size, hidden, &layer->q));
  BATON_RETURN_IF_ERROR(LoadMatrix(prefix + "k_proj.weight", kv_size, hidden, &layer->k));
  return LoadMatrix(prefix + "v_proj.weight", kv_size, hidden, &layer->v);
}

absl::Status ModelWeights::LoadGateUp(const ModelConfig& config, const std::string& prefix,
                                      LayerWeights* layer) {
  const size_t hidden = config.hidden_size;
  const size_t inner = config.intermediate_size;
  if (config.tensor_names == TensorNames::kPhi3) {
    return LoadParts(prefix + "gate_up_proj.weight", hidden,
                     {{inner, &layer->gate}, {inner, &layer->up}});
  }
  BATON_RETURN_IF_ERROR(LoadMatrix(prefix + "gate_proj.weight", inner, hidden, &layer->gate));
  return LoadMatrix(prefix + "up_proj.weight", inner, hidden, &layer->up);
}

absl::Status ModelWeights::LoadExperts(const ModelConfig& config, const std::string& prefix,
                                       ExpertWeights* experts) {
  const ExpertsConfig& sizes = config.experts;
  const size_t hidden = config.hidden_size;
  const bool mixtral = config.tensor_names == TensorNames::kMixtral;
  const std::string block = prefix + (mixtral ? "block_sparse_moe." : "mlp.");
  const char* const gate = mixtral ? "w1" : "gate_proj";
  const char* const up = mixtral ? "w3" : "up_proj";
  const char* const down = mixtral ? "w2" : "down_proj";
  BATON_RETURN_IF_ERROR(LoadAsStored(block + "gate.weight", sizes.count, hidden, &experts->router));
  for (uint32_t expert = 0; expert < sizes.count; ++expert) {
    BATON_RETURN_IF_ERROR(LoadNetwork(absl::StrCat(block, "experts.", expert, "."), gate, up, down,
                                      hidden, sizes.intermediate_size,
                                      &experts->networks.emplace_back()));
  }
  if (sizes.shared_intermediate_size == 0) return absl::OkStatus();
  BATON_RETURN_IF_ERROR(
      LoadAsStored(block + "shared_expert_gate.weight", 1, hidden, &experts->shared_gate));
  return LoadNetwork(block + "shared_expert.", gate, up, down, hidden,
                     sizes.shared_intermediate_size, &experts->shared);
}

absl::Status ModelWeights::LoadNetwork(const std::string& prefix, const char* gate, const char* up,
                                       const char* down, size_t hidden, size_t inner,
                                       NetworkWeights* network) {
  BATON_RETURN_IF_ERROR(
      LoadMatrix(absl::StrCat(prefix, gate, ".weight"), inner, hidden, &network->gate));
  BATON_RETURN_IF_ERROR(
      LoadMatrix(absl::StrCat(prefix, up, ".weight"), inner, hidden, &network->up));
  return LoadColumns(absl::StrCat(prefix, down, ".weight"), hidden, inner, &network->down);
}

absl::Status ModelWeights::LoadGpt2(const ModelConfig& config) {
  const std::string prefix =
      files_->Find("transformer.wte.weight") != nullptr ? "transformer." : "";
  BATON_RETURN_IF_ERROR(LoadVocabulary(prefix + "wte.weight", config));
  BATON_RETURN_IF_ERROR(
      LoadTable(prefix + "wpe.weight", config.context_tokens, config.hidden_size, &positions_));
  for (uint32_t index = 0; index < config.layers; ++index) {
    BATON_RETURN_IF_ERROR(
        LoadGpt2Layer(config, absl::StrCat(prefix, "h.", index, "."), &layers_.emplace_back()));
  }
  return LoadGpt2Norm(prefix + "ln_f.", config.hidden_size, &final_norm_);
}

absl::Status ModelWeights::LoadGpt2Layer(const ModelConfig& config, const std::string& prefix,
                                         LayerWeights* layer) {
  const size_t hidden = config.hidden_size;
  const size_t inner = config.intermediate_size;
  BATON_RETURN_IF_ERROR(LoadGpt2Norm(prefix + "ln_1.", hidden, &layer->input_norm));
  BATON_RETURN_IF_ERROR(
      LoadTransposed(prefix + "attn.c_attn.weight", hidden,
                     {{hidden, &layer->q}, {hidden, &layer->k}, {hidden, &layer->v}}));
  BATON_RETURN_IF_ERROR(LoadBiasParts(
      prefix + "attn.c_attn.bias",
      {{hidden, &layer->q_bias}, {hidden, &layer->k_bias}, {hidden, &layer->v_bias}}));
  BATON_RETURN_IF_ERROR(
      LoadTransposedColumns(prefix + "attn.c_proj.weight", hidden, hidden, &layer->o));
  BATON_RETURN_IF_ERROR(LoadSumBias(prefix + "attn.c_proj.bias", hidden, &layer->o_bias));
  BATON_RETURN_IF_ERROR(LoadGpt2Norm(prefix + "ln_2.", hidden, &layer->network_norm));
  BATON_RETURN_IF_ERROR(LoadTransposed(prefix + "mlp.c_fc.weight", hidden, {{inner, &layer->up}}));
  BATON_RETURN_IF_ERROR(LoadBiasParts(prefix + "mlp.c_fc.bias", {{inner, &layer->up_bias}}));
  BATON_RETURN_IF_ERROR(
      LoadTransposedColumns(prefix + "mlp.c_proj.weight", inner, hidden, &layer->down));
  return LoadSumBias(prefix + "mlp.c_proj.bias", hidden, &layer->down_bias);
}

absl::Status ModelWeights::LoadGpt2Norm(const std::string& prefix, size_t size, NormWeights* norm) {
  BATON_RETURN_IF_ERROR(LoadVector(prefix + "weight", size, &norm->weight));
  return LoadVector(prefix + "bias", size, &norm->bias);
}

absl::StatusOr<const StoredTensor*> ModelWeights::Require(
    const std::string& name, std::initializer_list<size_t> shape) const {
  const StoredTensor* tensor = files_->Find(name);
  if (tensor == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(files_->source(), ": tensor '", name, "' is missing"));
  }
  if (!std::equal(shape.begin(), shape.end(), tensor->shape.begin(), tensor->shape.end())) {
    return absl::InvalidArgumentError(absl::StrCat(
        tensor->file, ": tensor '", name, "' has shape [", absl::StrJoin(tensor->shape, ", "),
        "], but config.json asks for [", absl::StrJoin(shape, ", "), "]"));
  }
  if (!IsWeightType(tensor->dtype)) {
    return absl::InvalidArgumentError(absl::StrCat(tensor->file, ": tensor '", name,
                                                   "' is of type ", tensor->dtype_name,
                                                   "; supported are F32, F16, BF16"));
  }
  return tensor;
}

absl::Status ModelWeights::LoadMatrix(const std::string& name, size_t rows, size_t columns,
                                      PackedWeight* weight) {
  return LoadParts(name, columns, {{rows, weight}});
}

absl::Status ModelWeights::LoadParts(const std::string& name, size_t columns,
                                     std::initializer_list<RowsOf> parts) {
  size_t rows = 0;
  for (const RowsOf& part : parts) rows += part.rows;
  BATON_ASSIGN_OR_RETURN(const StoredTensor* tensor, Require(name, {rows, columns}));
  parameter_count_ += rows * columns;
  size_t row = 0;
  for (const RowsOf& part : parts) {
    const size_t first = row + options_.shard.Begin(part.rows);
    BATON_RETURN_IF_ERROR(
        Pack(name, *tensor, RowsOfTensor(*tensor, first, options_.shard.Size(part.rows), columns),
             FormatOf(*tensor), part.weight));
    row += part.rows;
  }
  return absl::OkStatus();
}

absl::Status ModelWeights::LoadColumns(const std::string& name, size_t rows, size_t columns,
                                       PackedWeight* weight) {
  const Shard& shard = options_.shard;
  if (shard.count == 1) return LoadMatrix(name, rows, columns, weight);
  BATON_ASSIGN_OR_RETURN(const StoredTensor* tensor, Require(name, {rows, columns}));
  parameter_count_ += rows * columns;
  const std::vector<std::byte> part =
      ColumnsOf(RowsOfTensor(*tensor, 0, rows, columns), shard.Begin(columns), shard.Size(columns));
  const ConstTensorView matrix(part.data(), *tensor->dtype, DeviceKind::kCpu,
                               {rows, shard.Size(columns)});
  return Pack(name, *tensor, matrix, FormatOf(*tensor), weight);
}

absl::Status ModelWeights::LoadTransposed(const std::string& name, size_t inputs,
                                          std::initializer_list<RowsOf> parts) {
  size_t outputs = 0;
  for (const RowsOf& part : parts) outputs += part.rows;
  BATON_ASSIGN_OR_RETURN(const StoredTensor* tensor, Require(name, {inputs, outputs}));
  parameter_count_ += inputs * outputs;
  size_t column = 0;
  for (const RowsOf& part : parts) {
    const size_t count = options_.shard.Size(part.rows);
    const std::vector<std::byte> rows = TransposedColumns(
        RowsOfTensor(*tensor, 0, inputs, outputs), column + options_.shard.Begin(part.rows), count);
    const ConstTensorView matrix(rows.data(), *tensor->dtype, DeviceKind::kCpu, {count, inputs});
    BATON_RETURN_IF_ERROR(Pack(name, *tensor, matrix, FormatOf(*tensor), part.weight));
    column += part.rows;
  }
  return absl::OkStatus();
}

absl::Status ModelWeights::LoadTransposedColumns(const std::string& name, size_t inputs,
                                                 size_t outputs, PackedWeight* weight) {
  BATON_ASSIGN_OR_RETURN(const StoredTensor* tensor, Require(name, {inputs, outputs}));
  parameter_count_ += inputs * outputs;
  const size_t count = options_.shard.Size(inputs);
  const std::vector<std::byte> rows = TransposedColumns(
      RowsOfTensor(*tensor, options_.shard.Begin(inputs), count, outputs), 0, outputs);
  const ConstTensorView matrix(rows.data(), *tensor->dtype, DeviceKind::kCpu, {outputs, count});
  return Pack(name, *tensor, matrix, FormatOf(*tensor), weight);
}

WeightFormat ModelWeights::FormatOf(const StoredTensor& tensor) const {
  return {.form = options_.form.value_or(WeightFormOf(*tensor.dtype)),
          .activation_bytes = options_.activation_bytes};
}

absl::Status ModelWeights::LoadAsStored(const std::string& name, size_t rows, size_t columns,
                                        PackedWeight* weight) {
  BATON_ASSIGN_OR_RETURN(const StoredTensor* tensor, Require(name, {rows, columns}));
  parameter_count_ += rows * columns;
  return Pack(name, *tensor, RowsOfTensor(*tensor, 0, rows, columns),
              {.form = WeightFormOf(*tensor->dtype)}, weight);
}

absl::Status ModelWeights::Pack(const std::string& name, const StoredTensor& tensor,
                                const ConstTensorView& matrix, WeightFormat format,
                                PackedWeight* weight) {
  absl::StatusOr<PackedWeight> packed = PackWeight(context_, device_, matrix, format);
  if (absl::IsResourceExhausted(packed.status())) return packed.status();
  if (!packed.ok()) {
    return absl::Status(packed.status().code(), absl::StrCat(tensor.file, ": tensor '", name, "' ",
                                                             std::string(packed.status().message()),
                                                             "; choose other --weights"));
  }
  *weight = *std::move(packed);
  format_names_.insert(format.name());
  // What the other ranks read has been read, too.
  Report(std::min<size_t>(tensor.data.size(), matrix.bytes() * options_.shard.count));
  return absl::OkStatus();
}

void ModelWeights::Report(size_t bytes) {
  bytes_done_ += bytes;
  if (options_.progress) options_.progress(bytes_done_, files_->total_bytes());
}

absl::Status ModelWeights::LoadVector(const std::string& name, size_t size, ConstTensorView* view,
                                      float added) {
  BATON_ASSIGN_OR_RETURN(const StoredTensor* tensor, Require(name, {size}));
  std::vector<float> values = ReadVector(*tensor);
  for (float& value : values) value += added;
  return BringVector(name, *tensor, values, DType::kF32, view);
}

absl::Status ModelWeights::LoadBias(const std::string& name, size_t size, ConstTensorView* view) {
  BATON_ASSIGN_OR_RETURN(const StoredTensor* tensor, Require(name, {size}));
  return BringVector(name, *tensor, ReadVector(*tensor), context_.activations(), view);
}

absl::Status ModelWeights::BringVector(const std::string& name, const StoredTensor& tensor,
                                       const std::vector<float>& values, DType type,
                                       ConstTensorView* view) {
  std::vector<std::byte> bytes(values.size() * DTypeBytes(type));
  for (size_t i = 0; i < values.size(); ++i) {
    if (std::isfinite(values[i]) && !std::isfinite(RoundTo(type, values[i]))) {
      return absl::InvalidArgumentError(absl::StrCat(tensor.file, ": tensor '", name, "' has ",
                                                     values[i], ", which does not fit into ",
                                                     DTypeName(type), "; choose other --weights"));
    }
    StoreElement(bytes.data(), i, type, values[i]);
  }
  BATON_ASSIGN_OR_RETURN(DeviceMemory memory, device_.Allocate(bytes.size()));
  BATON_RETURN_IF_ERROR(device_.CopyFromHost(memory.data(), bytes.data(), bytes.size()));
  *view = ConstTensorView(memory.data(), type, device_.kind(), {values.size()});
  memory_.push_back(std::move(memory));
  parameter_count_ += values.size();
  Report(tensor.data.size());
  return absl::OkStatus();
}

absl::Status ModelWeights::LoadBiasParts(const std::string& name,
                                         std::initializer_list<PartOf> parts) {
  size_t size = 0;
  for (const PartOf& part : parts) size += part.size;
  ConstTensorView all;
  BATON_RETURN_IF_ERROR(LoadBias(name, size, &all));
  size_t begin = 0;
  for (const PartOf& part : parts) {
    *part.view = all.Rows(begin + options_.shard.Begin(part.size), options_.shard.Size(part.size));
    begin += part.size;
  }
  return absl::OkStatus();
}

absl::Status ModelWeights::LoadSumBias(const std::string& name, size_t size,
                                       ConstTensorView* view) {
  BATON_RETURN_IF_ERROR(LoadBias(name, size, view));
  if (options_.shard.rank != 0) *view = {};
  return absl::OkStatus();
}

}  // namespace baton
