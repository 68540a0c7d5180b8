// Attention over a paged KV cache whose blocks lie in any order.
#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "common/tensor/kv_row.h"
#include "tests/bench/cuda_bench_cases.h"
#include "tests/bench/cuda_bench_device.h"

namespace baton::cuda {
namespace {

constexpr float kScale = 0.08838835f;  // 1 / sqrt(kHeadDim)
constexpr size_t kRowBytes = size_t{kHeads} * kHeadDim * 2;

DevicePages PagesIn(const DeviceMemory& kv, DType dtype) {
  return {.data = kv.at(),
          .block_bytes = size_t{2} * kKvHeads * kBlockTokens * KvRowBytes(dtype, kHeadDim),
          .dtype = dtype,
          .kv_heads = kKvHeads,
          .head_dim = kHeadDim,
          .block_tokens = kBlockTokens};
}

// Sequences of equal length; each set of them has blocks of its own, as far as there are some.
class Sequences {
 public:
  // `count` tokens behind `position` others, of each of `sequences` sequences.
  Sequences(uint32_t sequences, uint32_t count, uint32_t position, const DevicePages& pages,
            size_t kv_bytes)
      : sequences_(sequences),
        count_(count),
        position_(position),
        blocks_((position + count + kBlockTokens - 1) / kBlockTokens),
        set_bytes_(size_t{sequences} * blocks_ * pages.block_bytes),
        sets_(set_bytes_ > kv_bytes ? 0 : Runner::SetsFor(set_bytes_, kv_bytes)),
        table_(BlockTable(kv_bytes / pages.block_bytes)),
        places_(Places()),
        row_sequence_(RowSequence()) {}

  size_t sets() const { return sets_; }  // 0: there is not enough memory for one.
  uint32_t rows() const { return sequences_ * count_; }
  SequenceTable Table(size_t set) const {
    return {.sequences = places_.at<DeviceSequence>() + set * sequences_,
            .block_table = table_.at<uint32_t>(),
            .row_sequence = row_sequence_.at<uint32_t>(),
            .count = sequences_,
            .rows = rows(),
            .count_max = count_,
            .end_max = position_ + count_};
  }
  // How many keys all rows see.
  double KeysSeen() const {
    return sequences_ * (static_cast<double>(count_) * position_ + count_ * (count_ + 1.0) / 2);
  }
  // Bytes of K and V.
  double KvBytes(const DevicePages& pages) const {
    return static_cast<double>(sequences_) * (position_ + count_) *
           static_cast<double>(pages.block_bytes / kBlockTokens);
  }

 private:
  std::vector<uint32_t> BlockTable(size_t block_count) const {
    std::vector<uint32_t> blocks(block_count);
    std::iota(blocks.begin(), blocks.end(), 0u);
    std::shuffle(blocks.begin(), blocks.end(), std::mt19937(7));
    return blocks;
  }
  std::vector<DeviceSequence> Places() const {
    std::vector<DeviceSequence> places;
    for (uint32_t i = 0; i < std::max<size_t>(sets_, 1) * sequences_; ++i) {
      places.push_back({.row = i % sequences_ * count_,
                        .count = count_,
                        .position = position_,
                        .blocks = i * blocks_});
    }
    return places;
  }
  std::vector<uint32_t> RowSequence() const {
    std::vector<uint32_t> sequence_of(rows());
    for (uint32_t row = 0; row < rows(); ++row) sequence_of[row] = row / count_;
    return sequence_of;
  }

