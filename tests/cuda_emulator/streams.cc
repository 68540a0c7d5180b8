#include "tests/cuda_emulator/streams.h"

#include <utility>

#include "tests/cuda_emulator/failures.h"
#include "tests/cuda_emulator/runtime.h"

namespace baton::emulation {

void Stream::Submit(Operation operation) {
  if (recording_ != nullptr) {
    recording_->operations.push_back(std::move(operation));
    if (recording_->origin != this) recording_->unjoined.insert(this);
    return;
  }
  waiting_.push_back(std::move(operation));
  ++submitted_;
  NotifyOthers();
}

void Stream::RunUntil(uint64_t position) {
  while (done_ < position) {
    if (running_) {
      WaitForOthers();
      continue;
    }
    if (waiting_.empty()) return;
    const Operation operation = std::move(waiting_.front());
    waiting_.pop_front();
    running_ = true;
    if (DoesNext(device_)) operation();  // It may wait for another stream, but not for this one.
    running_ = false;
    ++done_;
    NotifyOthers();
  }
}

void Stream::Record(const std::shared_ptr<Event>& event) {
  if (recording_ == nullptr) {
    Submit([event] { event->time = std::chrono::steady_clock::now(); });
  }
  event->stream = shared_from_this();
  event->position = submitted_;
  event->captured = recording_ != nullptr;
  event->recording = recording_;
}

cudaError_t Stream::WaitFor(const Event& event) {
  if (event.stream == nullptr) return cudaSuccess;
  if (!event.captured) {
    if (recording_ != nullptr) return cudaErrorStreamCaptureIsolation;
    Submit([stream = event.stream, position = event.position] { stream->RunUntil(position); });
    return cudaSuccess;
  }
  const std::shared_ptr<Recording> recording = event.recording.lock();
  if (recording == nullptr) return cudaErrorCapturedEvent;  // Its graph is complete.
  if (recording_ == nullptr) {
    recording_ = recording;
    recording->streams.insert(this);
  }
  if (recording_ != recording) return cudaErrorStreamCaptureMerge;
  if (recording->origin == this) {
    recording->unjoined.erase(event.stream.get());
  } else {
    recording->unjoined.insert(this);
  }
  return cudaSuccess;
}

cudaError_t Stream::BeginRecording() {
  if (recording_ != nullptr) return cudaErrorIllegalState;
  recording_ = std::make_shared<Recording>();
  recording_->origin = this;
  recording_->streams = {this};
  return cudaSuccess;
}

cudaError_t Stream::EndRecording(std::shared_ptr<Recording>* recording) {
  if (recording_ == nullptr || recording_->origin != this) return cudaErrorIllegalState;
  *recording = recording_;
  for (Stream* stream : (*recording)->streams) stream->recording_ = nullptr;
  if ((*recording)->unjoined.empty()) return cudaSuccess;
  recording->reset();
  return cudaErrorStreamCaptureUnjoined;
}

}  // namespace baton::emulation
