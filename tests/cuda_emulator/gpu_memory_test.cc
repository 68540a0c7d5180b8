// Goal: a worker that cannot have the memory it needs says so, and what helps, before anybody
// relies on it. Method: real processes on emulated GPUs, which have as much as the test wants.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/clock.h"
#include "common/model/testing/tiny_model.h"
#include "tests/support/cluster.h"
#include "tests/support/ucx_with_cuda.h"

namespace baton {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr Duration kDeadline = std::chrono::seconds(60);
constexpr uint64_t kMiB = uint64_t{1} << 20;

struct Start {
  bool listens = false;
  int code = -1;  // If it does not.
  std::string log;
  std::unique_ptr<Process> process;
};

class GpuMemoryTest : public testing::Test {
 protected:
  GpuMemoryTest() { EXPECT_TRUE(WriteTinyModel(model_.path(), {}).ok()); }

  // A decode worker with so much memory of the GPU and so much that can be pinned.
  Start StartWorker(uint64_t gpu_bytes, uint64_t pinned_bytes,
                    const std::vector<std::string>& flags) {
    std::vector<std::string> command = {"env",
                                        absl::StrCat("BATON_EMULATED_GPU_MEMORY=", gpu_bytes),
                                        absl::StrCat("BATON_EMULATED_PINNED_MEMORY=", pinned_bytes),
                                        BinaryFolder() + "/baton_decode_worker",
                                        "--model",
                                        model_.path(),
                                        "--listen=127.0.0.1:0",
                                        "--threads=1",
                                        "--device=cuda",
                                        "--weights=f32",
                                        "--kv_dtype=f32",
                                        "--warm_up=false"};
    command.insert(command.end(), flags.begin(), flags.end());
    LoadUcxWithCuda(&command);
    Start start;
    start.process =
        Process::Start(command, absl::StrCat(logs_.path(), "/worker", starts_++, ".log")).value();
    const auto address = start.process->WaitForLine("listening on ", kDeadline);
    start.listens = address.ok();
    if (!start.listens) start.code = start.process->Wait(kDeadline).value_or(-1);
    std::ostringstream log;
    log << std::ifstream(start.process->log()).rdbuf();
    start.log = log.str();
    return start;
  }

  // One line says it, and nothing else is an error.
  static void ExpectRefused(const Start& start, const std::vector<std::string>& words) {
    EXPECT_FALSE(start.listens);
    EXPECT_EQ(start.code, 1) << start.log;
    std::istringstream lines(start.log);
    std::string error;
    for (std::string line; std::getline(lines, line);) {
      if (line.find("error: ") != 0) continue;
      EXPECT_EQ(error, "");
      error = line;
    }
    for (const std::string& word : words) EXPECT_THAT(error, HasSubstr(word));
    EXPECT_THAT(start.log, Not(HasSubstr("listening")));
  }

