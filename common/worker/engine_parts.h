// The parts under every engine, made from flags: device, model, KV memory, block pool, executor.
#ifndef BATON_COMMON_WORKER_ENGINE_PARTS_H_
#define BATON_COMMON_WORKER_ENGINE_PARTS_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/device/device.h"
#include "common/engine/executor.h"
#include "common/kv_cache/block_pool.h"
#include "common/kv_cache/kv_arena.h"
#include "common/model/model.h"
#include "common/tensor/dtype.h"
#include "proto/types.pb.h"

namespace baton {

struct EngineOptions {
  std::string model;  // A Hugging Face folder.
  std::string device = "cpu";
  uint32_t tensor_parallelism = 1;     // Devices that compute the model together, from `device` on.
  std::string weights = {};            // Empty: as stored.
  std::optional<DType> kv_dtype = {};  // Absent: as stored; a GPU: as it computes.
  uint32_t activation_bits = 0;        // 8, 16 or 32; 0: the most that the weights have.
  uint32_t threads = 0;                // 0: one per core.
  bool pin_threads = false;
  bool huge_pages = true;
  uint64_t kv_memory_bytes = uint64_t{512} << 20;
  uint32_t block_tokens = 16;
  uint32_t chunk_tokens = 512;
  uint32_t sequences_max = 256;
};

// By the flags that engine_parts.cc lists. kInvalidArgument names the flag.
absl::StatusOr<EngineOptions> EngineOptionsFromFlags();

// The type of the KV cache if no flag says it. A GPU decodes fast over a cache of the type of its
// activations, and slowly over other floats.
DType DefaultKvDType(DeviceKind device, DType stored, DType activations);

// Members are destroyed in reverse order: who borrows goes before who lends.
struct EngineParts {
  EngineOptions options;
  std::vector<std::unique_ptr<Device>> devices;  // By rank.
  std::unique_ptr<Model> model;
  std::unique_ptr<KvArena> arena;
  std::unique_ptr<BlockPool> pool;
  std::unique_ptr<Executor> executor;

  // Errors say what to change: a file, a flag, a tensor. `progress` is called while weights are
  // loaded, with the bytes read so far of all.
  using Progress = std::function<void(uint64_t done, uint64_t total)>;
  static absl::StatusOr<EngineParts> Create(const EngineOptions& options,
                                            const Progress& progress = nullptr);

  // As workers introduce themselves to routers.
  v1::ModelInfo ModelInfo() const;
};

}  // namespace baton

#endif  // BATON_COMMON_WORKER_ENGINE_PARTS_H_
