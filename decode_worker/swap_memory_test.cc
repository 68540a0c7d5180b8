// Goal: a swap space that was asked for is there or is an error; one that was not may be missing.
// Method: a device that claims to be a GPU, and pins memory or does not.
#include "decode_worker/swap_memory.h"

#include <gtest/gtest.h>

#include "common/device/device.h"

namespace baton {
namespace {

constexpr KvLayout kLayout = {.layers = 1, .kv_heads = 1, .head_dim = 64, .block_tokens = 16};
constexpr uint64_t kBytes = 1 << 20;

class PinningDevice final : public Device {
 public:
  DeviceKind kind() const override { return DeviceKind::kCuda; }
  std::string name() const override { return "pinning"; }
  absl::StatusOr<DeviceMemory> Allocate(size_t bytes) override { return host_->Allocate(bytes); }
  absl::StatusOr<DeviceMemory> AllocatePinned(size_t bytes) override {
    asked = bytes;
    if (!pins) return absl::ResourceExhaustedError("memory cannot be pinned");
    return host_->AllocatePinned(bytes);
  }
  absl::Status CopyFromHost(std::byte* to, const std::byte* from, size_t bytes) override {
    return host_->CopyFromHost(to, from, bytes);
  }
  absl::Status CopyToHost(std::byte* to, const std::byte* from, size_t bytes) override {
    return host_->CopyToHost(to, from, bytes);
  }
  absl::Status Gather(std::byte* to, std::span<const std::span<const std::byte>> from) override {
    return host_->Gather(to, from);
  }
  absl::Status Scatter(std::span<const std::span<std::byte>> to, const std::byte* from) override {
    return host_->Scatter(to, from);
  }

  bool pins = true;
  size_t asked = 0;

 private:
  void Free(std::byte* /*data*/, size_t /*bytes*/, bool /*pinned*/) override {
  }  // Memory is host_'s.

  const std::unique_ptr<Device> host_ = MakeHostDevice();
};

class SwapMemoryTest : public testing::Test {
 protected:
  PinningDevice gpu_;
  const std::unique_ptr<Device> cpu_ = MakeHostDevice();
  const std::unique_ptr<KvArena> on_gpu_ = KvArena::Create(gpu_, kLayout, 4).value();
  const std::unique_ptr<KvArena> on_cpu_ = KvArena::Create(*cpu_, kLayout, 4).value();
};

TEST_F(SwapMemoryTest, IsOfTheSizeThatWasAskedFor) {
  for (const KvArena* arena : {on_gpu_.get(), on_cpu_.get()}) {
    const auto swap = MakeSwapSpace(*arena, kBytes);
    ASSERT_TRUE(swap.ok()) << swap.status();
    EXPECT_EQ((*swap)->blocks_total(), kBytes / kLayout.block_bytes());
    EXPECT_EQ(MakeSwapSpace(*arena, 0).value(), nullptr);
  }
}

TEST_F(SwapMemoryTest, UnlessSomethingIsSaidOnlyAGpuHasOne) {
  EXPECT_EQ(MakeSwapSpace(*on_cpu_, std::nullopt).value(), nullptr);

  gpu_.pins = false;  // Not to take that much memory.
  EXPECT_TRUE(MakeSwapSpace(*on_gpu_, std::nullopt).ok());
  EXPECT_GT(gpu_.asked, uint64_t{3} << 30);
}

TEST_F(SwapMemoryTest, WhatCannotBePinnedIsAnErrorOnlyIfItWasAskedFor) {
  gpu_.pins = false;

  EXPECT_EQ(MakeSwapSpace(*on_gpu_, kBytes).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(MakeSwapSpace(*on_gpu_, std::nullopt).value(), nullptr);
}

}  // namespace
}  // namespace baton
