#include "common/collective/nccl/nccl_collective.h"

namespace baton {

const CollectiveTable* NcclCollectives() { return nullptr; }

}  // namespace baton
