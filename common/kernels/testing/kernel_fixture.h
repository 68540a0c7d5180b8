// What the kernels' tests share: contexts for each instruction set of this machine, random numbers,
// views of them, comparison of bits.
#ifndef BATON_COMMON_KERNELS_TESTING_KERNEL_FIXTURE_H_
#define BATON_COMMON_KERNELS_TESTING_KERNEL_FIXTURE_H_

#include <cstring>
#include <initializer_list>
#include <memory>
#include <random>
#include <vector>

#include "common/kernels/cpu/cpu_ops.h"
#include "common/kernels/kernels.h"
#include "common/tensor/number_formats.h"

namespace baton {

using Floats = std::vector<float>;

inline std::unique_ptr<KernelContext> MakeContext(uint32_t threads = 1, CpuIsa isa = BestCpuIsa()) {
  return KernelContext::Create({.threads = threads, .cpu_isa = isa}).value();
}

// Instruction sets of this machine.
inline std::vector<CpuIsa> Isas() {
  std::vector<CpuIsa> isas;
  for (CpuIsa isa : {CpuIsa::kBaseline, CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAvx512Bf16}) {
    if (FindCpuOps(isa) != nullptr) isas.push_back(isa);
  }
  return isas;
}

inline Floats Random(size_t count, uint32_t seed, float deviation = 1.0f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  Floats values(count);
  for (float& value : values) value = normal(random);
  return values;
}

inline TensorView View(Floats& values, std::initializer_list<size_t> shape) {
  return TensorView(reinterpret_cast<std::byte*>(values.data()), DType::kF32, DeviceKind::kCpu,
                    shape);
}

inline bool SameBits(const Floats& a, const Floats& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// A matrix in one of the weight types, with the values that it really holds.
struct Matrix {
  Matrix(const Floats& wanted, DType type, size_t rows, size_t columns) : values(wanted) {
    bytes.resize(wanted.size() * DTypeBytes(type));
    for (size_t i = 0; i < wanted.size(); ++i) {
      if (type == DType::kF32) {
        std::memcpy(bytes.data() + i * sizeof(float), &wanted[i], sizeof(float));
        continue;
      }
      const uint16_t bits = type == DType::kBF16 ? F32ToBf16(wanted[i]) : F32ToF16(wanted[i]);
      std::memcpy(bytes.data() + i * sizeof(bits), &bits, sizeof(bits));
      values[i] = type == DType::kBF16 ? Bf16ToF32(bits) : F16ToF32(bits);
    }
    view = ConstTensorView(bytes.data(), type, DeviceKind::kCpu, {rows, columns});
  }

  std::vector<std::byte> bytes;
  Floats values;
  ConstTensorView view;
};

}  // namespace baton

#endif  // BATON_COMMON_KERNELS_TESTING_KERNEL_FIXTURE_H_
