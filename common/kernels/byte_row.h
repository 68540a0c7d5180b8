// Rows of weights as numbers of 8 bits with a scale, the same for every device; where the bytes go
// is the caller's business. Pure; any thread.
#ifndef BATON_COMMON_KERNELS_BYTE_ROW_H_
#define BATON_COMMON_KERNELS_BYTE_ROW_H_

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "common/kernels/packed_weight.h"
#include "common/tensor/number_formats.h"

namespace baton {

// The first number that is not finite.
inline std::optional<float> FindMisfit(std::span<const float> row) {
  const auto found =
      std::find_if_not(row.begin(), row.end(), [](float x) { return std::isfinite(x); });
  return found == row.end() ? std::nullopt : std::optional<float>(*found);
}

// Calls store(i, byte) for each number of the row, int8_t or the bits of E4M3, and returns the
// scale. REQUIRES: kInt8 or kFp8; all numbers are finite.
template <typename Store>
float RoundToBytes(std::span<const float> row, WeightForm form, const Store& store) {
  const bool fp8 = form == WeightForm::kFp8;
  const float most = fp8 ? kE4m3Highest : 127.0f;
  float highest = 0.0f;
  for (const float x : row) highest = std::max(highest, std::abs(x));
  const float factor = RowFactor(highest, most);
  for (size_t i = 0; i < row.size(); ++i) {
    const float x = row[i] * factor;
    if (fp8) {
      store(i, static_cast<int8_t>(F32ToE4m3(x)));
    } else {
      const auto number = static_cast<int32_t>(std::nearbyint(x));
      store(i, static_cast<int8_t>(std::clamp(number, -127, 127)));
    }
  }
  return highest / most;
}

}  // namespace baton

#endif  // BATON_COMMON_KERNELS_BYTE_ROW_H_
