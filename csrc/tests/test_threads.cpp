// SPDX-License-Identifier: Apache-2.0
#include "cpu/threads.h"

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>
#include <vector>

#include "check.h"

namespace {

int64_t sum_of(int64_t count, int64_t grain, int threads) {
  std::atomic<int64_t> sum{0};
  licag3d::parallel_for(count, grain, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) sum += i;
  });
  return sum;
}

}  // namespace

int main() {
  for (int threads : {1, 2, 3, 7, 0})
    for (int64_t count : {0, 1, 2, 100, 1001})
      for (int64_t grain : {1, 3, 64, 5000}) CHECK(sum_of(count, grain, threads) == count * (count - 1) / 2);

  // Chunks start at multiples of the grain, and each index is seen once.
  std::vector<std::atomic<int>> seen(1000);
  std::atomic<bool> aligned{true};
  licag3d::parallel_for(1000, 7, 4, [&](int64_t begin, int64_t end) {
    if (begin % 7 != 0 || end - begin > 7) aligned = false;
    for (int64_t i = begin; i < end; ++i) ++seen[i];
  });
  bool once = true;
  for (auto &count : seen) once = once && count == 1;
  CHECK(once);
  CHECK(aligned);

  // A nested call runs on its own thread and ends.
  std::atomic<int64_t> nested{0};
  licag3d::parallel_for(8, 1, 4, [&](int64_t, int64_t) { nested += sum_of(10, 1, 4); });
  CHECK(nested == 8 * 45);

  // Callers on several threads take turns.
  std::atomic<int> right{0};
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; ++c)
    callers.emplace_back([&] {
      for (int i = 0; i < 50; ++i) right += sum_of(500, 3, 3) == 500 * 499 / 2;
    });
  for (auto &caller : callers) caller.join();
  CHECK(right == 200);

  // A forked child has a pool of its own.
  const pid_t child = fork();
  if (child == 0) _exit(sum_of(1000, 1, 4) == 1000 * 999 / 2 ? 0 : 1);
  int status = -1;
  CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
  return check::report();
}
