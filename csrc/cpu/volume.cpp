// SPDX-License-Identifier: Apache-2.0
// Threads and entry points of the volume operators on the CPU.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <new>

#include "cpu/error.h"
#include "cpu/threads.h"
#include "cpu/volume_prepare.h"
#include "cpu/volume_scatter.h"
#include "cpu/volume_tasks.h"

namespace {

using licag3d::kChunkRays;
using licag3d::parallel_for;

// How many rays run mainly along x. Their planes hold y and z, whose neighbours are far apart in memory.
int64_t count_along_x(const licag3d_grid &grid, const licag3d_rays &rays, int threads) {
  std::atomic<int64_t> total{0};
  parallel_for(rays.count, 1 << 14, threads, [&](int64_t begin, int64_t end) {
    int64_t here = 0;
    const double x = 1 / grid.voxel_size_mm[0], y = 1 / grid.voxel_size_mm[1], z = 1 / grid.voxel_size_mm[2];
    for (int64_t i = begin; i < end; ++i) {
      const double *wide = static_cast<const double *>(rays.direction) + 3 * i;
      const float *narrow = static_cast<const float *>(rays.direction) + 3 * i;
      const double dx = rays.is_double ? wide[0] : narrow[0], dy = rays.is_double ? wide[1] : narrow[1],
                   dz = rays.is_double ? wide[2] : narrow[2];
      here += std::fabs(dx * x) >= std::fabs(dy * y) && std::fabs(dx * x) >= std::fabs(dz * z);
    }
    total += here;
  });
  return total;
}

bool usable(const licag3d_grid *grid, const licag3d_rays *rays) {
  return licag3d::usable_grid(*grid) && rays->count >= 0 && rays->origin_group >= 1;
}

int32_t refuse() { return licag3d::fail(LICAG3D_BAD_ARGUMENT, "the grid or the rays are malformed"); }

}  // namespace

extern "C" {

int32_t licag3d_project_volume(const licag3d_run *run, const licag3d_grid *grid, const licag3d_rays *rays,
                               const float *volume, float *projections) {
  if (!usable(grid, rays)) return refuse();
  const auto work = grid->step_mm > 0 ? LICAG3D_SELECT_ISA(project_march) : LICAG3D_SELECT_ISA(project_planes);
  const int64_t along_x = grid->step_mm == 0 ? count_along_x(*grid, *rays, run->threads) : 0;
  licag3d::PreparedVolume prepared(*run, *grid, rays->count, along_x);
  for (int64_t b = 0; b < grid->batch; ++b) {
    licag3d::ProjectTask task = {};
    task.grid = grid;
    task.rays = rays;
    prepared.set(volume + b * grid->stride_batch, task);
    task.projections = projections + b * rays->count;
    parallel_for(rays->count, kChunkRays, run->threads, [&](int64_t begin, int64_t end) { work(task, begin, end); });
  }
  return LICAG3D_OK;
}

int32_t licag3d_project_volume_grad_rays(const licag3d_run *run, const licag3d_grid *grid, const licag3d_rays *rays,
                                         const float *volume, const float *weights, float *grad_origin,
                                         float *grad_direction) {
  if (!usable(grid, rays)) return refuse();
  std::fill_n(grad_origin, 3 * rays->count, 0.0f);
  std::fill_n(grad_direction, 3 * rays->count, 0.0f);
  const auto work = grid->step_mm > 0 ? LICAG3D_SELECT_ISA(grad_rays_march) : LICAG3D_SELECT_ISA(grad_rays_planes);
  const int64_t along_x = grid->step_mm == 0 ? count_along_x(*grid, *rays, run->threads) : 0;
  licag3d::PreparedVolume prepared(*run, *grid, rays->count, along_x);
  for (int64_t b = 0; b < grid->batch; ++b) {
    licag3d::ProjectTask task = {};
    task.grid = grid;
    task.rays = rays;
    prepared.set(volume + b * grid->stride_batch, task);
    task.weights = weights + b * rays->count;
    task.grad_origin = grad_origin;
    task.grad_direction = grad_direction;
    parallel_for(rays->count, kChunkRays, run->threads, [&](int64_t begin, int64_t end) { work(task, begin, end); });
  }
  return LICAG3D_OK;
}

int32_t licag3d_backproject(const licag3d_run *run, const licag3d_grid *grid, const licag3d_rays *rays,
                            const float *projections, float *volume) {
  if (!usable(grid, rays)) return refuse();
  const int64_t chunks = (rays->count + kChunkRays - 1) / kChunkRays;
  const int64_t along_x = grid->step_mm == 0 ? count_along_x(*grid, *rays, run->threads) : 0;
  const auto pack = LICAG3D_SELECT_ISA(pack_rays);
  licag3d::ScatterTask task = {};
  task.grid = grid;
  task.rays = rays;
  task.slots = licag3d::slots_for(kChunkRays);
  return licag3d::scatter(*run, task, chunks, kChunkRays, rays->count, along_x, projections, volume,
                          [&](const licag3d::ScatterTask &here, int64_t begin, int64_t end) {
                            pack(here, begin * kChunkRays, std::min(end * kChunkRays, rays->count));
                          });
}

}  // extern "C"
