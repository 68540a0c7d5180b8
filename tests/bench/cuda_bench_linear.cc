// Matrix products: of few rows, which cost what reading the weights costs, and cuBLASLt's.
#include <cublasLt.h>

#include <algorithm>
#include <string>
#include <vector>

#include "tests/bench/cuda_bench_cases.h"
#include "tests/bench/cuda_bench_device.h"

namespace baton::cuda {
namespace {

constexpr size_t kWorkspaceBytes = 64u << 20;
constexpr int kWaysMax = 6;

void MustBlas(cublasStatus_t status, const char* what) {
  Must(status == CUBLAS_STATUS_SUCCESS ? cudaSuccess : cudaErrorUnknown, what);
}

// One shape of product as cuBLASLt sees it: its matrices lie column by column, so that a weight of
// [outputs, inputs] is one of [inputs, outputs], transposed.
class Product {
 public:
  Product(uint32_t rows, uint32_t inputs, uint32_t outputs, DType out_type)
      : workspace_(kWorkspaceBytes) {
    const cudaDataType_t type = out_type == DType::kF32 ? CUDA_R_32F : CUDA_R_16BF;
    MustBlas(cublasLtCreate(&blas_), "starting cuBLASLt");
    MustBlas(cublasLtMatmulDescCreate(&product_, CUBLAS_COMPUTE_32F, CUDA_R_32F), "a product");
    const cublasOperation_t transposed = CUBLAS_OP_T;
    MustBlas(cublasLtMatmulDescSetAttribute(product_, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                            sizeof(transposed)),
             "a product of a transposed matrix");
    MustBlas(cublasLtMatrixLayoutCreate(&weight_, CUDA_R_16BF, inputs, outputs, inputs), "weight");
    MustBlas(cublasLtMatrixLayoutCreate(&x_, CUDA_R_16BF, inputs, rows, inputs), "x");
    MustBlas(cublasLtMatrixLayoutCreate(&out_, type, outputs, rows, outputs), "out");
    FindWays();
  }
  ~Product() {
    cublasLtMatrixLayoutDestroy(out_);
    cublasLtMatrixLayoutDestroy(x_);
    cublasLtMatrixLayoutDestroy(weight_);
    cublasLtMatmulDescDestroy(product_);
    cublasLtDestroy(blas_);
  }
  Product(const Product&) = delete;
  Product& operator=(const Product&) = delete;

  size_t ways() const { return ways_.size(); }
  cudaError_t Run(size_t way, const void* weight, const void* x, void* out,
                  cudaStream_t stream) const {
    const float one = 1.0f;
    const float zero = 0.0f;
    const cublasStatus_t status =
        cublasLtMatmul(blas_, product_, &one, weight, weight_, x, x_, &zero, out, out_, out, out_,
                       &ways_[way].algo, workspace_.at(), kWorkspaceBytes, stream);
    return status == CUBLAS_STATUS_SUCCESS ? cudaSuccess : cudaErrorNotSupported;
  }

 private:
  void FindWays() {
    cublasLtMatmulPreference_t preference = nullptr;
    MustBlas(cublasLtMatmulPreferenceCreate(&preference), "a preference");
    MustBlas(
        cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                             &kWorkspaceBytes, sizeof(kWorkspaceBytes)),
        "a preference");
    ways_.resize(kWaysMax);
    int found = 0;
    if (cublasLtMatmulAlgoGetHeuristic(blas_, product_, weight_, x_, out_, out_, preference,
                                       kWaysMax, ways_.data(), &found) != CUBLAS_STATUS_SUCCESS) {
      found = 0;
    }
    ways_.resize(static_cast<size_t>(found));
    cublasLtMatmulPreferenceDestroy(preference);
  }

  const DeviceMemory workspace_;
  cublasLtHandle_t blas_ = nullptr;
  cublasLtMatmulDesc_t product_ = nullptr;
  cublasLtMatrixLayout_t weight_ = nullptr;
  cublasLtMatrixLayout_t x_ = nullptr;
  cublasLtMatrixLayout_t out_ = nullptr;
  std::vector<cublasLtMatmulHeuristicResult_t> ways_;
};

// Products of one x.
struct LinearShape {
  const char* name = nullptr;
  uint32_t inputs = 0;
  std::vector<uint32_t> outputs;
  DType out_type = DType::kBF16;

