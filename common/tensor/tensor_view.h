// A borrowed, dense, row-major tensor in device memory. A plain value; it owns nothing.
#ifndef BATON_COMMON_TENSOR_TENSOR_VIEW_H_
#define BATON_COMMON_TENSOR_TENSOR_VIEW_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "common/base/check.h"
#include "common/device/device.h"
#include "common/tensor/dtype.h"

namespace baton {

inline constexpr size_t kTensorRankMax = 4;

// Byte is std::byte, or const std::byte for a view that may only be read.
template <typename Byte>
class BasicTensorView {
 public:
  template <typename T>
  using Like = std::conditional_t<std::is_const_v<Byte>, const T, T>;

  // No tensor: data() is null and every count is 0.
  BasicTensorView() = default;
  // REQUIRES: at most kTensorRankMax dimensions.
  BasicTensorView(Byte* data, DType dtype, DeviceKind device, std::initializer_list<size_t> shape)
      : data_(data), dtype_(dtype), device_(device), rank_(shape.size()) {
    BATON_CHECK(rank_ <= kTensorRankMax);
    size_t axis = 0;
    for (size_t extent : shape) shape_[axis++] = extent;
  }
  // A mutable view may be read, too.
  template <typename Other>
  requires(std::is_const_v<Byte>&& std::is_same_v<Other, std::byte>)
      BasicTensorView(const BasicTensorView<Other>& other)  // NOLINT(google-explicit-constructor)
      : data_(other.data()), dtype_(other.dtype()), device_(other.device()), rank_(other.rank()) {
    for (size_t axis = 0; axis < rank_; ++axis) shape_[axis] = other.dim(axis);
  }

  Byte* data() const { return data_; }
  DType dtype() const { return dtype_; }
  DeviceKind device() const { return device_; }
  size_t rank() const { return rank_; }
  // REQUIRES: axis < rank().
  size_t dim(size_t axis) const { return shape_[axis]; }
  bool empty() const { return data_ == nullptr; }

  size_t elements() const {
    size_t count = data_ == nullptr ? 0 : 1;
    for (size_t axis = 0; axis < rank_; ++axis) count *= shape_[axis];
    return count;
  }
  size_t bytes() const { return elements() * DTypeBytes(dtype_); }

  // REQUIRES: dtype() is kF32; for reading or writing on the host, device() is kCpu.
  Like<float>* f32() const {
    BATON_CHECK(dtype_ == DType::kF32);
    return reinterpret_cast<Like<float>*>(data_);
  }

  // The same elements in another shape. REQUIRES: equal element counts.
  BasicTensorView Reshaped(std::initializer_list<size_t> shape) const {
    BasicTensorView view(data_, dtype_, device_, shape);
    BATON_CHECK(view.elements() == elements());
    return view;
  }
  // Rows [begin, begin + count) along the first axis. REQUIRES: rank() > 0, rows within range.
  BasicTensorView Rows(size_t begin, size_t count) const {
    BATON_CHECK(rank_ > 0 && begin <= shape_[0] && count <= shape_[0] - begin);
    BasicTensorView view = *this;
    const size_t row_bytes = shape_[0] == 0 ? 0 : bytes() / shape_[0];
    view.data_ = data_ + begin * row_bytes;
    view.shape_[0] = count;
    return view;
  }

 private:
  Byte* data_ = nullptr;
  DType dtype_ = DType::kF32;
  DeviceKind device_ = DeviceKind::kCpu;
  size_t rank_ = 0;
  std::array<size_t, kTensorRankMax> shape_ = {};
};

using TensorView = BasicTensorView<std::byte>;
using ConstTensorView = BasicTensorView<const std::byte>;

}  // namespace baton

#endif  // BATON_COMMON_TENSOR_TENSOR_VIEW_H_
