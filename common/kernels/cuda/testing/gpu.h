// What the tests of CUDA kernels share: the GPU, or a reason to skip; arrays in its memory.
#ifndef BATON_COMMON_KERNELS_CUDA_TESTING_GPU_H_
#define BATON_COMMON_KERNELS_CUDA_TESTING_GPU_H_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>

#include "common/base/check.h"
#include "common/device/testing/required_gpus.h"
#include "common/kernels/cuda/launch.h"
#include "common/tensor/dtype.h"
#include "common/tensor/number_formats.h"

namespace baton::cuda {

#define ASSERT_CUDA(call) ASSERT_EQ((call), cudaSuccess) << cudaGetErrorString(cudaGetLastError())
// First line of every test.
#define SKIP_WITHOUT_GPU()                                     \
  SKIP_WITHOUT_GPUS(1, ::baton::cuda::Gpu() ? absl::OkStatus() \
                                            : absl::UnavailableError("no GPU can be used here"))

// The first GPU, on its default stream; nothing if there is none.
inline std::optional<Launch> Gpu() {
  static const std::optional<Launch> gpu = []() -> std::optional<Launch> {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) return std::nullopt;
    cudaDeviceProp properties{};
    if (cudaGetDeviceProperties(&properties, 0) != cudaSuccess) return std::nullopt;
    return Launch{.stream = nullptr,
                  .multiprocessors = properties.multiProcessorCount,
                  .compute_capability = properties.major * 10 + properties.minor};
  }();
  return gpu;
}

// An array in device memory.
template <typename T>
class DeviceArray {
 public:
  // Filled with bytes 0xff, which are NaN in every float type: what a kernel forgets to write
  // shows.
  explicit DeviceArray(size_t count) : count_(count) {
    BATON_CHECK(cudaMalloc(&data_, bytes() + 1) == cudaSuccess);
    BATON_CHECK(cudaMemset(data_, 0xff, bytes()) == cudaSuccess);
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
    BATON_CHECK(cudaMemcpy(data_, values.data(), bytes(), cudaMemcpyHostToDevice) == cudaSuccess);
  }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return static_cast<T*>(data_); }
  size_t bytes() const { return count_ * sizeof(T); }
  // Waits for what is under way; stops the process if a kernel failed.
  std::vector<T> Read() const {
    std::vector<T> values(count_);
    const cudaError_t error = cudaMemcpy(values.data(), data_, bytes(), cudaMemcpyDeviceToHost);
    BATON_CHECK_MSG(error == cudaSuccess, cudaGetErrorString(error));
    return values;
  }

 private:
  void* data_ = nullptr;
  size_t count_ = 0;
};

// Numbers as bytes of an activation type, and back.
inline std::vector<std::byte> Encode(const std::vector<float>& values, DType type) {
  std::vector<std::byte> bytes(values.size() * DTypeBytes(type));
  for (size_t i = 0; i < values.size(); ++i) {
    if (type == DType::kF32) {
      std::memcpy(&bytes[i * sizeof(float)], &values[i], sizeof(float));
    } else {
      const uint16_t half = type == DType::kBF16 ? F32ToBf16(values[i]) : F32ToF16(values[i]);
      std::memcpy(&bytes[i * sizeof(half)], &half, sizeof(half));
    }
  }
  return bytes;
}

inline std::vector<float> Decode(const std::vector<std::byte>& bytes, DType type) {
  std::vector<float> values(bytes.size() / DTypeBytes(type));
  for (size_t i = 0; i < values.size(); ++i) {
    if (type == DType::kF32) {
      std::memcpy(&values[i], &bytes[i * sizeof(float)], sizeof(float));
    } else {
      uint16_t half = 0;
      std::memcpy(&half, &bytes[i * sizeof(half)], sizeof(half));
      values[i] = type == DType::kBF16 ? Bf16ToF32(half) : F16ToF32(half);
    }
  }
  return values;
}

}  // namespace baton::cuda

#endif  // BATON_COMMON_KERNELS_CUDA_TESTING_GPU_H_
