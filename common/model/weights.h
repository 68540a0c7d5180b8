// The weights of a decoder on its device, checked against the configuration.
//
// Matrices are packed for the device's Linear. The embedding table, of which a step reads a few
// rows, stays as it is stored: on the CPU in the mapped file, on a GPU in the head's memory if they
// are tied and the head is whole and stored so, too. Immutable after loading: any thread. The
// device outlives them.
//
// Of a shard they are the rank's share: rows of the head and of what heads and the inner rows of
// networks are computed by, columns of what leads from them back to the hidden size. All ranks have
// embeddings, norms and what chooses experts; only the first has biases of sums.
#ifndef BATON_COMMON_MODEL_WEIGHTS_H_
#define BATON_COMMON_MODEL_WEIGHTS_H_

#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/device/device.h"
#include "common/kernels/kernels.h"
#include "common/model/model_config.h"
#include "common/model/safetensors.h"
#include "common/model/shard.h"
#include "common/tensor/tensor_view.h"

namespace baton {

// The bias is empty with NormKind::kRms.
struct NormWeights {
  ConstTensorView weight;  // [hidden]
  ConstTensorView bias;    // As weight.
};

// A gated feed-forward network.
struct NetworkWeights {
  PackedWeight gate;  // [intermediate, hidden]
  PackedWeight up;    // As gate.
  PackedWeight down;  // [hidden, intermediate]
};

// A mixture of experts. What chooses among experts keeps the form in which it is stored: it is
// small, and an error of four bits would choose other ones.
struct ExpertWeights {
  PackedWeight router;  // [experts, hidden]
  std::vector<NetworkWeights> networks;
  NetworkWeights shared;
  PackedWeight shared_gate;  // [1, hidden]
};

// Matrices are [outputs, inputs]; norms are float32, biases of the type of activations. Those that
// an architecture lacks are empty.
struct LayerWeights {
  NormWeights input_norm;
  PackedWeight q;                         // [heads * head_dim, hidden]
  PackedWeight k;                         // [kv_heads * head_dim, hidden]
  PackedWeight v;                         // As k.
  ConstTensorView q_bias;                 // [heads * head_dim]
  ConstTensorView k_bias;                 // [kv_heads * head_dim]
  ConstTensorView v_bias;                 // As k_bias.
  ConstTensorView q_norm;                 // [head_dim]
  ConstTensorView k_norm;                 // [head_dim]
  PackedWeight o;                         // [hidden, heads * head_dim]
  ConstTensorView o_bias;                 // [hidden]
  NormWeights network_norm;               // Before the network.
  ConstTensorView attention_output_norm;  // [hidden], of what attention gives.
  ConstTensorView network_output_norm;    // [hidden], of what the network gives.
  PackedWeight gate;                      // [intermediate, hidden]
  PackedWeight up;                        // [intermediate, hidden]
  PackedWeight down;                      // [hidden, intermediate]
  ConstTensorView up_bias;                // [intermediate]
  ConstTensorView down_bias;              // [hidden]
  ExpertWeights experts;                  // Instead of those three.
};

struct WeightOptions {
  std::optional<WeightForm> form = {};  // Of matrices; as stored if absent.
  uint32_t activation_bytes = 0;        // See WeightFormat.
  Shard shard = {};
  // Called while loading, with the bytes read so far of all.
  std::function<void(uint64_t done, uint64_t total)> progress = {};
};

class ModelWeights {
 public:
  // What activations suit the matrices: the type of float ones, bfloat16 for others; on the CPU
  // always float32. Reads no weights. Errors name the tensor and the file.
  static absl::StatusOr<DType> ActivationsFor(const Device& device, const ModelConfig& config,
                                              const std::string& directory,
                                              const WeightOptions& options);

  // Errors name the tensor and the file. `config` is that of the whole model. REQUIRES:
  // ConfigOfShard has no error.
  static absl::StatusOr<std::unique_ptr<ModelWeights>> Load(Device& device, KernelContext& context,
                                                            const ModelConfig& config,
                                                            const std::string& directory,
                                                            const WeightOptions& options);

  const ConstTensorView& embedding() const { return embedding_; }  // [vocab, hidden]
  const ConstTensorView& positions() const { return positions_; }  // [context, hidden] if learned
  // What embeddings are multiplied with. sqrt(hidden) is rounded to the stored type: so it was when
  // the model was trained, and so does Hugging Face.
  float embedding_scale() const { return embedding_scale_; }
  // [the rank's share of vocab, hidden]; empty if that is.
  const PackedWeight& head() const { return head_; }
  const NormWeights& final_norm() const { return final_norm_; }
  const LayerWeights& layer(uint32_t index) const { return layers_[index]; }

  // Of the embedding, in the file.
  DType stored_dtype() const { return stored_dtype_; }
  // Formats of the matrices: "bf16", or "int4a16+int8a16" if they differ.
  std::string format_names() const;
  // Of the whole model.
  uint64_t parameter_count() const { return parameter_count_; }
  const TensorFiles& files() const { return *files_; }

