#include "router/text_pool.h"

#include <utility>

#include "common/base/check.h"

namespace baton {

TextPool::TextPool(const TextPoolOptions& options) : options_(options) {
  BATON_CHECK(options.threads > 0);
  for (int i = 0; i < options.threads; ++i) threads_.emplace_back([this] { Work(); });
}

TextPool::~TextPool() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  for (std::thread& thread : threads_) thread.join();
}

absl::Status TextPool::Run(uint64_t bytes, Job job) {
  absl::MutexLock lock(&mutex_);
  const bool fits = waiting_.size() < options_.jobs_max &&
                    (waiting_.empty() || waiting_bytes_ + bytes <= options_.bytes_max);
  if (!fits) {
    return absl::ResourceExhaustedError("the router has too many texts to tokenize");
  }
  waiting_.push_back({bytes, std::move(job)});
  waiting_bytes_ += bytes;
  return absl::OkStatus();
}

void TextPool::Work() {
  for (;;) {
    Waiting next;
    {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(this, &TextPool::HasWork));
      if (waiting_.empty()) return;
      next = std::move(waiting_.front());
      waiting_.pop_front();
      waiting_bytes_ -= next.bytes;
    }
    next.job();
  }
}

}  // namespace baton
