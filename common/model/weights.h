// The weights of a decoder on its device, checked against the configuration.
//
// On the CPU, matrices that are kept as stored stay in the mapped files; all else is copied.
// Immutable after loading: any thread. The device outlives them.
#ifndef BATON_COMMON_MODEL_WEIGHTS_H_
#define BATON_COMMON_MODEL_WEIGHTS_H_

#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/device/device.h"
#include "common/model/model_config.h"
#include "common/model/safetensors.h"
#include "common/tensor/tensor_view.h"

namespace baton {

// Matrices are [out, in], of a weight type; norms and biases are float32. Those that an
// architecture lacks are empty.
struct LayerWeights {
  ConstTensorView input_norm;      // [hidden]
  ConstTensorView q;               // [heads * head_dim, hidden]
  ConstTensorView k;               // [kv_heads * head_dim, hidden]
  ConstTensorView v;               // As k.
  ConstTensorView q_bias;          // [heads * head_dim]
  ConstTensorView k_bias;          // [kv_heads * head_dim]
  ConstTensorView v_bias;          // As k_bias.
  ConstTensorView q_norm;          // [head_dim]
  ConstTensorView k_norm;          // [head_dim]
  ConstTensorView o;               // [hidden, heads * head_dim]
  ConstTensorView attention_norm;  // [hidden], after attention.
  ConstTensorView gate;            // [intermediate, hidden]
  ConstTensorView up;              // [intermediate, hidden]
  ConstTensorView down;            // [hidden, intermediate]
};

class ModelWeights {
 public:
  // Matrices become `dtype`, or stay as stored. Errors name the tensor and the file.
  static absl::StatusOr<std::unique_ptr<ModelWeights>> Load(Device& device,
                                                            const ModelConfig& config,
                                                            const std::string& directory,
                                                            std::optional<DType> dtype);

  const ConstTensorView& embedding() const { return embedding_; }    // [vocab, hidden]
  const ConstTensorView& head() const { return head_; }              // [vocab, hidden]
  const ConstTensorView& final_norm() const { return final_norm_; }  // [hidden]
  const LayerWeights& layer(uint32_t index) const { return layers_[index]; }

  // Of the embedding, in the file.
  DType stored_dtype() const { return stored_dtype_; }
  // Types of the matrices as they are used: "bf16", or "bf16+f32" if they differ.
  std::string dtype_names() const;
  uint64_t parameter_count() const { return parameter_count_; }
  const TensorFiles& files() const { return *files_; }

 private:
  ModelWeights(Device& device, std::unique_ptr<TensorFiles> files, std::optional<DType> dtype)
      : device_(device), files_(std::move(files)), dtype_(dtype) {}

  absl::Status LoadAll(const ModelConfig& config);
  absl::Status LoadLayer(const ModelConfig& config, uint32_t index, LayerWeights* layer);
  // Finds the tensor and checks its shape and type.
  absl::StatusOr<const StoredTensor*> Require(const std::string& name,
                                              std::initializer_list<size_t> shape) const;
  absl::Status LoadMatrix(const std::string& name, size_t rows, size_t columns,
                          ConstTensorView* view);
  absl::Status LoadVector(const std::string& name, size_t size, ConstTensorView* view);
  // Copies the tensor, converted, to the device.
  absl::StatusOr<const std::byte*> Convert(const std::string& name, const StoredTensor& tensor,
                                           DType to);

  Device& device_;
  const std::unique_ptr<TensorFiles> files_;
  const std::optional<DType> dtype_;
  std::vector<DeviceMemory> memory_;
  std::vector<LayerWeights> layers_;
  ConstTensorView embedding_;
  ConstTensorView head_;
  ConstTensorView final_norm_;
  DType stored_dtype_ = DType::kF32;
  std::set<std::string> dtype_names_;
  uint64_t parameter_count_ = 0;
};

}  // namespace baton

#endif  // BATON_COMMON_MODEL_WEIGHTS_H_
