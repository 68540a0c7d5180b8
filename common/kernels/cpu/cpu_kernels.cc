// The CPU's kernels: divide an operation into tasks for the threads; the loops are in CpuOps.
#include <algorithm>
#include <cstring>

#include "common/base/check.h"
#include "common/base/deterministic_math.h"
#include "common/kernels/cpu/cpu_attention.h"
#include "common/kernels/cpu/cpu_linear.h"
#include "common/kernels/cpu/cpu_ops.h"
#include "common/kernels/cpu/cpu_packing.h"
#include "common/kernels/kernel_table.h"
#include "common/tensor/number_formats.h"

namespace baton {
namespace {

// Waking threads costs microseconds: a task should do at least about so many operations.
constexpr size_t kTaskOperations = 64 * 1024;

// Runs body(begin, end, thread) over [0, count), cut where `cost` operations per item make it worth
// it.
template <typename Body>
void ForRanges(KernelContext& context, size_t count, size_t cost, const Body& body) {
  const size_t grain = std::max<size_t>(1, kTaskOperations / std::max<size_t>(1, cost));
  const size_t wanted = 4 * context.threads().count();
  const size_t step = std::max(grain, (count + wanted - 1) / wanted);
  const size_t tasks = (count + step - 1) / step;
  context.threads().ParallelFor(static_cast<uint32_t>(tasks), [&](uint32_t task, uint32_t thread) {
    const size_t begin = task * step;
    body(begin, std::min(count, begin + step), thread);
  });
}

void EmbeddingCpu(KernelContext& context, const ConstTensorView& table,
                  const Placed<TokenId>& placed, const TensorView& out) {
  const std::span<const TokenId> ids = placed.host;
  const size_t n = table.dim(1);
  float* const to = out.f32();
  ForRanges(context, ids.size(), n, [&](size_t begin, size_t end, uint32_t) {
    for (size_t i = begin; i < end; ++i) {
      const std::byte* row = table.data() + ids[i] * n * DTypeBytes(table.dtype());
      const auto* halves = reinterpret_cast<const uint16_t*>(row);
      float* out_row = to + i * n;
      switch (table.dtype()) {
        case DType::kF32:
          std::memcpy(out_row, row, n * sizeof(float));
          break;
        case DType::kBF16:
          for (size_t d = 0; d < n; ++d) out_row[d] = Bf16ToF32(halves[d]);
          break;
        case DType::kF16:
          for (size_t d = 0; d < n; ++d) out_row[d] = F16ToF32(halves[d]);
          break;
        case DType::kI8:
        case DType::kFp8:
          BATON_CHECK_MSG(false, "no embedding of this type");
      }
    }
  });
}

void RmsNormCpu(KernelContext& context, const ConstTensorView& x, const ConstTensorView& weight,
                float epsilon, const TensorView& out) {
  const size_t n = x.dim(1);
  ForRanges(context, x.dim(0), n, [&](size_t begin, size_t end, uint32_t) {
    for (size_t row = begin; row < end; ++row) {
      context.cpu_ops().rms_norm(x.f32() + row * n, weight.f32(), epsilon, n, out.f32() + row * n);
    }
  });
}

void AddCpu(KernelContext& context, const ConstTensorView& y, const TensorView& x) {
  ForRanges(context, x.elements(), 1, [&](size_t begin, size_t end, uint32_t) {
    context.cpu_ops().add(y.f32() + begin, end - begin, x.f32() + begin);
  });
}

void AddRmsNormCpu(KernelContext& context, const ConstTensorView& y, const TensorView& x,
                   const ConstTensorView& weight, float epsilon, const TensorView& out) {
  AddCpu(context, y, x);
  RmsNormCpu(context, x, weight, epsilon, out);
}

void LayerNormCpu(KernelContext& context, const ConstTensorView& x, const ConstTensorView& weight,
                  const ConstTensorView& bias, float epsilon, const TensorView& out) {
  const size_t n = x.dim(1);
  ForRanges(context, x.dim(0), 2 * n, [&](size_t begin, size_t end, uint32_t) {
    for (size_t row = begin; row < end; ++row) {
      context.cpu_ops().layer_norm(x.f32() + row * n, weight.f32(), bias.f32(), epsilon, n,
                                   out.f32() + row * n);
    }
  });
}

void RotaryAnglesCpu(KernelContext& context, const PlacedSequences& sequences,
                     const ConstTensorView& frequencies, float factor, const TensorView& cosines,
                     const TensorView& sines) {
  const size_t half = frequencies.dim(0);
  for (const SequenceRows& sequence : sequences.host) {
    ForRanges(context, sequence.count, 64 * half, [&](size_t begin, size_t end, uint32_t) {
      for (size_t i = begin; i < end; ++i) {
        const size_t offset = (sequence.row + i) * half;
        const float position = static_cast<float>(sequence.position + i);
        for (size_t pair = 0; pair < half; ++pair) {
          // The product is rounded to float first: so were the angles that models are trained with.
          const SinCos angle = StableSinCos(position * frequencies.f32()[pair]);
          cosines.f32()[offset + pair] = static_cast<float>(angle.cos) * factor;
          sines.f32()[offset + pair] = static_cast<float>(angle.sin) * factor;
        }
      }
    });
  }
}

void RopeCpu(KernelContext& context, const ConstTensorView& cosines, const ConstTensorView& sines,
             const TensorView& x) {
  const size_t heads = x.dim(1);
  const size_t head_dim = x.dim(2);
  const size_t half = cosines.dim(1);
  ForRanges(context, x.dim(0), heads * half * 4, [&](size_t begin, size_t end, uint32_t) {
    for (size_t row = begin; row < end; ++row) {
      const float* cosine = cosines.f32() + row * half;
      const float* sine = sines.f32() + row * half;
      for (size_t head = 0; head < heads; ++head) {
        float* first = x.f32() + (row * heads + head) * head_dim;
        float* second = first + half;
        for (size_t i = 0; i < half; ++i) {
          const float a = first[i];
          const float b = second[i];
          first[i] = a * cosine[i] - b * sine[i];
          second[i] = b * cosine[i] + a * sine[i];
        }
      }
    }
  });
}

void StoreKvRow(const CpuOps& ops, const float* from, size_t count, DType dtype, std::byte* to) {
  switch (dtype) {
    case DType::kF32:
      std::memcpy(to, from, count * sizeof(float));
      return;
    case DType::kBF16: {
      auto* halves = reinterpret_cast<uint16_t*>(to);
      for (size_t i = 0; i < count; ++i) halves[i] = F32ToBf16(from[i]);
      return;
    }
    case DType::kF16: {
      auto* halves = reinterpret_cast<uint16_t*>(to);
      for (size_t i = 0; i < count; ++i) halves[i] = F32ToF16(from[i]);
      return;
    }
    case DType::kI8: {
      const float scale = ops.quantize(from, count, count, 1, reinterpret_cast<int8_t*>(to));
      std::memcpy(to + count, &scale, sizeof(scale));
      return;
    }
    case DType::kFp8: {
      const float scale = ops.quantize_fp8(from, count, reinterpret_cast<uint8_t*>(to));
      std::memcpy(to + count, &scale, sizeof(scale));
      return;
    }
  }
}

void WriteKvCpu(KernelContext& context, const ConstTensorView& k, const ConstTensorView& v,
                const PlacedSequences& sequences, const KvPages& pages) {
  const size_t head_dim = pages.head_dim;
  for (const SequenceRows& sequence : sequences.host) {
    ForRanges(context, sequence.count, 4 * pages.kv_heads * head_dim,
              [&](size_t begin, size_t end, uint32_t) {
                for (size_t i = begin; i < end; ++i) {
                  const uint32_t position = sequence.position + static_cast<uint32_t>(i);
                  for (uint32_t head = 0; head < pages.kv_heads; ++head) {
                    const size_t from = ((sequence.row + i) * pages.kv_heads + head) * head_dim;
                    StoreKvRow(context.cpu_ops(), k.f32() + from, head_dim, pages.dtype,
                               pages.data + pages.OffsetOf(sequence.blocks, false, head, position));
                    StoreKvRow(context.cpu_ops(), v.f32() + from, head_dim, pages.dtype,
                               pages.data + pages.OffsetOf(sequence.blocks, true, head, position));
                  }
                }
              });
  }
}

void RopeWriteKvCpu(KernelContext& context, const ConstTensorView& cosines,
                    const ConstTensorView& sines, const TensorView& q, const TensorView& k,
                    const ConstTensorView& v, const PlacedSequences& sequences,
                    const KvPages& pages) {
  RopeCpu(context, cosines, sines, q);
  RopeCpu(context, cosines, sines, k);
  WriteKvCpu(context, k, v, sequences, pages);
}

void SiluMulCpu(KernelContext& context, const ConstTensorView& gate, const ConstTensorView& up,
                const TensorView& out) {
  ForRanges(context, gate.elements(), 16, [&](size_t begin, size_t end, uint32_t) {
    context.cpu_ops().silu_mul(gate.f32() + begin, up.f32() + begin, end - begin,
                               out.f32() + begin);
  });
}

void GeluCpu(KernelContext& context, const ConstTensorView& x, const TensorView& out) {
  ForRanges(context, x.elements(), 16, [&](size_t begin, size_t end, uint32_t) {
    context.cpu_ops().gelu(x.f32() + begin, end - begin, out.f32() + begin);
  });
}

void GeluMulCpu(KernelContext& context, const ConstTensorView& gate, const ConstTensorView& up,
                const TensorView& out) {
  ForRanges(context, gate.elements(), 16, [&](size_t begin, size_t end, uint32_t) {
    context.cpu_ops().gelu_mul(gate.f32() + begin, up.f32() + begin, end - begin,
                               out.f32() + begin);
  });
}

void SoftCapCpu(KernelContext& context, float cap, const TensorView& x) {
  ForRanges(context, x.elements(), 24, [&](size_t begin, size_t end, uint32_t) {
    context.cpu_ops().soft_cap(cap, end - begin, x.f32() + begin);
  });
}

void ScaleCpu(KernelContext& context, float factor, const TensorView& x) {
  ForRanges(context, x.elements(), 1, [&](size_t begin, size_t end, uint32_t) {
    for (size_t i = begin; i < end; ++i) x.f32()[i] *= factor;
  });
}

void GatherRowsCpu(KernelContext& context, const ConstTensorView& x, const Placed<uint32_t>& placed,
                   const TensorView& out) {
  const std::span<const uint32_t> rows = placed.host;
  const size_t n = x.dim(1);
  ForRanges(context, rows.size(), n, [&](size_t begin, size_t end, uint32_t) {
    for (size_t i = begin; i < end; ++i) {
      std::memcpy(out.f32() + i * n, x.f32() + rows[i] * n, n * sizeof(float));
    }
  });
}

void JoinColumnsCpu(KernelContext& context, std::span<const ConstTensorView> parts,
                    const TensorView& out) {
  const size_t columns = out.dim(1);
  ForRanges(context, out.dim(0), columns, [&](size_t begin, size_t end, uint32_t) {
    for (size_t row = begin; row < end; ++row) {
      float* to = out.f32() + row * columns;
      for (const ConstTensorView& part : parts) {
        to = std::copy_n(part.f32() + row * part.dim(1), part.dim(1), to);
      }
    }
  });
}

void CombineRowsCpu(KernelContext& context, const ConstTensorView& x,
                    std::span<const uint32_t> rows, std::span<const float> weights,
                    const TensorView& out) {
  const size_t n = x.dim(1);
  const size_t tokens = out.dim(0);
  const size_t terms = tokens == 0 ? 0 : rows.size() / tokens;
  ForRanges(context, tokens, terms * n, [&](size_t begin, size_t end, uint32_t) {
    for (size_t token = begin; token < end; ++token) {
      float* sum = out.f32() + token * n;
      std::fill(sum, sum + n, 0.0f);
      for (size_t term = token * terms; term < (token + 1) * terms; ++term) {
        context.cpu_ops().add_scaled(x.f32() + rows[term] * n, weights[term], n, sum);
      }
    }
  });
}

// Softmax in place: sums in ascending order.
void Softmax(std::span<float> values) {
  const float highest = *std::max_element(values.begin(), values.end());
  float sum = 0.0f;
  for (float& value : values) {
    value = StableExp(value - highest);
    sum += value;
  }
  for (float& value : values) value /= sum;
}

// Chooses experts.size() of the probabilities, the highest ones, of equals the first.
void ChooseHighest(std::span<const float> probabilities, std::span<uint32_t> experts) {
  const auto chosen = [&](size_t count, uint32_t expert) {
    return std::find(experts.begin(), experts.begin() + count, expert) != experts.begin() + count;
  };
  for (size_t i = 0; i < experts.size(); ++i) {
    uint32_t best = 0;
    while (chosen(i, best)) ++best;
    for (uint32_t expert = best + 1; expert < probabilities.size(); ++expert) {
      if (probabilities[expert] > probabilities[best] && !chosen(i, expert)) best = expert;
    }
    experts[i] = best;
  }
  std::sort(experts.begin(), experts.end());
}

void RouteExpertsCpu(KernelContext& context, const ConstTensorView& logits, uint32_t per_token,
                     bool normalize, std::span<uint32_t> experts, std::span<float> weights) {
  const size_t count = logits.dim(1);
  ForRanges(context, logits.dim(0), count * (16 + per_token),
            [&](size_t begin, size_t end, uint32_t thread) {
              const std::span<float> probabilities(context.Scratch(thread, count), count);
              for (size_t token = begin; token < end; ++token) {
                const float* from = logits.f32() + token * count;
                std::copy(from, from + count, probabilities.begin());
                Softmax(probabilities);
                const auto chosen = experts.subspan(token * per_token, per_token);
                const auto weight = weights.subspan(token * per_token, per_token);
                ChooseHighest(probabilities, chosen);
                float sum = 0.0f;
                for (size_t i = 0; i < per_token; ++i) {
                  weight[i] = probabilities[chosen[i]];
                  sum += weight[i];
                }
                if (!normalize) continue;
                for (float& value : weight) value /= sum;
              }
            });
}

}  // namespace

const KernelTable& CpuKernels() {
  static constexpr KernelTable kTable = {
      .numerics = "cpu-2",
      .create_state = nullptr,
      .embedding = EmbeddingCpu,
      .rms_norm = RmsNormCpu,
      .add_rms_norm = AddRmsNormCpu,
      .layer_norm = LayerNormCpu,
      .pack_weight = PackWeightCpu,
      .grouped_linear = GroupedLinearCpu,
      .rotary_angles = RotaryAnglesCpu,
      .rope = RopeCpu,
      .write_kv = WriteKvCpu,
      .rope_write_kv = RopeWriteKvCpu,
      .attention = AttentionCpu,
      .silu_mul = SiluMulCpu,
      .gelu = GeluCpu,
      .gelu_mul = GeluMulCpu,
      .soft_cap = SoftCapCpu,
      .scale = ScaleCpu,
      .add = AddCpu,
      .gather_rows = GatherRowsCpu,
      .join_columns = JoinColumnsCpu,
      .combine_rows = CombineRowsCpu,
      .route_experts = RouteExpertsCpu,
      .can_route = nullptr,
      .route = nullptr,
      .routed_linear = nullptr,
      .combine_routed = nullptr,
      .sample_vocab_max = 0,
      .sample_tokens = nullptr,
      .start_sampling = nullptr,
      .started_tokens = nullptr,
      .bring_tokens = nullptr,
      .finish_sampling = nullptr,
  };
  return kTable;
}

}  // namespace baton
