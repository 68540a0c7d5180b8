#include "tests/cuda_emulator/streams.h"

#include <utility>

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
    operation();  // It may wait for another stream, but not for this one.
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
  event->recording = recording_;
}

cudaError_t Stream::WaitFor(const Event& event) {
  if (event.stream == nullptr) return cudaSuccess;
  if (event.recording == nullptr) {
    if (recording_ != nullptr) return cudaErrorStreamCaptureIsolation;
    Submit([stream = event.stream, position = event.position] { stream->RunUntil(position); });
    return cudaSuccess;
  }
  if (recording_ == nullptr) {
    recording_ = event.recording;
    recording_->streams.insert(this);
  }
  if (recording_ != event.recording) return cudaErrorStreamCaptureMerge;
  if (recording_->origin == this) {
    recording_->unjoined.erase(event.stream.get());
  } else {
    recording_->unjoined.insert(this);
  }
  return cudaSuccess;
}

cudaError_t Stream::BeginRecording() {
  if (recording_ != nullptr) return cudaErrorIllegalState;
  own_recording_ = std::make_unique<Recording>();
  own_recording_->origin = this;
  own_recording_->streams = {this};
  recording_ = own_recording_.get();
  return cudaSuccess;
}

cudaError_t Stream::EndRecording(std::unique_ptr<Recording>* recording) {
  if (own_recording_ == nullptr) return cudaErrorIllegalState;
  for (Stream* stream : own_recording_->streams) stream->recording_ = nullptr;
  const bool joined = own_recording_->unjoined.empty();
  *recording = std::move(own_recording_);
  if (joined) return cudaSuccess;
  recording->reset();
  return cudaErrorStreamCaptureUnjoined;
}

}  // namespace baton::emulation
