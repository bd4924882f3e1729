// SPDX-License-Identifier: Apache-2.0
#include "cpu/threads.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

namespace licag3d {
namespace {

thread_local bool t_inside = false;

struct Job {
  int64_t count = 0;
  int64_t grain = 1;
  void (*body)(void *, int64_t, int64_t) = nullptr;
  void *context = nullptr;
  std::atomic<int64_t> next{0};

  void work() {
    t_inside = true;
    for (;;) {
      const int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
      if (begin >= count) break;
      body(context, begin, std::min(begin + grain, count));
    }
    t_inside = false;
  }
};

class Pool {
 public:
  explicit Pool(pid_t owner) : owner_(owner) {}
  pid_t owner() const { return owner_; }

  void run(Job &job, int helpers) {
    std::lock_guard<std::mutex> one_job_at_a_time(call_);
    grow(helpers);
    {
      std::lock_guard<std::mutex> lock(state_);
      job_ = &job;
      wanted_ = std::min(helpers, size_);
    }
    wake_.notify_all();
    job.work();
    std::unique_lock<std::mutex> lock(state_);
    wanted_ = 0;  // helpers that have not started yet need not
    done_.wait(lock, [this] { return active_ == 0; });
    job_ = nullptr;
  }

 private:
  void grow(int helpers) {
    while (size_ < helpers) {
      try {
        // Detached: the pool lives as long as the process, and joining at exit could wait for a thread that a fork lost.
        std::thread([this] { loop(); }).detach();
      } catch (const std::system_error &) {
        return;  // no more threads to be had: go on with those there are
      }
      ++size_;
    }
  }

  void loop() {
    std::unique_lock<std::mutex> lock(state_);
    for (;;) {
      wake_.wait(lock, [this] { return job_ != nullptr && wanted_ > 0; });
      --wanted_;
      ++active_;
      Job *job = job_;
      lock.unlock();
      job->work();
      lock.lock();
      if (--active_ == 0) done_.notify_all();
    }
  }

  const pid_t owner_;
  std::mutex call_, state_;
  std::condition_variable wake_, done_;
  Job *job_ = nullptr;
  int size_ = 0, wanted_ = 0, active_ = 0;
};

// After a fork the threads are gone; the child makes its own pool and leaves the old one untouched.
Pool &pool() {
  static std::atomic<Pool *> current{nullptr};
  const pid_t self = getpid();
  Pool *found = current.load(std::memory_order_acquire);
  while (found == nullptr || found->owner() != self) {
    Pool *fresh = new Pool(self);
    if (current.compare_exchange_strong(found, fresh)) return *fresh;
    delete fresh;
  }
  return *found;
}

}  // namespace

void parallel_for_raw(int64_t count, int64_t grain, int threads, void (*body)(void *, int64_t, int64_t), void *context) {
  if (count <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  if (threads <= 0) threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  const int64_t chunks = (count + grain - 1) / grain;
  const int helpers = static_cast<int>(std::min<int64_t>(std::min(threads, 1024) - 1, chunks - 1));
  Job job;
  job.count = count;
  job.grain = grain;
  job.body = body;
  job.context = context;
  if (helpers <= 0 || t_inside) {
    const bool inside = t_inside;
    job.work();
    t_inside = inside;
    return;
  }
  pool().run(job, helpers);
}

}  // namespace licag3d
