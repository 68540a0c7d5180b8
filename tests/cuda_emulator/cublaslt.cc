// The functions of cuBLASLt that Baton calls: products of matrices, as sums in float32 one after
// the other.
#include <cublasLt.h>

#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>

#include "tests/cuda_emulator/numbers.h"
#include "tests/cuda_emulator/runtime.h"

namespace baton::emulation {
namespace {

constexpr uintptr_t kBiasAlignment = 16;
constexpr uint64_t kBiasMultiple = 8;  // Outputs of a product with a bias.
// Of a product with a bias whose outputs are no multiple of this, a way is proposed that does not
// work.
constexpr uint64_t kBiasWorkingMultiple = 16;
// Ways to compute a product.
enum class Way : uint64_t { kNone, kGood, kBroken };

struct Matrix {  // By columns.
  DType type;
  uint64_t rows;
  uint64_t columns;
  int64_t stride;
};

struct Product {
  cublasOperation_t a = CUBLAS_OP_N;
  cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  const void* bias = nullptr;
  cudaDataType_t bias_type = CUDA_R_32F;
};

std::vector<float> Columns(const void* data, const Matrix& matrix) {
  std::vector<float> numbers(matrix.rows * matrix.columns);
  for (size_t column = 0; column < matrix.columns; ++column) {
    for (size_t row = 0; row < matrix.rows; ++row) {
      numbers[column * matrix.rows + row] =
          NumberAt(data, matrix.type, column * static_cast<size_t>(matrix.stride) + row);
    }
  }
  return numbers;
}

// d = a^T b + bias, which is null or of the type of d.
void Multiply(const void* a, const Matrix& a_matrix, const void* b, const Matrix& b_matrix,
              const void* bias, void* d, const Matrix& d_matrix) {
  const std::vector<float> left = Columns(a, a_matrix);
  const std::vector<float> right = Columns(b, b_matrix);
  const size_t inner = a_matrix.rows;
  for (size_t column = 0; column < d_matrix.columns; ++column) {
    for (size_t row = 0; row < d_matrix.rows; ++row) {
      float sum = 0.0f;
      for (size_t i = 0; i < inner; ++i) sum += left[row * inner + i] * right[column * inner + i];
      if (bias != nullptr) sum += NumberAt(bias, d_matrix.type, row);
      StoreNumber(d, d_matrix.type, column * static_cast<size_t>(d_matrix.stride) + row, sum);
    }
  }
}

// Handles of cuBLASLt point to these.
Matrix& MatrixOf(cublasLtMatrixLayout_t matrix) { return *reinterpret_cast<Matrix*>(matrix); }
Product& ProductOf(cublasLtMatmulDesc_t product) { return *reinterpret_cast<Product*>(product); }

cublasLtMatmulAlgo_t AlgorithmOf(Way way) { return {.data = {static_cast<uint64_t>(way)}}; }
Way WayOf(const cublasLtMatmulAlgo_t& algorithm) { return Way{algorithm.data[0]}; }

std::optional<DType> TypeOf(cudaDataType_t type) {
  switch (type) {
    case CUDA_R_32F:
      return DType::kF32;
    case CUDA_R_16F:
      return DType::kF16;
    case CUDA_R_16BF:
      return DType::kBF16;
    default:
      return std::nullopt;
  }
}

}  // namespace

// What follows are the functions of the library.
extern "C" {

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  static int library = 0;
  *handle = reinterpret_cast<cublasLtHandle_t>(&library);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t /*handle*/) { return CUBLAS_STATUS_SUCCESS; }

const char* cublasLtGetStatusString(cublasStatus_t status) {
  if (status == CUBLAS_STATUS_EXECUTION_FAILED) return "CUBLAS_STATUS_EXECUTION_FAILED";
  return status == CUBLAS_STATUS_SUCCESS ? "success" : "not emulated";
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* product,
                                        cublasComputeType_t /*compute*/, cudaDataType_t /*scale*/) {
  *product = reinterpret_cast<cublasLtMatmulDesc_t>(new Product);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t product) {
  delete &ProductOf(product);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t product,
                                              cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, size_t bytes) {
  const auto take = [&](auto* to) {
    if (bytes != sizeof(*to)) return CUBLAS_STATUS_INVALID_VALUE;
    std::memcpy(to, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
  };
  Product& of = ProductOf(product);
  if (attribute == CUBLASLT_MATMUL_DESC_TRANSA) return take(&of.a);
  if (attribute == CUBLASLT_MATMUL_DESC_EPILOGUE) return take(&of.epilogue);
  if (attribute == CUBLASLT_MATMUL_DESC_BIAS_POINTER) return take(&of.bias);
  if (attribute == CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE) return take(&of.bias_type);
  return CUBLAS_STATUS_NOT_SUPPORTED;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* matrix, cudaDataType type,
                                          uint64_t rows, uint64_t columns, int64_t stride) {
  const std::optional<DType> number = TypeOf(type);
  if (!number.has_value()) return CUBLAS_STATUS_NOT_SUPPORTED;
  *matrix = reinterpret_cast<cublasLtMatrixLayout_t>(new Matrix{*number, rows, columns, stride});
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t matrix) {
  delete &MatrixOf(matrix);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  *preference = nullptr;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t /*preference*/) {
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(
    cublasLtMatmulPreference_t /*preference*/, cublasLtMatmulPreferenceAttributes_t /*attribute*/,
    const void* /*value*/, size_t /*bytes*/) {
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(
    cublasLtHandle_t /*handle*/, cublasLtMatmulDesc_t product, cublasLtMatrixLayout_t /*a*/,
    cublasLtMatrixLayout_t /*b*/, cublasLtMatrixLayout_t /*c*/, cublasLtMatrixLayout_t d,
    cublasLtMatmulPreference_t /*preference*/, int wanted, cublasLtMatmulHeuristicResult_t* results,
    int* found) {
  *found = 0;
  // So that callers have to do without.
  const bool biased = ProductOf(product).epilogue == CUBLASLT_EPILOGUE_BIAS;
  if (biased && MatrixOf(d).rows % kBiasMultiple != 0) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (wanted < 2) return CUBLAS_STATUS_INVALID_VALUE;
  const bool works = !biased || MatrixOf(d).rows % kBiasWorkingMultiple == 0;
  *found = 2;
  results[0] = results[1] = cublasLtMatmulHeuristicResult_t{};
  results[0].algo = AlgorithmOf(Way::kNone);
  results[0].state = CUBLAS_STATUS_NOT_SUPPORTED;  // By its own word.
  results[1].algo = AlgorithmOf(works ? Way::kGood : Way::kBroken);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t /*handle*/, cublasLtMatmulDesc_t product,
                              const void* alpha, const void* a, cublasLtMatrixLayout_t a_layout,
                              const void* b, cublasLtMatrixLayout_t b_layout, const void* beta,
                              const void* /*c*/, cublasLtMatrixLayout_t /*c_layout*/, void* d,
                              cublasLtMatrixLayout_t d_layout,
                              const cublasLtMatmulAlgo_t* algorithm, void* /*workspace*/,
                              size_t /*workspace_bytes*/, cudaStream_t stream) {
  if (WayOf(*algorithm) == Way::kNone) return CUBLAS_STATUS_INVALID_VALUE;
  if (WayOf(*algorithm) == Way::kBroken) return CUBLAS_STATUS_NOT_SUPPORTED;
  const Matrix left = MatrixOf(a_layout);
  const Matrix right = MatrixOf(b_layout);
  const Matrix out = MatrixOf(d_layout);
  const bool fits = left.rows == right.rows && left.columns == out.rows &&
                    right.columns == out.columns && out.stride >= static_cast<int64_t>(out.rows);
  if (!fits) return CUBLAS_STATUS_INVALID_VALUE;
  if (ProductOf(product).a != CUBLAS_OP_T || *static_cast<const float*>(alpha) != 1.0f ||
      *static_cast<const float*>(beta) != 0.0f) {
    return CUBLAS_STATUS_NOT_SUPPORTED;
  }
  const bool biased = ProductOf(product).epilogue == CUBLASLT_EPILOGUE_BIAS;
  const void* const bias = biased ? ProductOf(product).bias : nullptr;
  if (biased && (bias == nullptr || reinterpret_cast<uintptr_t>(bias) % kBiasAlignment != 0 ||
                 TypeOf(ProductOf(product).bias_type) != out.type)) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  const bool submitted = SubmitTo(stream, [=] { Multiply(a, left, b, right, bias, d, out); });
  return submitted ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}

}  // extern "C"

}  // namespace baton::emulation
