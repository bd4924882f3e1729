// SPDX-License-Identifier: Apache-2.0
// Threads and entry points of the volume operators on the CPU.
#include "cpu/error.h"
#include "cpu/threads.h"
#include "cpu/volume_tasks.h"

extern "C" int32_t licag3d_project_volume(const licag3d_run *run, const licag3d_grid *grid, const licag3d_rays *rays,
                                          const float *volume, float *projections) {
  const auto task = LICAG3D_SELECT_ISA(project_chunk);
  for (int64_t b = 0; b < grid->batch; ++b) {
    const float *source = volume + b * grid->stride_batch;
    float *out = projections + b * rays->count;
    licag3d::parallel_for(rays->count, 256, run->threads,
                          [&](int64_t begin, int64_t end) { task(*grid, *rays, source, out, begin, end); });
  }
  return LICAG3D_OK;
}
