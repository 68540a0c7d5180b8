// Brings what long chunks see of a cache of another type into the type of activations, so that the
// fast kernels can read it: it is read once for each of their tiles, and copied once here.
#include "common/kernels/cuda/device_code.cuh"
#include "common/tensor/kv_row.h"

namespace baton::cuda {
namespace {

constexpr uint32_t kThreads = 128;
constexpr uint32_t kNoBlock = ~0u;

template <typename T>
__device__ void WidenRow(const std::byte* from, uint32_t n, DType type, T* to) {
  const float scale = KvScale(from, n, type);
  for (uint32_t i = threadIdx.x % kWarp; i < n; i += kWarp) {
    to[i] = FromFloat<T>(KvNumber(from, i, type, scale));
  }
}

// One block of threads for a block of a sequence and a plane of K or V; a warp for a row.
template <typename T>
__global__ void WidenPagesKernel(SequenceTable table, DevicePages pages, size_t row_bytes,
                                 DevicePages wide, uint32_t* wide_blocks) {
  WaitForPrevious();
  LetNextStart();
  const DeviceSequence sequence = table.sequences[blockIdx.z];
  const uint32_t end = sequence.position + sequence.count;
  if (blockIdx.x * pages.block_tokens >= end) return;
  const uint32_t place = sequence.blocks + blockIdx.x;
  const uint32_t page = place - table.blocks_begin;
  if (blockIdx.y == 0 && threadIdx.x == 0) wide_blocks[page] = page;
  const uint32_t block = table.block_table[place];
  if (block == kNoBlock) return;  // Behind the window.
  const size_t plane = static_cast<size_t>(blockIdx.y) * pages.block_tokens;
  const std::byte* const from = pages.data + block * pages.block_bytes + plane * row_bytes;
  T* const to = reinterpret_cast<T*>(wide.data + page * wide.block_bytes) + plane * pages.head_dim;
  const uint32_t rows = min(pages.block_tokens, end - blockIdx.x * pages.block_tokens);
  for (uint32_t row = threadIdx.x / kWarp; row < rows; row += kThreads / kWarp) {
    WidenRow(from + row * row_bytes, pages.head_dim, pages.dtype,
             to + static_cast<size_t>(row) * pages.head_dim);
  }
}

size_t WideBlockBytes(const AttentionArgs& args) {
  const DevicePages& pages = args.pages;
  return size_t{2} * pages.kv_heads * pages.block_tokens * pages.head_dim * DTypeBytes(args.type);
}

size_t BlockCount(const AttentionArgs& args) {
  return args.table.blocks_end - args.table.blocks_begin;
}

}  // namespace

size_t WidePagesBytes(const AttentionArgs& args) {
  return BlockCount(args) * (WideBlockBytes(args) + sizeof(uint32_t));
}

cudaError_t WidenPages(const Launch& launch, AttentionArgs* args, void* scratch) {
  const DevicePages pages = args->pages;
  const SequenceTable table = args->table;
  const size_t row_bytes = KvRowBytes(pages.dtype, pages.head_dim);
  args->pages.data = static_cast<std::byte*>(scratch);
  args->pages.block_bytes = WideBlockBytes(*args);
  args->pages.dtype = args->type;
  auto* const blocks =
      reinterpret_cast<uint32_t*>(args->pages.data + BlockCount(*args) * args->pages.block_bytes);
  // Places in the old table are places in the new one.
  args->table.block_table = blocks - table.blocks_begin;
  const dim3 grid((table.end_max + pages.block_tokens - 1) / pages.block_tokens, 2 * pages.kv_heads,
                  table.count);
  const DevicePages wide = args->pages;
  return WithActivationType(args->type, [&](auto sample) {
    using T = decltype(sample);
    return StartKernel(WidenPagesKernel<T>, grid, dim3(kThreads), 0, launch, table, pages,
                       row_bytes, wide, blocks);
  });
}

}  // namespace baton::cuda
