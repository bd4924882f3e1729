// SPDX-License-Identifier: Apache-2.0
// Threads and entry point of project_tubes on the CPU.
#include <algorithm>
#include <atomic>
#include <memory>
#include <new>

#include "core/tubes.h"
#include "cpu/error.h"
#include "cpu/threads.h"
#include "cpu/tubes_tasks.h"

extern "C" int32_t licag3d_project_tubes(const licag3d_run *run, const licag3d_rays *rays, const double *segments,
                                         int64_t segment_count, float *path_mm) {
  if (rays->count < 0 || rays->origin_group < 1 || segment_count < 0 || segment_count > INT32_MAX)
    return licag3d::fail(LICAG3D_BAD_ARGUMENT, "the rays or the segments are malformed");
  if (rays->count == 0) return LICAG3D_OK;
  std::unique_ptr<double[]> balls(new (std::nothrow) double[4 * segment_count + 1]);
  if (!balls) return licag3d::fail(LICAG3D_OUT_OF_MEMORY, "no memory for the bounding balls");
  double *x = balls.get(), *y = x + segment_count, *z = y + segment_count, *radius = z + segment_count;
  for (int64_t i = 0; i < segment_count; ++i) {
    double centre[3];
    licag3d::LICAG3D_ISA::bounding_ball(segments + 8 * i, centre, radius + i);
    x[i] = centre[0], y[i] = centre[1], z[i] = centre[2];
  }

  licag3d::TubesTask task = {};
  task.rays = rays;
  task.segments = segments;
  task.balls = {x, y, z, radius, segment_count};
  task.path_mm = path_mm;
  // Image order when the numbers fit together, else one long row; either is right, neighbours in a tile are fast.
  int64_t view = rays->origin_group > 1 && rays->count % rays->origin_group == 0 ? rays->origin_group : rays->count;
  task.cols = rays->image_cols > 0 && view % rays->image_cols == 0 ? rays->image_cols : view;
  task.views = rays->count / view;
  task.rows = view / task.cols;
  const bool image = task.rows > 1;
  task.tile_rows = image ? 8 : 1, task.tile_cols = image ? 8 : 64;
  task.block_rows = image ? 64 : 1, task.block_cols = image ? 64 : 4096;
  const int64_t down = (task.rows + task.block_rows - 1) / task.block_rows;
  const int64_t across = (task.cols + task.block_cols - 1) / task.block_cols;

  const auto work = LICAG3D_SELECT_ISA(tubes_block);
  std::atomic<bool> failed{false};
  licag3d::parallel_for(task.views * down * across, 1, run->threads, [&](int64_t begin, int64_t end) {
    std::unique_ptr<int32_t[]> scratch(new (std::nothrow) int32_t[2 * segment_count + 2]);
    if (!scratch) {
      failed = true;
      return;
    }
    for (int64_t i = begin; i < end; ++i) work(task, i / (down * across), i / across % down, i % across, scratch.get());
  });
  return failed ? licag3d::fail(LICAG3D_OUT_OF_MEMORY, "no memory for the lists of segments") : LICAG3D_OK;
}
