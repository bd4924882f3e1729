// SPDX-License-Identifier: Apache-2.0
// Threads and entry points of the volume operators for whole views.
#include <algorithm>
#include <cmath>
#include <memory>
#include <new>

#include "cpu/error.h"
#include "cpu/threads.h"
#include "cpu/volume_prepare.h"
#include "cpu/volume_scatter.h"

namespace {

using licag3d::parallel_for;

bool usable(const licag3d_grid &grid, const licag3d_views &views) {
  return licag3d::usable_grid(grid) && grid.step_mm == 0 && views.count >= 0 && views.rows >= 0 && views.cols >= 0;
}

int32_t refuse() { return licag3d::fail(LICAG3D_BAD_ARGUMENT, "the grid or the views are malformed"); }

int64_t rays_of(const licag3d_views &views) { return views.count * views.rows * views.cols; }

int64_t chunks_of_view(const licag3d_views &views) {
  return static_cast<int64_t>((views.cols + licag3d::kChunkCols - 1) / licag3d::kChunkCols) *
         ((views.rows + licag3d::kChunkRows - 1) / licag3d::kChunkRows);
}

// About how many rays run mainly along x: all of a view if that of its middle does.
int64_t rays_along_x(const licag3d_grid &grid, const licag3d_views &views) {
  int64_t count = 0;
  for (int64_t v = 0; v < views.count; ++v) {
    double way[3];
    for (int a = 0; a < 3; ++a) {
      const double *frame = views.frames + 12 * v + a;
      way[a] = std::fabs(frame[3] + 0.5 * (views.cols - 1) * frame[6] + 0.5 * (views.rows - 1) * frame[9]) /
               grid.voxel_size_mm[a];
    }
    count += way[0] >= way[1] && way[0] >= way[2];
  }
  return count * views.rows * views.cols;
}

}  // namespace

extern "C" {

int32_t licag3d_project_views(const licag3d_run *run, const licag3d_grid *grid, const licag3d_views *views,
                              const void *volume, float *projections) {
  if (!usable(*grid, *views)) return refuse();
  const auto work = LICAG3D_SELECT_ISA(project_views);
  const int64_t rays = rays_of(*views), voxel_bytes = grid->flags & LICAG3D_HALF ? 2 : 4;
  if (rays == 0) return LICAG3D_OK;
  licag3d::PreparedVolume prepared(*run, *grid, rays, rays_along_x(*grid, *views));
  for (int64_t b = 0; b < grid->batch; ++b) {
    licag3d::ProjectTask task = {};
    task.grid = grid;
    task.views = views;
    prepared.set(static_cast<const char *>(volume) + b * grid->stride_batch * voxel_bytes, task);
    task.projections = projections + b * rays;
    parallel_for(views->count * chunks_of_view(*views), 1, run->threads,
                 [&](int64_t begin, int64_t end) { work(task, begin, end); });
  }
  return LICAG3D_OK;
}

int32_t licag3d_backproject_views(const licag3d_run *run, const licag3d_grid *grid, const licag3d_views *views,
                                  const float *projections, float *volume) {
  if (!usable(*grid, *views)) return refuse();
  const int64_t rays = rays_of(*views);
  if (rays == 0) return LICAG3D_OK;
  constexpr int64_t kRays = licag3d::kChunkRows * licag3d::kChunkCols;
  const auto pack = LICAG3D_SELECT_ISA(pack_views);
  licag3d::ScatterTask task = {};
  task.grid = grid;
  task.views = views;
  task.slots = licag3d::slots_for(kRays);
  return licag3d::scatter(
      *run, task, views->count * chunks_of_view(*views), kRays, rays, rays_along_x(*grid, *views), projections, volume,
      [&](const licag3d::ScatterTask &here, int64_t begin, int64_t end) { pack(here, begin, end); });
}

int32_t licag3d_project_views_grad_frames(const licag3d_run *run, const licag3d_grid *grid, const licag3d_views *views,
                                          const void *volume, const float *weights, double *grad_frames) {
  if (!usable(*grid, *views)) return refuse();
  std::fill_n(grad_frames, 12 * views->count, 0.0);
  const auto work = LICAG3D_SELECT_ISA(grad_views);
  const int64_t rays = rays_of(*views), voxel_bytes = grid->flags & LICAG3D_HALF ? 2 : 4;
  if (rays == 0) return LICAG3D_OK;
  licag3d::PreparedVolume prepared(*run, *grid, rays, rays_along_x(*grid, *views));
  const int64_t per_view = chunks_of_view(*views), chunks = views->count * per_view;
  std::unique_ptr<double[]> parts(new (std::nothrow) double[12 * chunks]);
  if (!parts) return licag3d::fail(LICAG3D_OUT_OF_MEMORY, "no memory for the sums of the views");
  for (int64_t b = 0; b < grid->batch; ++b) {
    licag3d::ProjectTask task = {};
    task.grid = grid;
    task.views = views;
    prepared.set(static_cast<const char *>(volume) + b * grid->stride_batch * voxel_bytes, task);
    task.weights = weights + b * rays;
    task.grad_frames = parts.get();
    std::fill_n(parts.get(), 12 * chunks, 0.0);
    parallel_for(chunks, 1, run->threads, [&](int64_t begin, int64_t end) { work(task, begin, end); });
    // Chunk by chunk, so that the sum does not depend on the number of threads.
    for (int64_t i = 0; i < 12 * chunks; ++i) grad_frames[i / (12 * per_view) * 12 + i % 12] += parts[i];
  }
  return LICAG3D_OK;
}

}  // extern "C"
