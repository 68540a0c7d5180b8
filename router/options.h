// The flags of baton_router.
#ifndef BATON_ROUTER_OPTIONS_H_
#define BATON_ROUTER_OPTIONS_H_

#include "absl/status/statusor.h"
#include "common/base/clock.h"
#include "router/router.h"

namespace baton {

// kInvalidArgument, naming the flag.
absl::StatusOr<RouterOptions> RouterOptionsFromFlags();
Duration DrainGraceFromFlags();

}  // namespace baton

#endif  // BATON_ROUTER_OPTIONS_H_
