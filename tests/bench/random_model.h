// A model of random weights in the shape of a real one, in a folder that goes with its owner.
#ifndef BATON_TESTS_BENCH_RANDOM_MODEL_H_
#define BATON_TESTS_BENCH_RANDOM_MODEL_H_

#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "common/kernels/packed_weight.h"

namespace baton {

class RandomModel {
 public:
  struct Options {
    std::string shape;                   // 135m, 0.5b, 1b or moe.
    WeightForm form = WeightForm::kF32;  // Stored in the float type nearest to it.
    bool tied_embeddings = true;
    float deviation = 0.02f;  // Of the matrices.
  };
  // Says on standard error what it does.
  static absl::StatusOr<std::unique_ptr<RandomModel>> Create(const Options& options);
  ~RandomModel();
  RandomModel(const RandomModel&) = delete;
  RandomModel& operator=(const RandomModel&) = delete;

  const std::string& path() const { return path_; }

 private:
  explicit RandomModel(std::string path) : path_(std::move(path)) {}

  const std::string path_;
};

}  // namespace baton

#endif  // BATON_TESTS_BENCH_RANDOM_MODEL_H_
