// A decoder-only transformer: weights and the forward pass, written once over common/kernels.
//
// Weights are immutable after Load. Forward uses scratch memory of the model, so one thread at a
// time (the engine thread) calls it. On a CPU the logits of a token depend only on the tokens
// before it: not on the other rows, on chunk boundaries, or on the number of threads. On a GPU that
// holds up to rounding. See "Equal bits" and "Numbers on a GPU" in DESIGN_NOTES.md.
#ifndef BATON_COMMON_MODEL_MODEL_H_
#define BATON_COMMON_MODEL_MODEL_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/device/device.h"
#include "common/kv_cache/kv_arena.h"
#include "common/kv_cache/kv_layout.h"
#include "common/model/batch.h"
#include "common/model/model_config.h"
#include "common/tensor/dtype.h"

namespace baton {

struct ModelOptions {
  std::string directory;     // A Hugging Face folder.
  std::string weights = {};  // "f32", "bf16", "f16", "int8", "fp8", "int4", or empty: as stored.
  uint32_t activation_bytes = 0;    // See WeightFormat.
  uint32_t threads = 1;             // Kernel threads, this one included.
  bool pin_threads = false;         // See KernelThreads.
  uint32_t batch_tokens_max = 512;  // Most tokens of one Forward; sizes the scratch memory.
  // Called while weights are loaded, with the bytes read so far of all.
  std::function<void(uint64_t done, uint64_t total)> progress = {};
};

class Model {
 public:
  // Called after each layer, when K and V of every token of the batch are in the cache for that
  // layer.
  using LayerDone = std::function<void(uint32_t layer)>;

  // Reads config.json, generation_config.json and the safetensors. The device outlives the model.
  // Errors name the file, tensor or option that is missing, wrong or unsupported.
  static absl::StatusOr<std::unique_ptr<Model>> Load(Device& device, const ModelOptions& options);
  // On several devices together, with a shard of the KV cache on each: see tensor_parallel.h.
  static absl::StatusOr<std::unique_ptr<Model>> Load(std::span<Device* const> devices,
                                                     const ModelOptions& options);

  virtual ~Model() = default;

  virtual const ModelConfig& config() const = 0;
  // SHA-256 over config, tokenizer, safetensors headers and first and last 4 KiB of each tensor.
  virtual const std::string& fingerprint() const = 0;  // 32 bytes.
  // Weight form and kernel path, e.g. "bf16/cpu-2": on a CPU equal numerics give equal bits.
  virtual const std::string& numerics() const = 0;
  virtual uint64_t parameter_count() const = 0;
  // The type of what layers hand to each other.
  virtual DType activations() const { return DType::kF32; }

  // Sets aside what steps of at most so many sequences with this cache need beside it, so that none
  // fails for want of memory. kResourceExhausted: there is not so much.
  virtual absl::Status Reserve(const KvArena& /*cache*/, uint32_t /*sequences_max*/) {
    return absl::OkStatus();
  }

  // Runs the rows and writes K and V of every token to `cache`. `logits` gets, row after row, those
  // that were asked for: [sum of logit_count, vocab_size], host memory. REQUIRES: at most
  // batch_tokens_max tokens; blocks cover each row; logits.size() fits exactly.
  virtual absl::Status Forward(std::span<const BatchRow> rows, KvArena& cache,
                               std::span<float> logits, const LayerDone& layer_done) = 0;

  // kUnavailable: the model will compute nothing more in this process. Cheap.
  virtual absl::Status Health() const { return absl::OkStatus(); }

  // Whether ForwardAndSample can be called: the logits are far from the host, and need not come.
  virtual bool samples_tokens() const { return false; }
  // As Forward, but of each row of logits only the token that Sample() would choose from it, and
  // what else `choice` asks for.
  virtual absl::Status ForwardAndSample(std::span<const BatchRow> /*rows*/, KvArena& /*cache*/,
                                        const TokenChoice& /*choice*/,
                                        const LayerDone& /*layer_done*/) {
    return absl::UnimplementedError("the model does not sample tokens");
  }

  // What a decode step of so many rows is filled up to: to the device, steps of equal size are of
  // one kind, whose first ones take longer.
  virtual uint32_t PaddedRows(uint32_t rows) const { return rows; }

  // Decode steps that the device does one after the other without waiting for the host: the next
  // one is started before the tokens of the one that runs are known.

  // Whether StartStep takes so many rows.
  virtual bool CanStart(size_t /*rows*/) const { return false; }
  // Hands the step to the device: it writes K and V, and chooses the token of row i as samples[i]
  // and the edits say. All arguments but the cache may go when this returns. The blocks of the rows
  // stay theirs until the step is finished. After an error the device does nothing of it any more.
  // REQUIRES: CanStart; at most one other step is started and not finished, and that is the one
  // that `chosen_by` means. As long as there are such steps, nothing else computes.
  virtual absl::Status StartStep(std::span<const DecodeRow> /*rows*/, KvArena& /*cache*/,
                                 std::span<const SampleRow> /*samples*/,
                                 std::span<const LogitEdit> /*edits*/) {
    return absl::UnimplementedError("the model does not start steps");
  }
  // Waits for the oldest started step; gives the token of each row. After an error the device does
  // nothing more of it. REQUIRES: there is one; tokens.size() fits exactly.
  virtual absl::Status FinishStep(std::span<TokenId> /*tokens*/) {
    return absl::UnimplementedError("the model does not start steps");
  }
};

}  // namespace baton

#endif  // BATON_COMMON_MODEL_MODEL_H_
