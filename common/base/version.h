// The version of this build.
#ifndef BATON_COMMON_BASE_VERSION_H_
#define BATON_COMMON_BASE_VERSION_H_

namespace baton {

// "0.1.0"
const char* Version();

}  // namespace baton

#endif  // BATON_COMMON_BASE_VERSION_H_
