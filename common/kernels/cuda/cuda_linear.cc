#include "common/kernels/cuda/cuda_linear.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/kernels/cuda/cuda_packing.h"
#include "common/kernels/cuda/cuda_state.h"

namespace baton::cuda {
namespace {

// Rows of weights of 8 bits are widened in pieces of so many bytes at most.
constexpr size_t kWidenedBytesMax = size_t{128} << 20;
constexpr size_t kPieceRows = 128;  // Of a piece, a multiple: so results stay aligned.
// Up to so many rows our own kernel reads weights of the type of activations as fast as cuBLASLt or
// faster, and overlaps with its neighbours (cuda_bench on an H100: 64 rows take it 1.4 times as
// long). For weights of 8 bits there is no other.
constexpr uint32_t kSkinnyRowsMax = 16;
// Of products of up to so many rows, if it is a number that decode steps are filled up to, the
// fastest way is measured, of so many, in so many runs each.
constexpr uint32_t kTimedRowsMax = 256;
constexpr int kProposalsMax = 8;
constexpr int kTimedRuns = 5;
// A bias of less is added by a kernel. What cuBLASLt wants was not found out; 16 bytes are the
// longest that a thread loads at once.
constexpr uintptr_t kBiasAlignment = 16;
// Different products that cuBLASLt's choice is kept for.
constexpr size_t kAlgorithmsMax = 4096;

cudaDataType_t CudaType(DType type) {
  switch (type) {
    case DType::kF32:
      return CUDA_R_32F;
    case DType::kF16:
      return CUDA_R_16F;
    case DType::kBF16:
      return CUDA_R_16BF;
    case DType::kI8:
    case DType::kFp8:
      break;
  }
  BATON_CHECK_MSG(false, "no product of this type");
  return CUDA_R_8I;
}

struct Product {
  const void* x = nullptr;            // [rows, inputs] of `type`
  const std::byte* weight = nullptr;  // [outputs, inputs] of `type`
  std::byte* out = nullptr;           // [rows, stride], the first `outputs` of each row
  const std::byte* bias = nullptr;    // [outputs] of `out_type`, or null
  uint32_t rows = 0;
  uint32_t outputs = 0;
  uint32_t inputs = 0;
  uint32_t stride = 0;
  DType type = DType::kF32;
  DType out_type = DType::kF32;
};

// What the addresses of a product are multiples of, up to what cuBLASLt asks for at most.
uint32_t AlignmentOf(const Product& product) {
  constexpr uintptr_t kMost = 256;
  const uintptr_t bits =
      reinterpret_cast<uintptr_t>(product.x) | reinterpret_cast<uintptr_t>(product.weight) |
      reinterpret_cast<uintptr_t>(product.out) | reinterpret_cast<uintptr_t>(product.bias) | kMost;
  return static_cast<uint32_t>(bits & -bits);
}

// cuBLASLt's descriptions of a product. It thinks in columns: out^T = weight x^T, where weight^T is
// what lies in memory.
class ProductDescription {
 public:
  explicit ProductDescription(const Product& product) {
    const cudaDataType_t type = CudaType(product.type);
    Keep(cublasLtMatmulDescCreate(&operation_, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    Set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
    if (product.bias != nullptr) {
      Set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
      Set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, product.bias);
      Set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, CudaType(product.out_type));
    }
    Keep(cublasLtMatrixLayoutCreate(&weight_, type, product.inputs, product.outputs,
                                    product.inputs));
    Keep(cublasLtMatrixLayoutCreate(&x_, type, product.inputs, product.rows, product.inputs));
    Keep(cublasLtMatrixLayoutCreate(&out_, CudaType(product.out_type), product.outputs,
                                    product.rows, product.stride));
  }
  ~ProductDescription() {
    if (out_ != nullptr) cublasLtMatrixLayoutDestroy(out_);
    if (x_ != nullptr) cublasLtMatrixLayoutDestroy(x_);
    if (weight_ != nullptr) cublasLtMatrixLayoutDestroy(weight_);
    if (operation_ != nullptr) cublasLtMatmulDescDestroy(operation_);
  }
  ProductDescription(const ProductDescription&) = delete;
  ProductDescription& operator=(const ProductDescription&) = delete;

  // The first that failed.
  cublasStatus_t status() const { return status_; }

