// What a device implements: one function per operation of kernels.h, whose callers have checked
// shapes.
#ifndef BATON_COMMON_KERNELS_KERNEL_TABLE_H_
#define BATON_COMMON_KERNELS_KERNEL_TABLE_H_

#include "common/kernels/kernels.h"

namespace baton {

struct KernelTable {
  const char* numerics;

  // Null on the CPU.
  absl::StatusOr<std::unique_ptr<KernelState>> (*create_state)(const KernelOptions& options);

  void (*embedding)(KernelContext&, const ConstTensorView& table, const Placed<TokenId>& ids,
                    const TensorView& out);
  void (*rms_norm)(KernelContext&, const ConstTensorView& x, const ConstTensorView& weight,
                   float epsilon, const TensorView& out);
  void (*add_rms_norm)(KernelContext&, const ConstTensorView& y, const TensorView& x,
                       const ConstTensorView& weight, float epsilon, const TensorView& out);
  void (*layer_norm)(KernelContext&, const ConstTensorView& x, const ConstTensorView& weight,
                     const ConstTensorView& bias, float epsilon, const TensorView& out);
  absl::StatusOr<PackedWeight> (*pack_weight)(KernelContext&, Device& device,
                                              const ConstTensorView& matrix, WeightFormat format);
  void (*grouped_linear)(KernelContext&, const ConstTensorView& x,
                         std::span<const LinearGroup> groups);
  void (*rotary_angles)(KernelContext&, const PlacedSequences& sequences,
                        const ConstTensorView& frequencies, float factor, const TensorView& cosines,
                        const TensorView& sines);
  void (*rope)(KernelContext&, const ConstTensorView& cosines, const ConstTensorView& sines,
               const TensorView& x);
  void (*write_kv)(KernelContext&, const ConstTensorView& k, const ConstTensorView& v,
                   const PlacedSequences& sequences, const KvPages& pages);
  void (*rope_write_kv)(KernelContext&, const ConstTensorView& cosines,
                        const ConstTensorView& sines, const TensorView& q, const TensorView& k,
                        const ConstTensorView& v, const PlacedSequences& sequences,
                        const KvPages& pages);
  void (*attention)(KernelContext&, const ConstTensorView& q, const KvPages& pages,
                    const PlacedSequences& sequences, const AttentionOptions& options,
                    const TensorView& out);
  void (*silu_mul)(KernelContext&, const ConstTensorView& gate, const ConstTensorView& up,
                   const TensorView& out);
  void (*gelu)(KernelContext&, const ConstTensorView& x, const TensorView& out);
  void (*gelu_mul)(KernelContext&, const ConstTensorView& gate, const ConstTensorView& up,
                   const TensorView& out);
  void (*soft_cap)(KernelContext&, float cap, const TensorView& x);
  void (*scale)(KernelContext&, float factor, const TensorView& x);
  void (*add)(KernelContext&, const ConstTensorView& y, const TensorView& x);
  void (*gather_rows)(KernelContext&, const ConstTensorView& x, const Placed<uint32_t>& rows,
                      const TensorView& out);
  void (*join_columns)(KernelContext&, std::span<const ConstTensorView> parts,
                       const TensorView& out);
  void (*combine_rows)(KernelContext&, const ConstTensorView& x, std::span<const uint32_t> rows,
                       std::span<const float> weights, const TensorView& out);
  void (*route_experts)(KernelContext&, const ConstTensorView& logits, uint32_t per_token,
                        bool normalize, std::span<uint32_t> experts, std::span<float> weights);
  // Null, all four, if the device does not send tokens to experts itself.
  bool (*can_route)(const KernelContext&, const Routing& routing, const PackedWeight& weight);
  void (*route)(KernelContext&, const ConstTensorView& logits, const ConstTensorView& shared_logits,
                const PlacedSequences& sequences, bool normalize, const Routing& routing);
  void (*routed_linear)(KernelContext&, const ConstTensorView& x, bool by_token,
                        ExpertProducts weights, const Routing& routing,
                        std::span<const TensorView> out);
  void (*combine_routed)(KernelContext&, const ConstTensorView& x, const Routing& routing,
                         const TensorView& out);
  // 0, and null, all three, if the device does not choose tokens.
  uint32_t sample_vocab_max;
  absl::Status (*sample_tokens)(KernelContext&, const TensorView& logits,
                                std::span<const SampleRow> samples,
                                std::span<const LogitEdit> edits, std::span<TokenId> tokens);
  absl::Status (*start_sampling)(KernelContext&, const TensorView& logits,
                                 const Placed<SampleRow>& samples, const Placed<LogitEdit>& edits);
  TensorView (*started_tokens)(KernelContext&, size_t rows);
  absl::Status (*bring_tokens)(KernelContext&, size_t rows);
  absl::Status (*finish_sampling)(KernelContext&, std::span<TokenId> tokens);
};

// The CPU's, in cpu/cpu_kernels.cc.
const KernelTable& CpuKernels();

}  // namespace baton

#endif  // BATON_COMMON_KERNELS_KERNEL_TABLE_H_