  const uint32_t sequences_;
  const uint32_t count_;
  const uint32_t position_;
  const uint32_t blocks_;  // Of a sequence.
  const size_t set_bytes_;
  const size_t sets_;
  const DeviceMemory table_;
  const DeviceMemory places_;
  const DeviceMemory row_sequence_;
};

AttentionArgs ArgsOf(const RandomMemory& memory, const DevicePages& pages,
                     const Sequences& sequences, size_t set) {
  const size_t bytes = sequences.rows() * kRowBytes;
  const size_t places = memory.activations.bytes() / bytes;
  return {.q = memory.activations.at(set % places * bytes),
          .out = memory.out.at(set % places * bytes),
          .type = DType::kBF16,
          .heads = kHeads,
          .pages = pages,
          .table = sequences.Table(set),
          .scale = kScale};
}

void BenchDecode(const Runner& runner, const RandomMemory& memory, const Limits& limits,
                 const DeviceMemory& kv, DType kv_type, uint32_t batch, uint32_t context) {
  const std::string name = std::string("decode/") + DTypeName(kv_type) + "/" +
                           std::to_string(batch) + "x" + std::to_string(context);
  if (!runner.Wanted(name)) return;
  const DevicePages pages = PagesIn(kv, kv_type);
  const Sequences sequences(batch, 1, context - 1, pages, kv.bytes());
  if (sequences.sets() == 0) return runner.LeftOut(name, "too little memory is set aside");
  AttentionArgs args = ArgsOf(memory, pages, sequences, 0);
  if (!DecodeAttentionFits(args)) return runner.LeftOut(name, "does not fit");
  const DeviceMemory scratch(DecodeAttentionScratchBytes(runner.launch(), args));
  Must(cudaMemsetAsync(scratch.at(), 0, scratch.bytes(), runner.launch().stream),
       "clearing memory");
  runner.Report(name, sequences.sets(), {sequences.KvBytes(pages), Unit::kBytes, limits.read_bytes},
                [&](size_t i) {
                  args = ArgsOf(memory, pages, sequences, i % sequences.sets());
                  args.scratch = scratch.at();
                  args.scratch_bytes = scratch.bytes();
                  return DecodeAttention(runner.launch(), args);
                });
}

struct PrefillShape {
  const char* name = nullptr;
  uint32_t sequences = 0;
  uint32_t count = 0;
  uint32_t position = 0;
};

bool Fits(const Launch&, const AttentionArgs& args) { return PrefillAttentionFits(args); }

void BenchPrefill(const Runner& runner, const RandomMemory& memory, const Limits& limits,
                  const char* group, decltype(PrefillAttentionSm90Fits)* fits,
                  decltype(PrefillAttention)* attention, const PrefillShape& shape) {
  const std::string name = std::string(group) + "/" + shape.name;
  if (!runner.Wanted(name)) return;
  const DevicePages pages = PagesIn(memory.weights, DType::kBF16);
  const Sequences sequences(shape.sequences, shape.count, shape.position, pages,
                            memory.weights.bytes());
  if (!fits(runner.launch(), ArgsOf(memory, pages, sequences, 0))) {
    return runner.LeftOut(name, "does not fit");
  }
  const double flops = 4.0 * kHeads * kHeadDim * sequences.KeysSeen();
  runner.Report(name, std::min<size_t>(sequences.sets(), 4),
                {flops, Unit::kFlops, limits.product_flops}, [&](size_t i) {
                  return attention(runner.launch(),
                                   ArgsOf(memory, pages, sequences, i % sequences.sets()));
                });
}

}  // namespace

void BenchDecodeAttention(const Runner& runner, const RandomMemory& memory, const Limits& limits) {
  const auto all = [&](const DeviceMemory& kv, DType kv_type) {
    for (const uint32_t batch : {1u, 8u, 64u}) {
      for (const uint32_t context : {2048u, 8192u, 32768u}) {
        BenchDecode(runner, memory, limits, kv, kv_type, batch, context);
      }
    }
  };
  all(memory.weights, DType::kBF16);
  const size_t row_bytes = KvRowBytes(DType::kI8, kHeadDim);
  const size_t rows = (5ull << 30) / row_bytes;
  const DeviceMemory quantized(rows * row_bytes);
  Must(FillQuantizedRows(runner.launch(), rows, kHeadDim, /*seed=*/6, quantized.at()),
       "filling memory");
  all(quantized, DType::kI8);
  all(quantized, DType::kFp8);
}

void BenchPrefillAttention(const Runner& runner, const RandomMemory& memory, const Limits& limits) {
  for (const PrefillShape& shape : {PrefillShape{"1x4096", 1, 4096, 0},
                                    {"4x4096", 4, 4096, 0},
                                    {"1x16384", 1, 16384, 0},
                                    {"1x512@8192", 1, 512, 8192}}) {
    BenchPrefill(runner, memory, limits, "prefill", &Fits, PrefillAttention, shape);
    BenchPrefill(runner, memory, limits, "prefill_sm90", PrefillAttentionSm90Fits,
                 PrefillAttentionSm90, shape);
  }
}

}  // namespace baton::cuda