  TemporaryFolder model_;
  TemporaryFolder logs_;
  int starts_ = 0;
};

// What the kernels take first, whatever the model, and what transfers do.
constexpr uint64_t kKernelsGpu = 192 * kMiB + 1024;
constexpr uint64_t kKernelsPinned = 32 * kMiB + 2048;
constexpr uint64_t kTransfersPinned = 128 * kMiB;
constexpr uint64_t kPlenty = 1024 * kMiB;
constexpr char kOutOfMemory[] = ": cudaErrorMemoryAllocation, out of memory; ";

TEST_F(GpuMemoryTest, TooLittleForTheKernels) {
  ExpectRefused(StartWorker(kKernelsGpu - 1, kPlenty, {"--kv_memory=1MiB"}),
                {"cuda:0 emulated GPU: allocating ", " bytes: cudaErrorMemoryAllocation"});
  ExpectRefused(StartWorker(kPlenty, kKernelsPinned - 1, {}),
                {"cuda:0 emulated GPU: pinning 2048 bytes of the host: cudaErrorMemoryAllocation"});
}

TEST_F(GpuMemoryTest, TooLittleForWeights) {
  ExpectRefused(
      StartWorker(kKernelsGpu, kPlenty, {}),
      {"no memory for the weights: cuda:0 emulated GPU: allocating ", kOutOfMemory, "--weights"});
}

TEST_F(GpuMemoryTest, TooLittleForAStep) {
  ExpectRefused(StartWorker(kKernelsGpu + kMiB / 2, kPlenty, {}),
                {"no memory for what a step computes: cuda:0 emulated GPU: allocating ",
                 kOutOfMemory, "--chunk_tokens"});
}

TEST_F(GpuMemoryTest, TooLittleForTheKvCache) {
  ExpectRefused(StartWorker(kKernelsGpu + 64 * kMiB, kPlenty, {"--kv_memory=128MiB"}),
                {"no memory for the KV cache: cuda:0 emulated GPU: allocating 134217728 bytes",
                 kOutOfMemory, "--kv_memory"});
}

TEST_F(GpuMemoryTest, TooLittleForTheTablesOfManySequences) {
  ExpectRefused(
      StartWorker(kPlenty, kKernelsPinned + kMiB, {"--kv_memory=1MiB", "--sequences_max=65535"}),
      {"no memory for what a step needs: cuda:0 emulated GPU: pinning ", kOutOfMemory,
       "--sequences_max"});
}

TEST_F(GpuMemoryTest, TooLittlePinnedForTransfers) {
  ExpectRefused(
      StartWorker(kPlenty, kKernelsPinned + kTransfersPinned - 1, {}),
      {"no memory for KV transfers: cuda:0 emulated GPU: pinning 67108864 bytes", kOutOfMemory});
}

// More than a cache of 64 MiB leaves.
TEST_F(GpuMemoryTest, TooLittleForTransfersThroughTheGpu) {
  const std::vector<std::string> flags = {"--kv_memory=64MiB", "--swap_memory=0"};
  const uint64_t gpu_bytes = kKernelsGpu + 160 * kMiB;
  const auto with = [&flags](const std::string& staging) {
    std::vector<std::string> all = flags;
    all.push_back("--kv_staging=" + staging);
    return all;
  };
  ExpectRefused(StartWorker(gpu_bytes, kPlenty, with("device")),
                {"no memory for KV transfers: cuda:0 emulated GPU: allocating 67108864 bytes",
                 kOutOfMemory, "a smaller --kv_memory leaves more"});

  const Start automatic = StartWorker(gpu_bytes, kPlenty, with("auto"));
  EXPECT_TRUE(automatic.listens) << automatic.log;
  EXPECT_THAT(automatic.log, HasSubstr("staging=pinned"));
  EXPECT_THAT(automatic.log, HasSubstr("allocating 67108864 bytes"));
  EXPECT_THAT(StartWorker(kPlenty, kPlenty, with("auto")).log, HasSubstr("staging=device"));
}

TEST_F(GpuMemoryTest, AnUnknownStagingIsRefused) {
  ExpectRefused(StartWorker(kPlenty, kPlenty, {"--kv_staging=gpu"}),
                {"--kv_staging 'gpu'", "pinned, device or auto"});
}

TEST_F(GpuMemoryTest, TooLittlePinnedForTheSwapSpaceThatWasAskedFor) {
  ExpectRefused(StartWorker(kPlenty, kKernelsPinned + kTransfersPinned, {"--swap_memory=1MiB"}),
                {"no memory for a swap space: cuda:0 emulated GPU: pinning 1048576 bytes",
                 kOutOfMemory, "--swap_memory"});
}

TEST_F(GpuMemoryTest, WithoutASwapSpaceThatNobodyAskedForItWorks) {
  const Start start = StartWorker(kPlenty, kKernelsPinned + kTransfersPinned, {});

  EXPECT_TRUE(start.listens) << start.log;
  EXPECT_THAT(start.log, HasSubstr("no swap space: preempted sequences will be computed again"));
  EXPECT_THAT(start.log, HasSubstr("pinning 4294967296 bytes of the host"));
}

}  // namespace
}  // namespace baton
