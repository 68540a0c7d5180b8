#include "common/collective/thread_collective.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>

#include "absl/functional/function_ref.h"
#include "common/base/await_change.h"
#include "common/base/check.h"

namespace baton {
namespace {

// Slices begin at multiples: no two ranks write to one cache line.
constexpr size_t kSliceMultiple = 16;
constexpr size_t kPieceFloats = 256;

// What the ranks share.
class Group {
 public:
  explicit Group(uint32_t size) : size_(size), tensors_(size) {}

  uint32_t size() const { return size_; }

  // Waits until all ranks are here. False: the group has been aborted.
  bool Meet() {
    const uint32_t round = round_.load();
    if (aborted_.load()) return false;  // Asked after the round was read: Abort ends that one, too.
    if (arrived_.fetch_add(1) + 1 == size_) {
      arrived_.store(0);
      EndRound();
    } else {
      AwaitChange(round_, round);
    }
    return !aborted_.load();
  }

  void Abort() {
    aborted_.store(true);
    EndRound();
  }

  // Written by its rank before a meeting, read by all after it.
  TensorView& tensor(uint32_t rank) { return tensors_[rank]; }
  // As tensor(0).
  std::span<const TensorView>& parts() { return parts_; }

 private:
  void EndRound() {
    round_.fetch_add(1);
    round_.notify_all();
  }

  const uint32_t size_;
  std::vector<TensorView> tensors_;  // By rank.
  std::span<const TensorView> parts_;
  std::atomic<uint32_t> arrived_ = 0;
  std::atomic<uint32_t> round_ = 0;
  std::atomic<bool> aborted_ = false;
};

class ThreadCollective final : public Collective {
 public:
  ThreadCollective(std::shared_ptr<Group> group, uint32_t rank)
      : group_(std::move(group)), rank_(rank) {}

  uint32_t rank() const override { return rank_; }
  uint32_t size() const override { return group_->size(); }
  void Abort() override { group_->Abort(); }

  absl::Status AllReduceSum(const TensorView& x) override {
    return Together(x, [this] {
      CheckAllEqual();
      SumSlice();
    });
  }
  absl::Status Broadcast(const TensorView& x) override {
    return Together(x, [this] {
      CheckAllEqual();
      const TensorView& own = group_->tensor(rank_);
      if (rank_ != 0) std::copy_n(group_->tensor(0).f32(), own.elements(), own.f32());
    });
  }
  absl::Status GatherParts(const TensorView& part, std::span<const TensorView> parts) override {
    if (rank_ == 0) group_->parts() = parts;
    return Together(part, [this] {
      const TensorView& own = group_->tensor(rank_);
      BATON_CHECK(group_->parts().size() == size());
      const TensorView& to = group_->parts()[rank_];
      BATON_CHECK(to.elements() == own.elements());
      if (rank_ != 0) std::copy_n(own.f32(), own.elements(), to.f32());
    });
  }

 private:
  // Runs `body` when all ranks' tensors are known.
  absl::Status Together(const TensorView& x, absl::FunctionRef<void()> body) {
    group_->tensor(rank_) = x;
    if (!group_->Meet()) return Aborted();
    body();
    // Nobody reads what is not finished, nor writes to a tensor that others still read.
    return group_->Meet() ? absl::OkStatus() : Aborted();
  }

  void CheckAllEqual() const {
    const size_t elements = group_->tensor(rank_).elements();
    for (uint32_t rank = 0; rank < size(); ++rank) {
      BATON_CHECK(group_->tensor(rank).elements() == elements);
    }
  }

  static absl::Status Aborted() { return absl::AbortedError("another rank cannot go on"); }

  void SumSlice() {
    const size_t elements = group_->tensor(rank_).elements();
    const size_t end = SliceBegin(elements, rank_ + 1);
    for (size_t begin = SliceBegin(elements, rank_); begin < end; begin += kPieceFloats) {
      SumPiece(begin, std::min(kPieceFloats, end - begin));
    }
  }

  size_t SliceBegin(size_t elements, uint32_t rank) const {
    const size_t lines = (elements + kSliceMultiple - 1) / kSliceMultiple;
    return std::min(elements, lines * rank / size() * kSliceMultiple);
  }

  void SumPiece(size_t begin, size_t count) {
    std::array<float, kPieceFloats> sum;
    std::copy_n(group_->tensor(0).f32() + begin, count, sum.data());
    for (uint32_t rank = 1; rank < size(); ++rank) {
      const float* const x = group_->tensor(rank).f32() + begin;
      for (size_t i = 0; i < count; ++i) sum[i] += x[i];
    }
    for (uint32_t rank = 0; rank < size(); ++rank) {
      std::copy_n(sum.data(), count, group_->tensor(rank).f32() + begin);
    }
  }

  const std::shared_ptr<Group> group_;
  const uint32_t rank_;
};

}  // namespace

std::vector<std::unique_ptr<Collective>> MakeThreadCollectives(uint32_t size) {
  BATON_CHECK(size > 0);
  const auto group = std::make_shared<Group>(size);
  std::vector<std::unique_ptr<Collective>> ranks;
  for (uint32_t rank = 0; rank < size; ++rank) {
    ranks.push_back(std::make_unique<ThreadCollective>(group, rank));
  }
  return ranks;
}

}  // namespace baton
