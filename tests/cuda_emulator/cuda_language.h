// Is <cuda_runtime.h> when kernels are compiled for the CPU: the toolkit's, and the words of CUDA
// C++ that a host compiler does not know. See CMakeLists.txt.
#ifndef BATON_TESTS_CUDA_EMULATOR_CUDA_LANGUAGE_H_
#define BATON_TESTS_CUDA_EMULATOR_CUDA_LANGUAGE_H_

#include_next <cuda_runtime.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "tests/cuda_emulator/runtime.h"
#include "tests/cuda_emulator/thread_blocks.h"

#undef __launch_bounds__
#define __launch_bounds__(...)
// One block of threads runs at a time.
#undef __shared__
#define __shared__ static

// ---- Launches ----------------------------------------------------------------------------------

namespace baton::emulation {

template <typename... Parameters>
cudaError_t LaunchKernel(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                         std::type_identity_t<Parameters>... arguments) {
  return LaunchThreads(*config, reinterpret_cast<const void*>(kernel),
                       [kernel, arguments...] { kernel(arguments...); });
}

}  // namespace baton::emulation

#define cudaLaunchKernelEx ::baton::emulation::LaunchKernel

template <typename Result, typename... Parameters>
cudaError_t cudaFuncSetAttribute(Result (*kernel)(Parameters...), cudaFuncAttribute attribute,
                                 int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}
template <typename Result, typename... Parameters>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Result (*kernel)(Parameters...)) {
  return cudaFuncGetAttributes(attributes, reinterpret_cast<const void*>(kernel));
}

// ---- Barriers and warps ------------------------------------------------------------------------

inline void __syncthreads() { ::baton::emulation::SyncBlock(); }

namespace baton::emulation {

inline void NeedWholeWarp(unsigned mask) {
  if (mask != 0xffffffffu) KernelFailure("only operations of whole warps are emulated");
}

template <typename T>
WarpView ExchangeValue(WarpOperation operation, unsigned mask, T value) {
  NeedWholeWarp(mask);
  return Exchange(operation, &value, sizeof(value));
}

template <typename T>
WarpView Shuffled(unsigned mask, T value) {
  return ExchangeValue(WarpOperation::kShuffle, mask, value);
}

inline uint32_t Vote(unsigned mask, bool vote) {
  const WarpView view = ExchangeValue(WarpOperation::kVote, mask, vote);
  uint32_t votes = 0;
  for (uint32_t lane = 0; lane < kLanes; ++lane) {
    if (view.present() >> lane & 1 && view.Of<bool>(lane)) votes |= 1u << lane;
  }
  return votes;
}

}  // namespace baton::emulation

inline void __syncwarp(unsigned mask = 0xffffffffu) {
  ::baton::emulation::NeedWholeWarp(mask);
  ::baton::emulation::Exchange(::baton::emulation::WarpOperation::kSync, nullptr, 0);
}
template <typename T>
T __shfl_sync(unsigned mask, T value, uint32_t lane) {
  return ::baton::emulation::Shuffled(mask, value).template Of<T>(lane % 32);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, uint32_t flipped) {
  const uint32_t lane = ::baton::emulation::ThisLane() ^ flipped;
  return ::baton::emulation::Shuffled(mask, value).template Of<T>(lane);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, uint32_t delta) {
  const uint32_t lane = ::baton::emulation::ThisLane();
  const ::baton::emulation::WarpView view = ::baton::emulation::Shuffled(mask, value);
  return lane < delta ? value : view.template Of<T>(lane - delta);
}
inline bool __any_sync(unsigned mask, bool vote) {
  return ::baton::emulation::Vote(mask, vote) != 0;
}
inline uint32_t __ballot_sync(unsigned mask, bool vote) {
  return ::baton::emulation::Vote(mask, vote);
}

template <typename T>
T atomicAdd(T* to, T amount) {
  return std::exchange(*to, *to + amount);
}

// ---- Memory ------------------------------------------------------------------------------------

template <typename T>
T __ldg(const T* from) {
  return *from;
}

// ---- Numbers -----------------------------------------------------------------------------------

using std::max;
using std::min;

inline uint32_t __float_as_uint(float x) { return std::bit_cast<uint32_t>(x); }
inline float __uint_as_float(uint32_t x) { return std::bit_cast<float>(x); }
inline int __float2int_rn(float x) { return static_cast<int>(std::nearbyintf(x)); }
inline float __uint2float_rn(uint32_t x) { return static_cast<float>(x); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float x) { return std::exp(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline int __popc(uint32_t x) { return __builtin_popcount(x); }

// Bytes of the eight of (x, y), chosen by the digits of `select`.
inline uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t select) {
  const uint64_t bytes = uint64_t{y} << 32 | x;
  uint32_t chosen = 0;
  for (uint32_t i = 0; i < 4; ++i) {
    const uint32_t digit = select >> 4 * i & 0xf;
    if (digit > 7) ::baton::emulation::KernelFailure("copies of a sign are not emulated");
    chosen |= static_cast<uint32_t>(bytes >> 8 * digit & 0xff) << 8 * i;
  }
  return chosen;
}

#endif  // BATON_TESTS_CUDA_EMULATOR_CUDA_LANGUAGE_H_
