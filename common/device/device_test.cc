#include "common/device/device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstdint>

namespace baton {
namespace {

TEST(DeviceTest, HostMemoryIsAlignedAndZero) {
  std::unique_ptr<Device> device = MakeHostDevice();

  absl::StatusOr<DeviceMemory> memory = device->Allocate(100);

  ASSERT_TRUE(memory.ok()) << memory.status();
  EXPECT_EQ(reinterpret_cast<uintptr_t>(memory->data()) % Device::kAlignment, 0u);
  for (size_t i = 0; i < memory->bytes(); ++i) ASSERT_EQ(memory->data()[i], std::byte{0});
}

TEST(DeviceTest, CopiesThereAndBack) {
  std::unique_ptr<Device> device = MakeHostDevice();
  DeviceMemory memory = device->Allocate(4).value();
  const std::array<std::byte, 4> sent = {std::byte{1}, std::byte{2}, std::byte{3}, std::byte{4}};
  std::array<std::byte, 4> received = {};

  ASSERT_TRUE(device->CopyFromHost(memory.data(), sent.data(), sent.size()).ok());
  ASSERT_TRUE(device->CopyToHost(received.data(), memory.data(), received.size()).ok());

  EXPECT_EQ(received, sent);
}

TEST(DeviceTest, MemoryMovesWithItsOwner) {
  std::unique_ptr<Device> device = MakeHostDevice();
  DeviceMemory first = device->Allocate(64).value();
  std::byte* data = first.data();

  DeviceMemory second = std::move(first);

  EXPECT_EQ(second.data(), data);
}

TEST(DeviceTest, UnknownNameIsRefusedWithTheChoices) {
  const absl::Status status = OpenDevice("tpu").status();

  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("tpu"));
}

TEST(DeviceTest, MissingGpuIsUnavailableNotACrash) {
  const absl::Status status = OpenDevice("cuda:99").status();

  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("cuda:99"));
}

}  // namespace
}  // namespace baton
