// A UCX that moves memory of GPUs, for workers that a test starts.
//
// BATON_UCX_WITH_CUDA says that there is one. If it is the name of a library, that makes UCX one
// when it is loaded ahead of it (tests/cuda_emulator/ucx_with_cuda.cc).
#ifndef BATON_TESTS_SUPPORT_UCX_WITH_CUDA_H_
#define BATON_TESTS_SUPPORT_UCX_WITH_CUDA_H_

#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace baton {

inline bool HasUcxWithCuda() { return std::getenv("BATON_UCX_WITH_CUDA") != nullptr; }

// Changes the command of a worker.
inline void LoadUcxWithCuda(std::vector<std::string>* command) {
  const char* const library = std::getenv("BATON_UCX_WITH_CUDA");
  if (library == nullptr || library[0] != '/') return;
  const char* const asan = std::getenv("ASAN_OPTIONS");
  command->insert(command->begin(), {"/usr/bin/env", absl::StrCat("LD_PRELOAD=", library),
                                     absl::StrCat("ASAN_OPTIONS=", asan == nullptr ? "" : asan,
                                                  ":verify_asan_link_order=0")});
}

}  // namespace baton

#endif  // BATON_TESTS_SUPPORT_UCX_WITH_CUDA_H_
