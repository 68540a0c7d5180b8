// Stacks of fibers, kept for the next fiber; and what AddressSanitizer wants to know of a switch
// from one to another.
#ifndef BATON_TESTS_CUDA_EMULATOR_FIBER_STACKS_H_
#define BATON_TESTS_CUDA_EMULATOR_FIBER_STACKS_H_

#include <boost/context/fiber.hpp>
#include <boost/context/protected_fixedsize_stack.hpp>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace baton::emulation {

// A StackAllocator of Boost.Context. Copies share the stacks; they are never given back.
class KeptStacks {
 public:
  boost::context::stack_context allocate() {
    std::vector<boost::context::stack_context>& kept = Kept();
    if (kept.empty()) return boost::context::protected_fixedsize_stack(kBytes).allocate();
    const boost::context::stack_context stack = kept.back();
    kept.pop_back();
    return stack;
  }
  void deallocate(boost::context::stack_context& stack) { Kept().push_back(stack); }

 private:
#if defined(__SANITIZE_ADDRESS__)
  static constexpr size_t kBytes = size_t{512} << 10;
#else
  static constexpr size_t kBytes = size_t{64} << 10;
#endif
  static std::vector<boost::context::stack_context>& Kept() {
    static auto* const kept = new std::vector<boost::context::stack_context>;
    return *kept;
  }
};

}  // namespace baton::emulation

#endif  // BATON_TESTS_CUDA_EMULATOR_FIBER_STACKS_H_