  // Up to kProposalsMax ways to compute it, the one that it thinks best first.
  cublasStatus_t Propose(CudaState& state, uint32_t alignment,
                         std::vector<cublasLtMatmulAlgo_t>* algorithms) const {
    cublasLtMatmulPreference_t preference = nullptr;
    cublasStatus_t status = cublasLtMatmulPreferenceCreate(&preference);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    const size_t workspace = state.lane(0).workspace_bytes;
    status = cublasLtMatmulPreferenceSetAttribute(
        preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof(workspace));
    for (const cublasLtMatmulPreferenceAttributes_t operand :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
      if (status != CUBLAS_STATUS_SUCCESS) break;
      status =
          cublasLtMatmulPreferenceSetAttribute(preference, operand, &alignment, sizeof(alignment));
    }
    cublasLtMatmulHeuristicResult_t results[kProposalsMax] = {};
    int found = 0;
    if (status == CUBLAS_STATUS_SUCCESS) {
      status = cublasLtMatmulAlgoGetHeuristic(state.cublas(), operation_, weight_, x_, out_, out_,
                                              preference, kProposalsMax, results, &found);
    }
    cublasLtMatmulPreferenceDestroy(preference);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    for (int i = 0; i < found; ++i) {
      if (results[i].state == CUBLAS_STATUS_SUCCESS) algorithms->push_back(results[i].algo);
    }
    return algorithms->empty() ? CUBLAS_STATUS_NOT_SUPPORTED : CUBLAS_STATUS_SUCCESS;
  }

  cublasStatus_t Run(CudaState& state, const Product& product,
                     const cublasLtMatmulAlgo_t& algorithm, const Lane& lane) const {
    const float one = 1.0f;
    const float zero = 0.0f;
    return cublasLtMatmul(state.cublas(), operation_, &one, product.weight, weight_, product.x, x_,
                          &zero, product.out, out_, product.out, out_, &algorithm, lane.workspace,
                          lane.workspace_bytes, lane.stream);
  }

 private:
  template <typename T>
  void Set(cublasLtMatmulDescAttributes_t attribute, const T& value) {
    Keep(cublasLtMatmulDescSetAttribute(operation_, attribute, &value, sizeof(value)));
  }
  void Keep(cublasStatus_t status) {
    if (status_ == CUBLAS_STATUS_SUCCESS) status_ = status;
  }

