#include "common/model/weights.h"

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

// Returns false if a finite value is too large for the type.
bool WriteElement(float value, size_t index, DType dtype, std::byte* data) {
  if (dtype == DType::kF32) {
    std::memcpy(data + index * sizeof(value), &value, sizeof(value));
    return true;
  }
  const uint16_t bits = dtype == DType::kBF16 ? F32ToBf16(value) : F32ToF16(value);
  std::memcpy(data + index * sizeof(bits), &bits, sizeof(bits));
  const float stored = dtype == DType::kBF16 ? Bf16ToF32(bits) : F16ToF32(bits);
  return std::isfinite(stored) || !std::isfinite(value);
}

bool IsAligned(const std::byte* data, DType dtype) {
  return reinterpret_cast<uintptr_t>(data) % DTypeBytes(dtype) == 0;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ModelWeights>> ModelWeights::Load(Device& device,
                                                                 const ModelConfig& config,
                                                                 const std::string& directory,
                                                                 std::optional<DType> dtype) {
  BATON_ASSIGN_OR_RETURN(std::unique_ptr<TensorFiles> files, TensorFiles::Open(directory));
  std::unique_ptr<ModelWeights> weights(new ModelWeights(device, std::move(files), dtype));
  BATON_RETURN_IF_ERROR(weights->LoadAll(config));
  return weights;
}

std::string ModelWeights::dtype_names() const { return absl::StrJoin(dtype_names_, "+"); }

absl::Status ModelWeights::LoadAll(const ModelConfig& config) {
  const std::string embedding_name = "model.embed_tokens.weight";
  BATON_RETURN_IF_ERROR(
      LoadMatrix(embedding_name, config.vocab_size, config.hidden_size, &embedding_));
  stored_dtype_ = *files_->Find(embedding_name)->dtype;
  for (uint32_t index = 0; index < config.layers; ++index) {
    // Grown as tensors are found: the number of layers is the file's claim.
    BATON_RETURN_IF_ERROR(LoadLayer(config, index, &layers_.emplace_back()));
  }
  BATON_RETURN_IF_ERROR(LoadVector("model.norm.weight", config.hidden_size, &final_norm_));
  if (config.tied_embeddings) {
    head_ = embedding_;
    return absl::OkStatus();
  }
  return LoadMatrix("lm_head.weight", config.vocab_size, config.hidden_size, &head_);
}

absl::Status ModelWeights::LoadLayer(const ModelConfig& config, uint32_t index,
                                     LayerWeights* layer) {
  const std::string prefix = absl::StrCat("model.layers.", index, ".");
  const size_t hidden = config.hidden_size;
  const size_t inner = config.intermediate_size;
  const size_t q_size = static_cast<size_t>(config.heads) * config.head_dim;
  const size_t kv_size = static_cast<size_t>(config.kv_heads) * config.head_dim;
  const std::string attention = prefix + "self_attn.";
  BATON_RETURN_IF_ERROR(LoadVector(prefix + "input_layernorm.weight", hidden, &layer->input_norm));
  BATON_RETURN_IF_ERROR(LoadMatrix(attention + "q_proj.weight", q_size, hidden, &layer->q));
  BATON_RETURN_IF_ERROR(LoadMatrix(attention + "k_proj.weight", kv_size, hidden, &layer->k));
  BATON_RETURN_IF_ERROR(LoadMatrix(attention + "v_proj.weight", kv_size, hidden, &layer->v));
  BATON_RETURN_IF_ERROR(LoadMatrix(attention + "o_proj.weight", hidden, q_size, &layer->o));
  if (config.qkv_bias) {
    BATON_RETURN_IF_ERROR(LoadVector(attention + "q_proj.bias", q_size, &layer->q_bias));
    BATON_RETURN_IF_ERROR(LoadVector(attention + "k_proj.bias", kv_size, &layer->k_bias));
    BATON_RETURN_IF_ERROR(LoadVector(attention + "v_proj.bias", kv_size, &layer->v_bias));
  }
  if (config.qk_norm) {
    BATON_RETURN_IF_ERROR(LoadVector(attention + "q_norm.weight", config.head_dim, &layer->q_norm));
    BATON_RETURN_IF_ERROR(LoadVector(attention + "k_norm.weight", config.head_dim, &layer->k_norm));
  }
  BATON_RETURN_IF_ERROR(
      LoadVector(prefix + "post_attention_layernorm.weight", hidden, &layer->attention_norm));
  BATON_RETURN_IF_ERROR(LoadMatrix(prefix + "mlp.gate_proj.weight", inner, hidden, &layer->gate));
  BATON_RETURN_IF_ERROR(LoadMatrix(prefix + "mlp.up_proj.weight", inner, hidden, &layer->up));
  return LoadMatrix(prefix + "mlp.down_proj.weight", hidden, inner, &layer->down);
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
                                      ConstTensorView* view) {
  BATON_ASSIGN_OR_RETURN(const StoredTensor* tensor, Require(name, {rows, columns}));
  const DType dtype = dtype_.value_or(*tensor->dtype);
  const std::byte* data = tensor->data.data();
  const bool in_place = device_.kind() == DeviceKind::kCpu && dtype == tensor->dtype;
  if (!in_place || !IsAligned(data, dtype)) {
    BATON_ASSIGN_OR_RETURN(data, Convert(name, *tensor, dtype));
  }
  *view = ConstTensorView(data, dtype, device_.kind(), {rows, columns});
  dtype_names_.insert(DTypeName(dtype));
  parameter_count_ += rows * columns;
  return absl::OkStatus();
}

absl::Status ModelWeights::LoadVector(const std::string& name, size_t size, ConstTensorView* view) {
  BATON_ASSIGN_OR_RETURN(const StoredTensor* tensor, Require(name, {size}));
  BATON_ASSIGN_OR_RETURN(const std::byte* data, Convert(name, *tensor, DType::kF32));
  *view = ConstTensorView(data, DType::kF32, device_.kind(), {size});
  parameter_count_ += size;
  return absl::OkStatus();
}

absl::StatusOr<const std::byte*> ModelWeights::Convert(const std::string& name,
                                                       const StoredTensor& tensor, DType to) {
  const DType from = *tensor.dtype;
  const size_t count = tensor.data.size() / DTypeBytes(from);
  std::vector<std::byte> converted;
  std::span<const std::byte> bytes = tensor.data;
  if (from != to) {
    converted.resize(count * DTypeBytes(to));
    for (size_t i = 0; i < count; ++i) {
      const float value = ReadElement(tensor.data.data(), i, from);
      if (!WriteElement(value, i, to, converted.data())) {
        return absl::InvalidArgumentError(absl::StrCat(tensor.file, ": tensor '", name, "' has ",
                                                       value, ", which does not fit into ",
                                                       DTypeName(to), "; choose other weights"));
      }
    }
    bytes = converted;
  }
  BATON_ASSIGN_OR_RETURN(DeviceMemory memory, device_.Allocate(bytes.size()));
  BATON_RETURN_IF_ERROR(device_.CopyFromHost(memory.data(), bytes.data(), bytes.size()));
  return memory_.emplace_back(std::move(memory)).data();
}

}  // namespace baton
