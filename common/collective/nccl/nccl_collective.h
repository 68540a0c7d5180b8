// A group of GPUs of this process, over NCCL. Part of libbaton_cuda.so.
//
// libnccl.so.2 is loaded when a group is made: one GPU does without. Built from no_nccl.cc where
// nccl.h is missing.
#ifndef BATON_COMMON_COLLECTIVE_NCCL_NCCL_COLLECTIVE_H_
#define BATON_COMMON_COLLECTIVE_NCCL_NCCL_COLLECTIVE_H_

#include "common/collective/collective.h"

namespace baton {

// For CudaDevice. Null: built without NCCL.
const CollectiveTable* NcclCollectives();

}  // namespace baton

#endif  // BATON_COMMON_COLLECTIVE_NCCL_NCCL_COLLECTIVE_H_