 private:
  ModelWeights(Device& device, KernelContext& context, std::unique_ptr<TensorFiles> files,
               const WeightOptions& options)
      : device_(device), context_(context), files_(std::move(files)), options_(options) {}

  absl::Status LoadAll(const ModelConfig& config);
  absl::Status LoadLayer(const ModelConfig& config, uint32_t index, LayerWeights* layer);
  absl::Status LoadExperts(const ModelConfig& config, const std::string& prefix,
                           ExpertWeights* experts);
  // `gate`, `up` and `down` name the matrices behind `prefix`.
  absl::Status LoadNetwork(const std::string& prefix, const char* gate, const char* up,
                           const char* down, size_t hidden, size_t inner, NetworkWeights* network);
  absl::Status LoadGpt2(const ModelConfig& config);
  absl::Status LoadGpt2Layer(const ModelConfig& config, const std::string& prefix,
                             LayerWeights* layer);
  absl::Status LoadGpt2Norm(const std::string& prefix, size_t size, NormWeights* norm);
  // Finds the tensor and checks its shape and type.
  absl::StatusOr<const StoredTensor*> Require(const std::string& name,
                                              std::initializer_list<size_t> shape) const;
  // The embedding of this name, and the head.
  absl::Status LoadVocabulary(const std::string& name, const ModelConfig& config);
  absl::Status LoadEmbedding(const std::string& name, const ModelConfig& config);
  // A table of which single rows are read: as it is stored.
  absl::Status LoadTable(const std::string& name, size_t rows, size_t columns,
                         ConstTensorView* table);
  absl::Status LoadHead(const std::string& name, const ModelConfig& config);
  // q, k and v of a layer, or gate and up, whether they are matrices of their own or parts of one.
  absl::Status LoadQkv(const ModelConfig& config, const std::string& prefix, LayerWeights* layer);
  absl::Status LoadGateUp(const ModelConfig& config, const std::string& prefix,
                          LayerWeights* layer);
  // The rank's rows of a matrix.
  absl::Status LoadMatrix(const std::string& name, size_t rows, size_t columns,
                          PackedWeight* weight);
  // The rank's columns.
  absl::Status LoadColumns(const std::string& name, size_t rows, size_t columns,
                           PackedWeight* weight);
  // All of it in the form in which it is stored, whatever the options say.
  absl::Status LoadAsStored(const std::string& name, size_t rows, size_t columns,
                            PackedWeight* weight);
  // Cuts a matrix of `columns` into parts of so many rows, which must be all; of each the rank's.
  struct RowsOf {
    size_t rows = 0;
    PackedWeight* weight = nullptr;
  };
  absl::Status LoadParts(const std::string& name, size_t columns,
                         std::initializer_list<RowsOf> parts);
  // The same for a matrix that is stored as [inputs, outputs]: its columns are cut.
  absl::Status LoadTransposed(const std::string& name, size_t inputs,
                              std::initializer_list<RowsOf> parts);
  // As LoadColumns.
  absl::Status LoadTransposedColumns(const std::string& name, size_t inputs, size_t outputs,
                                     PackedWeight* weight);
  WeightFormat FormatOf(const StoredTensor& tensor) const;
  // `matrix` [outputs, inputs], on the host: the tensor or a part of it.
  absl::Status Pack(const std::string& name, const StoredTensor& tensor,
                    const ConstTensorView& matrix, WeightFormat format, PackedWeight* weight);
  absl::Status LoadNorms(const ModelConfig& config, const std::string& prefix, LayerWeights* layer);
  absl::Status LoadNorm(const ModelConfig& config, const std::string& name, size_t size,
                        ConstTensorView* view);
  // In float32, with `added` to each element.
  absl::Status LoadVector(const std::string& name, size_t size, ConstTensorView* view,
                          float added = 0.0f);
  // In the type of activations.
  absl::Status LoadBias(const std::string& name, size_t size, ConstTensorView* view);
  // Floats become `type`.
  absl::Status BringVector(const std::string& name, const StoredTensor& tensor,
                           const std::vector<float>& values, DType type, ConstTensorView* view);
  // The rank's part of each of `views`, which lie behind each other in one vector.
  struct PartOf {
    size_t size = 0;
    ConstTensorView* view = nullptr;
  };
  absl::Status LoadBiasParts(const std::string& name, std::initializer_list<PartOf> parts);
  // The bias of what the ranks add up: one of them has it.
  absl::Status LoadSumBias(const std::string& name, size_t size, ConstTensorView* view);
  void Report(size_t bytes);

  Device& device_;
  KernelContext& context_;  // Until the weights are loaded.
  const std::unique_ptr<TensorFiles> files_;
  const WeightOptions options_;
  std::vector<DeviceMemory> memory_;
  std::vector<LayerWeights> layers_;
  ConstTensorView embedding_;
  PackedWeight head_;
  ConstTensorView positions_;
  NormWeights final_norm_;
  DType stored_dtype_ = DType::kF32;
  float embedding_scale_ = 1.0f;
  std::set<std::string> format_names_;
  uint64_t parameter_count_ = 0;
  uint64_t bytes_done_ = 0;
};

}  // namespace baton

#endif  // BATON_COMMON_MODEL_WEIGHTS_H_
