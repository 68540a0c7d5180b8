// How the KV cache holds K or V of one token and head: head_dim numbers, and behind those of 8 bits
// the float32 scale that they are multiplied with. The scale lies with its row, so that whatever
// moves rows moves it too.
#ifndef BATON_COMMON_TENSOR_KV_ROW_H_
#define BATON_COMMON_TENSOR_KV_ROW_H_

#include <cstddef>

#include "common/tensor/dtype.h"

namespace baton {

constexpr size_t KvRowBytes(DType dtype, size_t head_dim) {
  return head_dim * DTypeBytes(dtype) + (HasScales(dtype) ? sizeof(float) : 0);
}

}  // namespace baton

#endif  // BATON_COMMON_TENSOR_KV_ROW_H_
