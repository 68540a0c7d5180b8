// A group of threads of this process that compute on the CPU.
//
// Each rank adds up one slice for all, in the order of the ranks: equal bits everywhere, whoever
// comes first.
#ifndef BATON_COMMON_COLLECTIVE_THREAD_COLLECTIVE_H_
#define BATON_COMMON_COLLECTIVE_THREAD_COLLECTIVE_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "common/collective/collective.h"

namespace baton {

// By rank. REQUIRES: size > 0.
std::vector<std::unique_ptr<Collective>> MakeThreadCollectives(uint32_t size);

}  // namespace baton

#endif  // BATON_COMMON_COLLECTIVE_THREAD_COLLECTIVE_H_
