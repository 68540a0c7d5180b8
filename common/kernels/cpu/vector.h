// The compilers' vector types by element and width. Included by ops_*.cc only.
#ifndef BATON_COMMON_KERNELS_CPU_VECTOR_H_
#define BATON_COMMON_KERNELS_CPU_VECTOR_H_

#include <cstddef>

namespace baton {

template <typename Element, size_t kWidth>
struct Vector {
  typedef Element Type __attribute__((vector_size(sizeof(Element) * kWidth)));
};

}  // namespace baton

#endif  // BATON_COMMON_KERNELS_CPU_VECTOR_H_
