// Streams, events and recorded graphs of an emulated GPU.
//
// Nothing is done before somebody waits for it: an operation runs when its stream, or an event
// behind it, is waited for, on the thread that waits. So what a program reads without having waited
// is what was there before, always, and a missing wait cannot go unnoticed as it may on a GPU.
//
// A GPU that is lost does nothing more: what is submitted to it is over as soon as it is waited
// for.
//
// Not thread-safe: the runtime holds one lock. An operation may give it up meanwhile, with
// WaitForOthers(); its stream then waits for it.
#ifndef BATON_TESTS_CUDA_EMULATOR_STREAMS_H_
#define BATON_TESTS_CUDA_EMULATOR_STREAMS_H_

#include <driver_types.h>

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <set>
#include <vector>

namespace baton::emulation {

using Operation = std::function<void()>;

class Stream;

// What is recorded instead of done, in an order in which it may be done.
struct Recording {
  std::vector<Operation> operations;
  Stream* origin = nullptr;
  std::set<Stream*> streams;   // That record; the origin is one of them.
  std::set<Stream*> unjoined;  // That have operations which the origin does not wait for.
};

struct Event {
  // When it is complete: the stream has done so many operations. Null: it was never recorded.
  std::shared_ptr<Stream> stream;
  uint64_t position = 0;
  bool captured = false;  // It was recorded into a graph: this one.
  std::weak_ptr<Recording> recording;
  std::chrono::steady_clock::time_point time;
};

class Stream : public std::enable_shared_from_this<Stream> {
 public:
  explicit Stream(int device) : device_(device) {}

  int device() const { return device_; }
  void Submit(Operation operation);
  // Does what was submitted first, up to `position` operations in all.
  void RunUntil(uint64_t position);
  void RunAll() { RunUntil(submitted_); }
  void RunNext() { RunUntil(done_ + 1); }
  bool idle() const { return done_ == submitted_; }
  bool running() const { return running_; }
  bool recording() const { return recording_ != nullptr; }

  void Record(const std::shared_ptr<Event>& event);
  cudaError_t WaitFor(const Event& event);

  cudaError_t BeginRecording();
  // Null and an error if it is not complete.
  cudaError_t EndRecording(std::shared_ptr<Recording>* recording);

 private:
  const int device_;
  std::deque<Operation> waiting_;
  uint64_t submitted_ = 0;
  uint64_t done_ = 0;
  bool running_ = false;
  std::shared_ptr<Recording> recording_;
};

}  // namespace baton::emulation

#endif  // BATON_TESTS_CUDA_EMULATOR_STREAMS_H_
