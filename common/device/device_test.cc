#include "common/device/device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <vector>

#include "common/device/testing/guarded_device.h"

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

// Pieces of even and uneven sizes, out of order, there and back.
void MovesABatch(Device& device) {
  DeviceMemory memory = device.Allocate(100).value();
  DeviceMemory pinned = device.AllocatePinned(40).value();
  for (size_t i = 0; i < pinned.bytes(); ++i) pinned.data()[i] = static_cast<std::byte>(i + 1);
  const std::vector<std::span<std::byte>> pieces = {{memory.data() + 60, 10},
                                                    {memory.data() + 80, 10},
                                                    {memory.data(), 17},
                                                    {memory.data(), 0},
                                                    {memory.data() + 40, 3}};

  ASSERT_TRUE(device.Scatter(pieces, pinned.data()).ok());
  DeviceMemory back = device.AllocatePinned(40).value();
  const std::vector<std::span<const std::byte>> from(pieces.begin(), pieces.end());
  ASSERT_TRUE(device.Gather(back.data(), from).ok());

  for (size_t i = 0; i < 40; ++i) EXPECT_EQ(back.data()[i], static_cast<std::byte>(i + 1));
  std::array<std::byte, 100> all;
  ASSERT_TRUE(device.CopyToHost(all.data(), memory.data(), all.size()).ok());
  EXPECT_EQ(all[60], std::byte{1});
  EXPECT_EQ(all[80], std::byte{11});
  EXPECT_EQ(all[0], std::byte{21});
  EXPECT_EQ(all[17], std::byte{0}) << "nothing else was written";
  EXPECT_EQ(all[42], std::byte{40});
}

TEST(DeviceTest, BatchesArriveInOrder) { MovesABatch(*MakeHostDevice()); }

TEST(GuardedDeviceTest, BatchesArriveInOrder) {
  GuardedDevice device;
  MovesABatch(device);
}

TEST(GuardedDeviceDeathTest, TheHostCannotTouchItsMemory) {
  GuardedDevice device;
  DeviceMemory memory = device.Allocate(64).value();

  // By a signal, or by whatever a sanitizer makes of it.
  EXPECT_EXIT(
      memory.data()[0] = std::byte{1}, [](int status) { return status != 0; }, "");
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
