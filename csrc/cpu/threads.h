// SPDX-License-Identifier: Apache-2.0
// A small pool of threads, grown on demand, with chunks handed out one at a time.
#pragma once

#include <cstdint>

namespace licag3d {

// body(context, begin, end) on chunks of at most `grain` of [0, count), on `threads` threads (0: all cores) with the
// caller among them. Chunks always start at multiples of grain, whatever the number of threads, so work that depends only
// on its chunk gives the same bits on any number. A call from inside body runs on the calling thread alone.
// body must not throw.
void parallel_for_raw(int64_t count, int64_t grain, int threads, void (*body)(void *, int64_t, int64_t), void *context);

template <class Body>
void parallel_for(int64_t count, int64_t grain, int threads, Body &&body) {
  parallel_for_raw(
      count, grain, threads,
      [](void *context, int64_t begin, int64_t end) { (*static_cast<Body *>(context))(begin, end); }, &body);
}

}  // namespace licag3d
