#include "router/text_pool.h"

#include <utility>

#include "common/base/check.h"

namespace baton {

TextPool::TextPool(const TextPoolOptions& options) : options_(options) {
  BATON_CHECK(options.threads > 0);
  for (int i = 0; i < options.threads; ++i) {
    const bool takes_long = i > 0 || options.threads == 1;
    threads_.emplace_back([this, takes_long] { Work(takes_long); });
  }
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
  Queue& queue = bytes <= options_.short_bytes_max ? short_ : long_;
  const bool fits = queue.jobs.size() < options_.jobs_max &&
                    (queue.jobs.empty() || queue.bytes + bytes <= options_.bytes_max);
  if (!fits) {
    return absl::ResourceExhaustedError("the router has too many texts to tokenize");
  }
  queue.jobs.push_back({.arrival = arrivals_++, .bytes = bytes, .job = std::move(job)});
  queue.bytes += bytes;
  return absl::OkStatus();
}

TextPool::Queue* TextPool::Next(bool takes_long) {
  if (!takes_long || long_.jobs.empty()) return short_.jobs.empty() ? nullptr : &short_;
  if (short_.jobs.empty()) return &long_;
  return short_.jobs.front().arrival < long_.jobs.front().arrival ? &short_ : &long_;
}

void TextPool::Work(bool takes_long) {
  for (;;) {
    Waiting next;
    {
      absl::MutexLock lock(&mutex_);
      const auto has_work = [this, takes_long]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return stopping_ || Next(takes_long) != nullptr;
      };
      mutex_.Await(absl::Condition(&has_work));
      Queue* const queue = Next(takes_long);
      if (queue == nullptr) return;
      next = std::move(queue->jobs.front());
      queue->jobs.pop_front();
      queue->bytes -= next.bytes;
    }
    next.job();
  }
}

}  // namespace baton
