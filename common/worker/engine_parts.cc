#include "common/worker/engine_parts.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "common/base/command_line.h"
#include "common/base/status_macros.h"
#include "common/worker/thread_count.h"

ABSL_FLAG(std::string, model, "", "Folder of the model, as Hugging Face lays it out. Required.");
ABSL_FLAG(std::string, device, "cpu", "Where to compute: cpu, cuda or cuda:INDEX.");
ABSL_FLAG(uint32_t, tp, 1,
          "Tensor parallelism: how many devices compute the model together, e.g. 4 with --device "
          "cuda:0 for cuda:0 to cuda:3. Must divide the model's KV heads.");
ABSL_FLAG(std::string, weights, "",
          "Form of the weights in memory: f32, bf16, f16, int8, fp8 or int4; empty: as stored.");
ABSL_FLAG(
    std::string, kv_dtype, "",
    "Form of the KV cache: f32, bf16, f16, int8 or fp8; empty: as the weights are stored, and on "
    "a GPU as it computes.");
ABSL_FLAG(
    uint32_t, activation_bits, 0,
    "What activations are rounded to before they meet weights. With int8 and int4 weights: 8, "
    "which "
    "computes prompts up to twice as fast, or 16, nearly exact. With bf16 weights: 16, up to twice "
    "as fast on processors of AMD with AVX-512 BF16, or 32, as they are. 0: the most that the "
    "weights have.");
ABSL_FLAG(uint32_t, threads, 0,
          "Threads that compute; 0: one for each processor that the process may use (taskset, "
          "cpuset), and no more than its share of their time (cgroups).");
ABSL_FLAG(bool, pin_threads, false,
          "Bind each of these threads to one processor: whole cores first, NUMA node by node. "
          "Workers that share a machine need a set of processors each (taskset, numactl, cpuset).");
ABSL_FLAG(bool, huge_pages, true, "Ask the system for huge pages for weights and the KV cache.");
ABSL_FLAG(baton::ByteSize, kv_memory, baton::ByteSize{uint64_t{512} << 20},
          "Memory for the KV cache, of all devices together, e.g. 512MiB or 8GiB.");
ABSL_FLAG(uint32_t, block_tokens, 16,
          "Tokens of one KV block. The same on all workers of a cluster.");
ABSL_FLAG(uint32_t, chunk_tokens, 512, "Most prompt tokens that are computed in one step.");
ABSL_FLAG(uint32_t, sequences_max, 256,
          "Most sequences at once, of a prefill worker: prompts; more wait in the router.");

namespace baton {
namespace {

constexpr uint32_t kBlockTokensMax = 1024;
constexpr uint32_t kChunkTokensMax = 1u << 16;
constexpr uint32_t kSequencesMaxMax = (1u << 16) - 1;
constexpr uint32_t kThreadsMax = 1024;
constexpr uint32_t kTensorParallelismMax = 64;

absl::Status CheckRange(const char* flag, uint64_t value, uint64_t least, uint64_t most) {
  if (value >= least && value <= most) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--", flag, "=", value, " is not between ", least, " and ", most));
}

absl::StatusOr<uint32_t> BlockCount(const EngineOptions& options, const KvLayout& layout,
                                    const ModelConfig& config) {
  const uint64_t count = options.kv_memory_bytes / layout.block_bytes();
  const uint32_t context_blocks = layout.BlocksFor(config.context_tokens);
  if (count < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--kv_memory of ", options.kv_memory_bytes, " bytes is less than one block of ",
        layout.block_bytes(), " bytes; the model's context of ", config.context_tokens,
        " tokens takes ", context_blocks * layout.block_bytes()));
  }
  return static_cast<uint32_t>(std::min<uint64_t>(count, BlockPool::kBlockCountMax));
}

}  // namespace

