#include "common/tensor/tensor_view.h"

#include <gtest/gtest.h>

#include <array>

namespace baton {
namespace {

TEST(TensorViewTest, KnowsItsShape) {
  std::array<float, 24> data = {};
  const TensorView view(reinterpret_cast<std::byte*>(data.data()), DType::kF32, DeviceKind::kCpu,
                        {2, 3, 4});

  EXPECT_EQ(view.rank(), 3u);
  EXPECT_EQ(view.dim(1), 3u);
  EXPECT_EQ(view.elements(), 24u);
  EXPECT_EQ(view.bytes(), 96u);
  EXPECT_EQ(view.f32(), data.data());
}

TEST(TensorViewTest, RowsAndReshapedShareTheMemory) {
  std::array<float, 24> data = {};
  const TensorView view(reinterpret_cast<std::byte*>(data.data()), DType::kF32, DeviceKind::kCpu,
                        {6, 4});

  EXPECT_EQ(view.Rows(2, 3).f32(), data.data() + 8);
  EXPECT_EQ(view.Rows(2, 3).dim(0), 3u);
  EXPECT_EQ(view.Rows(6, 0).elements(), 0u);
  EXPECT_EQ(view.Reshaped({3, 2, 4}).dim(2), 4u);
  const ConstTensorView readable = view;
  EXPECT_EQ(readable.f32(), data.data());
}

TEST(TensorViewTest, NoTensorIsEmpty) {
  EXPECT_TRUE(ConstTensorView().empty());
  EXPECT_EQ(ConstTensorView().elements(), 0u);
}

TEST(TensorViewDeathTest, RowsOutsideStopTheProcess) {
  std::array<float, 4> data = {};
  const TensorView view(reinterpret_cast<std::byte*>(data.data()), DType::kF32, DeviceKind::kCpu,
                        {2, 2});

  EXPECT_DEATH(view.Rows(1, 2), "count");
  EXPECT_DEATH(view.Reshaped({3, 2}), "elements");
}

}  // namespace
}  // namespace baton