  uint32_t all_outputs() const {
    uint32_t sum = 0;
    for (const uint32_t count : outputs) sum += count;
    return sum;
  }
  // Every number that has to be read or written once.
  double Bytes(DType weight_type, uint32_t rows) const {
    const double all = all_outputs();
    const double scales = HasScales(weight_type) ? all * sizeof(float) : 0;
    return all * inputs * static_cast<double>(DTypeBytes(weight_type)) + scales +
           rows * (inputs * 2.0 + all * static_cast<double>(DTypeBytes(out_type)));
  }
};

const std::vector<LinearShape>& LinearShapes() {
  static const std::vector<LinearShape>* const shapes = new std::vector<LinearShape>{
      {"qkv", kHidden, {kHeads * kHeadDim, kKvHeads * kHeadDim, kKvHeads * kHeadDim}},
      {"o", kHeads * kHeadDim, {kHidden}},
      {"gate_up", kHidden, {kIntermediate, kIntermediate}},
      {"down", kIntermediate, {kHidden}},
      {"head", kHidden, {kVocab}, DType::kF32}};
  return *shapes;
}

// `weights` holds numbers of `weight_type`.
void BenchSkinny(const Runner& runner, const RandomMemory& memory, const Limits& limits,
                 const DeviceMemory& weights, DType weight_type, const LinearShape& shape,
                 uint32_t rows) {
  const std::string name = std::string("skinny/") + shape.name + "/" + DTypeName(weight_type) +
                           "/" + std::to_string(rows);
  if (!runner.Wanted(name)) return;
  if (!SkinnyLinearFits(DType::kBF16, weight_type, rows, shape.inputs)) {
    return runner.LeftOut(name, "does not fit");
  }
  const size_t set_bytes = size_t{shape.all_outputs()} * shape.inputs * DTypeBytes(weight_type);
  const size_t sets = Runner::SetsFor(set_bytes, weights.bytes());
  const auto call = [&](size_t i) {
    std::vector<SkinnyOutput> outputs;
    size_t weight_at = (i % sets) * set_bytes;
    size_t out_at = 0;
    for (const uint32_t count : shape.outputs) {
      outputs.push_back({.weight = weights.at(weight_at),
                         .scales = HasScales(weight_type) ? memory.floats.at<float>() : nullptr,
                         .out = memory.out.at(out_at),
                         .outputs = count});
      weight_at += size_t{count} * shape.inputs * DTypeBytes(weight_type);
      out_at += size_t{count} * rows * DTypeBytes(shape.out_type);
    }
    return SkinnyLinear(runner.launch(), memory.activations.at(), DType::kBF16, rows, shape.inputs,
                        weight_type, outputs.data(), static_cast<uint32_t>(outputs.size()),
                        shape.out_type);
  };
  runner.Report(name, sets, {shape.Bytes(weight_type, rows), Unit::kBytes, limits.read_bytes},
                call);
}

void BenchBlas(const Runner& runner, const RandomMemory& memory, const Limits& limits,
               const LinearShape& shape, uint32_t rows) {
  const std::string name = std::string("cublas/") + shape.name + "/bf16/" + std::to_string(rows);
  if (!runner.Wanted(name)) return;
  const double seconds =
      ProductSeconds(runner, memory, rows, shape.inputs, shape.all_outputs(), shape.out_type);
  if (seconds == 0) return runner.LeftOut(name, "no way is proposed");
  runner.Print(name, seconds, {shape.Bytes(DType::kBF16, rows), Unit::kBytes, limits.read_bytes});
}

void BenchDequantize(const Runner& runner, const RandomMemory& memory, const Limits& limits,
                     const DeviceMemory& weights) {
  const std::string name = "dequantize/14336x4096";
  const size_t count = size_t{kIntermediate} * kHidden;
  const size_t sets = Runner::SetsFor(count, weights.bytes());
  runner.Report(name, sets, {count * 3.0, Unit::kBytes, limits.copy_bytes}, [&](size_t i) {
    return Dequantize(runner.launch(), weights.at((i % sets) * count), DType::kI8,
                      memory.floats.at<float>(), kIntermediate, kHidden,
                      memory.out.at((i % 4) * count * 2), DType::kBF16);
  });
}

}  // namespace

double ProductSeconds(const Runner& runner, const RandomMemory& memory, uint32_t rows,
                      uint32_t inputs, uint32_t outputs, DType out_type) {
  const Product product(rows, inputs, outputs, out_type);
  const size_t set_bytes = size_t{outputs} * inputs * 2;
  const size_t sets = Runner::SetsFor(set_bytes, memory.weights.bytes());
  double best = 0;
  for (size_t way = 0; way < product.ways(); ++way) {
    const std::optional<double> seconds = runner.Measure("cublas", sets, [&](size_t i) {
      return product.Run(way, memory.weights.at((i % sets) * set_bytes), memory.activations.at(),
                         memory.out.at(), runner.launch().stream);
    });
    if (seconds.has_value() && (best == 0 || *seconds < best)) best = *seconds;
  }
  return best;
}

void BenchLinear(const Runner& runner, const RandomMemory& memory, const Limits& limits) {
  const std::vector<uint32_t> row_counts = {1, 4, 16, 64};
  for (const LinearShape& shape : LinearShapes()) {
    for (const uint32_t rows : row_counts) {
      BenchSkinny(runner, memory, limits, memory.weights, DType::kBF16, shape, rows);
      BenchBlas(runner, memory, limits, shape, rows);
    }
  }
  const DeviceMemory bytes(2ull << 30);
  Must(FillBytes(runner.launch(), bytes.bytes(), /*seed=*/5, bytes.at()), "filling memory");
  for (const LinearShape& shape : LinearShapes()) {
    for (const uint32_t rows : row_counts) {
      BenchSkinny(runner, memory, limits, bytes, DType::kI8, shape, rows);
      BenchSkinny(runner, memory, limits, bytes, DType::kFp8, shape, rows);
    }
  }
  BenchDequantize(runner, memory, limits, bytes);
}

}  // namespace baton::cuda