absl::StatusOr<EngineOptions> EngineOptionsFromFlags() {
  EngineOptions options;
  options.model = absl::GetFlag(FLAGS_model);
  if (options.model.empty()) {
    return absl::InvalidArgumentError(
        "--model is required: a folder with config.json, tokenizer.json and model.safetensors");
  }
  options.device = absl::GetFlag(FLAGS_device);
  options.weights = absl::GetFlag(FLAGS_weights);
  if (const std::string dtype = absl::GetFlag(FLAGS_kv_dtype); !dtype.empty()) {
    const absl::StatusOr<DType> parsed = ParseDType(dtype);
    if (!parsed.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("--kv_dtype: ", parsed.status().message()));
    }
    options.kv_dtype = *parsed;
  }
  options.activation_bits = absl::GetFlag(FLAGS_activation_bits);
  if (options.activation_bits != 0 && options.activation_bits != 8 &&
      options.activation_bits != 16 && options.activation_bits != 32) {
    return absl::InvalidArgumentError(
        absl::StrCat("--activation_bits=", options.activation_bits, " is none of 0, 8, 16 and 32"));
  }
  options.pin_threads = absl::GetFlag(FLAGS_pin_threads);
  options.huge_pages = absl::GetFlag(FLAGS_huge_pages);
  options.threads = absl::GetFlag(FLAGS_threads);
  if (options.threads == 0) options.threads = UsableThreads();
  options.kv_memory_bytes = absl::GetFlag(FLAGS_kv_memory).bytes;
  options.block_tokens = absl::GetFlag(FLAGS_block_tokens);
  options.chunk_tokens = absl::GetFlag(FLAGS_chunk_tokens);
  options.sequences_max = absl::GetFlag(FLAGS_sequences_max);
  options.tensor_parallelism = absl::GetFlag(FLAGS_tp);
  BATON_RETURN_IF_ERROR(CheckRange("tp", options.tensor_parallelism, 1, kTensorParallelismMax));
  BATON_RETURN_IF_ERROR(CheckRange("threads", options.threads, 1, kThreadsMax));
  BATON_RETURN_IF_ERROR(CheckRange("block_tokens", options.block_tokens, 1, kBlockTokensMax));
  BATON_RETURN_IF_ERROR(CheckRange("chunk_tokens", options.chunk_tokens, 1, kChunkTokensMax));
  BATON_RETURN_IF_ERROR(CheckRange("sequences_max", options.sequences_max, 1, kSequencesMaxMax));
  return options;
}

DType DefaultKvDType(DeviceKind device, DType stored, DType activations) {
  return device == DeviceKind::kCpu ? stored : activations;
}

absl::StatusOr<EngineParts> EngineParts::Create(const EngineOptions& options,
                                                const Progress& progress) {
  EngineParts parts;
  parts.options = options;
  BATON_ASSIGN_OR_RETURN(parts.devices, OpenDevices(options.device, options.tensor_parallelism,
                                                    {.huge_pages = options.huge_pages}));
  std::vector<Device*> devices;
  for (const std::unique_ptr<Device>& device : parts.devices) devices.push_back(device.get());
  // One step holds a row for each sequence and a chunk.
  BATON_ASSIGN_OR_RETURN(
      parts.model,
      Model::Load(devices, {.directory = options.model,
                            .weights = options.weights,
                            .activation_bytes = options.activation_bits / 8,
                            .threads = std::max(1u, options.threads),
                            .pin_threads = options.pin_threads,
                            .batch_tokens_max = options.sequences_max + options.chunk_tokens,
                            .progress = progress}));
  const ModelConfig& config = parts.model->config();
  const KvLayout layout = {
      .layers = config.layers,
      .kv_heads = config.kv_heads,
      .head_dim = config.head_dim,
      .block_tokens = options.block_tokens,
      .dtype = options.kv_dtype.value_or(
          DefaultKvDType(devices[0]->kind(), config.stored_dtype, parts.model->activations()))};
  BATON_ASSIGN_OR_RETURN(const uint32_t block_count, BlockCount(options, layout, config));
  BATON_ASSIGN_OR_RETURN(
      parts.arena, ExplainMemory(KvArena::Create(devices, layout, block_count), "the KV cache",
                                 "a smaller --kv_memory needs less"));
  BATON_RETURN_IF_ERROR(
      ExplainMemory(parts.model->Reserve(*parts.arena, options.sequences_max), "what a step needs",
                    "a smaller --kv_memory leaves more; --sequences_max of fewer needs less"));
  parts.pool = std::make_unique<BlockPool>(block_count);
  parts.executor = std::make_unique<Executor>(parts.model.get(), parts.arena.get());
  return parts;
}

v1::ModelInfo EngineParts::ModelInfo() const {
  const ModelConfig& config = model->config();
  v1::ModelInfo info;
  const auto path = std::filesystem::path(options.model).lexically_normal();
  info.set_name(path.has_filename() ? path.filename().string()
                                    : path.parent_path().filename().string());
  info.set_architecture(config.architecture);
  info.set_model_fingerprint(model->fingerprint());
  info.set_layout_fingerprint(arena->layout().Fingerprint());
  info.set_numerics(absl::StrCat(model->numerics(), "/kv-", DTypeName(arena->layout().dtype)));
  info.set_vocab_size(config.vocab_size);
  info.set_context_tokens(config.context_tokens);
  for (TokenId eos : config.eos_token_ids) info.add_eos_token_ids(eos);
  info.set_parameters(model->parameter_count());
  info.set_block_tokens(arena->layout().block_tokens);
  return info;
}

}  // namespace baton
