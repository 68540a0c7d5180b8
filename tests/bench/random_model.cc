#include "tests/bench/random_model.h"

#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/model/testing/tiny_model.h"

namespace baton {
namespace {

absl::StatusOr<TinyModelOptions> ShapeOf(const RandomModel::Options& options) {
  TinyModelOptions shape{
      .context_tokens = 1 << 16, .deviation = options.deviation, .tokenizer = false};
  const auto set = [&shape](uint32_t layers, uint32_t hidden, uint32_t intermediate, uint32_t heads,
                            uint32_t kv_heads, uint32_t vocab) {
    shape.layers = layers;
    shape.hidden = hidden;
    shape.intermediate = intermediate;
    shape.heads = heads;
    shape.kv_heads = kv_heads;
    shape.vocab = vocab;
  };
  if (options.shape == "135m") {
    set(30, 576, 1536, 9, 3, 49152);
  } else if (options.shape == "0.5b") {
    set(24, 896, 4864, 14, 2, 32000);
  } else if (options.shape == "1b") {
    set(16, 2048, 8192, 32, 8, 128256);
  } else if (options.shape == "moe") {  // 0.6 billion weights, of which a token uses a sixth.
    set(8, 1024, 3072, 16, 4, 32000);
    shape.architecture = "Qwen3MoeForCausalLM";
    shape.experts = 64;
    shape.experts_per_token = 8;
    shape.expert_intermediate = 384;
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat("shape '", options.shape, "' is unknown; choose 135m, 0.5b, 1b or moe"));
  }
  shape.tied_embeddings = options.tied_embeddings;
  shape.dtype = options.form == WeightForm::kF32   ? DType::kF32
                : options.form == WeightForm::kF16 ? DType::kF16
                                                   : DType::kBF16;
  return shape;
}

}  // namespace

absl::StatusOr<std::unique_ptr<RandomModel>> RandomModel::Create(const Options& options) {
  BATON_ASSIGN_OR_RETURN(const TinyModelOptions shape, ShapeOf(options));
  std::string path = (std::filesystem::temp_directory_path() / "baton_bench_XXXXXX").string();
  if (mkdtemp(path.data()) == nullptr) {
    return absl::UnavailableError(absl::StrCat("no folder can be made at ", path));
  }
  std::unique_ptr<RandomModel> model(new RandomModel(std::move(path)));
  std::fprintf(stderr, "writing random weights of shape %s ...\n", options.shape.c_str());
  BATON_RETURN_IF_ERROR(WriteTinyModel(model->path(), shape));
  return model;
}

RandomModel::~RandomModel() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

}  // namespace baton