  cublasStatus_t status_ = CUBLAS_STATUS_SUCCESS;
  cublasLtMatmulDesc_t operation_ = nullptr;
  cublasLtMatrixLayout_t weight_ = nullptr;
  cublasLtMatrixLayout_t x_ = nullptr;
  cublasLtMatrixLayout_t out_ = nullptr;
};

// Milliseconds of a few runs one after the other; infinite if the way does not work.
float TimeOf(CudaState& state, const Product& product, const ProductDescription& description,
             const cublasLtMatmulAlgo_t& algorithm) {
  const cudaStream_t stream = state.launch().stream;
  cudaEvent_t begin = nullptr;
  cudaEvent_t end = nullptr;
  state.Check(cudaEventCreate(&begin), "creating an event");
  state.Check(cudaEventCreate(&end), "creating an event");
  bool works = true;
  for (int run = 0; run <= kTimedRuns && works; ++run) {
    // The first does not count.
    if (run == 1) state.Check(cudaEventRecord(begin, stream), "timing a product");
    works = description.Run(state, product, algorithm, state.lane(0)) == CUBLAS_STATUS_SUCCESS;
  }
  state.Check(cudaEventRecord(end, stream), "timing a product");
  state.Check(cudaEventSynchronize(end), "timing a product");
  float milliseconds = 0.0f;
  if (works) state.Check(cudaEventElapsedTime(&milliseconds, begin, end), "timing a product");
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return works ? milliseconds : INFINITY;
}

// For products of decode steps, of which there are few and which take long to read their weights,
// what is fastest is measured: what cuBLASLt proposes first need not be.
cublasStatus_t Choose(CudaState& state, const Product& product,
                      const ProductDescription& description, cublasLtMatmulAlgo_t* algorithm) {
  std::vector<cublasLtMatmulAlgo_t> proposals;
  const cublasStatus_t status = description.Propose(state, AlignmentOf(product), &proposals);
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  *algorithm = proposals[0];
  const bool of_decode_step = state.PaddedRows(product.rows) == product.rows;
  if (product.rows > kTimedRowsMax || !of_decode_step || state.recording()) return status;
  float best = INFINITY;
  for (const cublasLtMatmulAlgo_t& proposal : proposals) {
    const float time = TimeOf(state, product, description, proposal);
    if (time >= best) continue;
    best = time;
    *algorithm = proposal;
  }
  return best < INFINITY ? status : CUBLAS_STATUS_NOT_SUPPORTED;
}

// As it was chosen the first time.
cublasStatus_t Find(CudaState& state, const Product& product, const ProductDescription& description,
                    cublasLtMatmulAlgo_t* algorithm) {
  if (description.status() != CUBLAS_STATUS_SUCCESS) return description.status();
  const CudaState::ProductKey key(product.outputs, product.rows, product.inputs, product.stride,
                                  AlignmentOf(product), product.type, product.out_type,
                                  product.bias != nullptr);
  auto found = state.algorithms().find(key);
  if (found == state.algorithms().end()) {
    cublasLtMatmulAlgo_t chosen{};
    const cublasStatus_t status = Choose(state, product, description, &chosen);
    const bool none = status == CUBLAS_STATUS_NOT_SUPPORTED;
    if (status != CUBLAS_STATUS_SUCCESS && !none) return status;
    if (state.algorithms().size() >= kAlgorithmsMax) state.algorithms().clear();
    found = state.algorithms().emplace(key, none ? std::nullopt : std::optional(chosen)).first;
  }
  if (!found->second.has_value()) return CUBLAS_STATUS_NOT_SUPPORTED;
  *algorithm = *found->second;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t Multiply(CudaState& state, const Product& product, const Lane& lane) {
  const ProductDescription description(product);
  cublasLtMatmulAlgo_t algorithm{};
  const cublasStatus_t status = Find(state, product, description, &algorithm);
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  return description.Run(state, product, algorithm, lane);
}

// cuBLASLt adds the bias, if it can.
void RunProduct(CudaState& state, Product product, const Lane& lane) {
  const std::byte* const bias = product.bias;
  if (reinterpret_cast<uintptr_t>(bias) % kBiasAlignment != 0) product.bias = nullptr;
  cublasStatus_t status = Multiply(state, product, lane);
  if (status == CUBLAS_STATUS_NOT_SUPPORTED && product.bias != nullptr) {
    product.bias = nullptr;
    status = Multiply(state, product, lane);
  }
  if (status != CUBLAS_STATUS_SUCCESS) {
    state.Check(absl::UnavailableError(absl::StrCat(
        state.device().name(), ": cuBLASLt on [", product.rows, ", ", product.inputs, "] x [",
        product.outputs, ", ", product.inputs, "]: ", cublasLtGetStatusString(status))));
  } else if (product.bias != bias) {
    Launch launch = state.launch();
    launch.stream = lane.stream;
    state.Check(AddBias(launch, bias, product.rows, product.outputs, product.stride, product.out,
                        product.out_type),
                "adding a bias");
  }
}

// Rows of a weight that are widened at a time.
uint32_t PieceRows(size_t outputs, size_t row_bytes) {
  const size_t rows = std::max(kWidenedBytesMax / row_bytes / kPieceRows, size_t{1}) * kPieceRows;
  return static_cast<uint32_t>(std::min(rows, outputs));
}

// Numbers of 8 bits become those of activations, piece by piece.
void RunWidened(CudaState& state, const LinearOutput& output, Product product) {
  const PackedWeight& weight = *output.weight;
  const uint32_t piece = PieceRows(weight.outputs(), weight.inputs() * DTypeBytes(product.type));
  auto* const widened = static_cast<std::byte*>(
      state.Scratch(WidenedWeightBytes(weight.outputs(), weight.inputs(), product.type)));
  if (widened == nullptr) return;
  const DType weight_type = StoredAs(weight.format().form, product.type);
  const std::byte* const bias = product.bias;
  const auto* scales = reinterpret_cast<const float*>(
      weight.data() + ScalesOffset(weight.outputs(), weight.inputs()));
  for (uint32_t begin = 0; begin < weight.outputs(); begin += piece) {
    product.outputs = std::min(piece, static_cast<uint32_t>(weight.outputs()) - begin);
    product.weight = widened;
    product.out = output.out.data() + begin * DTypeBytes(product.out_type);
    if (bias != nullptr) product.bias = bias + begin * DTypeBytes(product.out_type);
    state.Check(Dequantize(state.launch(), weight.data() + begin * weight.inputs(), weight_type,
                           scales + begin, product.outputs, product.inputs, widened, product.type),
                "widening weights");
    RunProduct(state, product, state.lane(0));
  }
}

Product ProductOf(const ConstTensorView& x, const LinearOutput& output) {
  const PackedWeight& weight = *output.weight;
  return {.x = x.data(),
          .weight = weight.data(),
          .out = output.out.data(),
          .bias = output.bias.empty() ? nullptr : output.bias.data(),
          .rows = static_cast<uint32_t>(x.dim(0)),
          .outputs = static_cast<uint32_t>(weight.outputs()),
          .inputs = static_cast<uint32_t>(weight.inputs()),
          .stride = static_cast<uint32_t>(weight.outputs()),
          .type = x.dtype(),
          .out_type = output.out.dtype()};
}

// Products of the same x do not wait for each other.
void RunLarge(CudaState& state, const ConstTensorView& x, std::span<const LinearOutput> outputs) {
  const auto has_scales = [&x](const LinearOutput& output) {
    return HasScales(StoredAs(output.weight->format().form, x.dtype()));
  };
  const auto lanes = static_cast<uint32_t>(std::min<size_t>(outputs.size(), CudaState::kLanes));
  const bool apart = lanes > 1 && std::none_of(outputs.begin(), outputs.end(), has_scales);
  if (apart) state.Fork(lanes);
  uint32_t next = 0;
  for (const LinearOutput& output : outputs) {
    const Product product = ProductOf(x, output);
    if (has_scales(output)) {
      RunWidened(state, output, product);
    } else {
      RunProduct(state, product, state.lane(apart ? next++ % lanes : 0));
    }
  }
  if (apart) state.Join(lanes);
}

SkinnyOutput SkinnyOf(const LinearOutput& output, DType activations) {
  const PackedWeight& weight = *output.weight;
  const std::byte* const scales = weight.data() + ScalesOffset(weight.outputs(), weight.inputs());
  return {.weight = weight.data(),
          .scales = HasScales(StoredAs(weight.format().form, activations))
                        ? reinterpret_cast<const float*>(scales)
                        : nullptr,
          .bias = output.bias.empty() ? nullptr : output.bias.data(),
          .out = output.out.data(),
          .outputs = static_cast<uint32_t>(weight.outputs())};
}

// Runs as many of the outputs at once as are alike.
void RunGroup(CudaState& state, const ConstTensorView& x, std::span<const LinearOutput> outputs) {
  const auto rows = static_cast<uint32_t>(x.dim(0));
  const auto inputs = static_cast<uint32_t>(x.dim(1));
  const auto fits = [&](const LinearOutput& output) {
    const DType weight_type = StoredAs(output.weight->format().form, x.dtype());
    return (rows <= kSkinnyRowsMax || HasScales(weight_type)) &&
           SkinnyLinearFits(x.dtype(), weight_type, rows, inputs);
  };
  if (!std::all_of(outputs.begin(), outputs.end(), fits)) {
    RunLarge(state, x, outputs);
    return;
  }
  while (!outputs.empty()) {
    const DType weight_type = StoredAs(outputs[0].weight->format().form, x.dtype());
    const DType out_type = outputs[0].out.dtype();
    SkinnyOutput alike[kSkinnyOutputsMax];
    uint32_t count = 0;
    while (count < std::min<size_t>(outputs.size(), kSkinnyOutputsMax) &&
           StoredAs(outputs[count].weight->format().form, x.dtype()) == weight_type &&
           outputs[count].out.dtype() == out_type) {
      alike[count] = SkinnyOf(outputs[count], x.dtype());
      ++count;
    }
    state.Check(SkinnyLinear(state.launch(), x.data(), x.dtype(), rows, inputs, weight_type, alike,
                             count, out_type),
                "a product of few rows");
    outputs = outputs.subspan(count);
  }
}

}  // namespace

size_t WidenedWeightBytes(size_t outputs, size_t inputs, DType activations) {
  const size_t row_bytes = inputs * DTypeBytes(activations);
  return PieceRows(outputs, row_bytes) * row_bytes;
}

void GroupedLinearCuda(KernelContext& context, const ConstTensorView& x,
                       std::span<const LinearGroup> groups) {
  auto& state = static_cast<CudaState&>(*context.state());
  for (const LinearGroup& group : groups) {
    if (group.rows == 0) continue;
    RunGroup(state, x.Rows(group.row, group.rows), group.outputs);
  }
}

}  // namespace baton::cuda
