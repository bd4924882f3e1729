// SPDX-License-Identifier: Apache-2.0
// project_tubes on CUDA: one thread per ray; the segments pass through shared memory, a batch at a time.
#include "core/tubes.h"
#include "cuda/launch.cuh"
#include "include/licag3d_tubes.h"

LICAG3D_CORE_BEGIN
namespace {

using ::licag3d::kThreads;

__global__ void tubes_kernel(licag3d_rays rays, const double *segments, int64_t segment_count, float *path_mm) {
  __shared__ double ball[kThreads][4];
  const int64_t rounds = (rays.count + static_cast<int64_t>(gridDim.x) * blockDim.x - 1) /
                         (static_cast<int64_t>(gridDim.x) * blockDim.x);
  for (int64_t round = 0; round < rounds; ++round) {
    // Threads past the last ray still help to load segments and meet the barriers.
    const int64_t i = (round * gridDim.x + blockIdx.x) * blockDim.x + threadIdx.x;
    const bool active = i < rays.count;
    const RayMm raw = load_ray(rays, active ? i : 0);
    const bool finite = is_finite(raw);
    const UnitRay ray = unit_ray(raw);
    IntervalUnion<64> pieces;
    bool room = true;
    for (int64_t start = 0; start < segment_count; start += kThreads) {
      __syncthreads();
      const int64_t mine = start + threadIdx.x;
      if (mine < segment_count) bounding_ball(segments + 8 * mine, ball[threadIdx.x], &ball[threadIdx.x][3]);
      __syncthreads();
      const int here = static_cast<int>(segment_count - start < kThreads ? segment_count - start : kThreads);
      for (int k = 0; active && finite && room && k < here; ++k)
        if (ray_meets_ball(ray, ball[k], ball[k][3])) room = pieces.add(segment_interval(ray, segments + 8 * (start + k)));
    }
    if (!active) continue;
    if (!finite)
      path_mm[i] = NAN;
    else if (room)
      path_mm[i] = static_cast<float>(pieces.length());
    else
      path_mm[i] = static_cast<float>(
          swept_length(segment_count, [&](int64_t k) { return segment_interval(ray, segments + 8 * k); }));
  }
}

}  // namespace
LICAG3D_CORE_END

extern "C" int32_t licag3d_cuda_project_tubes(const licag3d_run *run, const licag3d_rays *rays, const double *segments,
                                              int64_t segment_count, float *path_mm) {
  if (rays->count > 0)
    licag3d::LICAG3D_ISA::tubes_kernel<<<licag3d::blocks_for(rays->count), licag3d::kThreads, 0,
                                         licag3d::stream_of(run)>>>(*rays, segments, segment_count, path_mm);
  return licag3d::cuda_status();
}
