#include "common/transport/testing/faulty_transport.h"

#include <random>

namespace baton {
namespace {

class FaultyDelivery final : public DeliveryPolicy {
 public:
  explicit FaultyDelivery(const FaultOptions& options) : options_(options), random_(options.seed) {}

  uint64_t HeaderDelay(const std::string& /*from*/, const std::string& /*to*/) override {
    return Late();
  }
  uint64_t PayloadDelay(const std::string& /*from*/, const std::string& /*to*/) override {
    return Draw(options_.never_fraction) ? kNeverDelivered : Late();
  }
  bool Breaks(const std::string& /*from*/, const std::string& /*to*/) override {
    return Draw(options_.break_fraction);
  }

 private:
  // Arithmetic of its own: the standard distributions differ between libraries.
  bool Draw(double fraction) { return static_cast<double>(random_() >> 11) * 0x1.0p-53 < fraction; }
  uint64_t Late() {
    return Draw(options_.late_fraction) ? random_() % (options_.late_steps_max + 1) : 0;
  }

  const FaultOptions options_;
  std::mt19937_64 random_;
};

}  // namespace

std::unique_ptr<DeliveryPolicy> MakeFaultyDelivery(const FaultOptions& options) {
  return std::make_unique<FaultyDelivery>(options);
}

}  // namespace baton
