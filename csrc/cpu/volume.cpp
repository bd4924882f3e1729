// SPDX-License-Identifier: Apache-2.0
// Threads and entry points of the volume operators on the CPU.
#include <algorithm>
#include <memory>
#include <new>

#include "cpu/error.h"
#include "cpu/threads.h"
#include "cpu/volume_tasks.h"

namespace {

using licag3d::kChunkPackets;
using licag3d::kChunkRays;
using licag3d::parallel_for;

// Rays packed at a time in the transpose: bounds its memory to some 10 MB whatever the number of rays.
constexpr int64_t kBlockRays = 1 << 17;
// Planes per slab: few enough to stay in the cache of a core, many enough that looking through the packets costs little.
constexpr int kSlab = 8;

bool usable(const licag3d_grid *grid, const licag3d_rays *rays) {
  if (grid->batch < 0 || rays->count < 0 || rays->origin_group < 1) return false;
  double voxels = 1;
  for (int a = 0; a < 3; ++a) {
    if (grid->size[a] < 1 || !(grid->voxel_size_mm[a] > 0)) return false;
    voxels *= grid->size[a];
  }
  return voxels < 2147483648.0 && grid->step_mm >= 0;
}

int32_t refuse() { return licag3d::fail(LICAG3D_BAD_ARGUMENT, "the grid or the rays are malformed"); }

}  // namespace

extern "C" {

int32_t licag3d_project_volume(const licag3d_run *run, const licag3d_grid *grid, const licag3d_rays *rays,
                               const float *volume, float *projections) {
  if (!usable(grid, rays)) return refuse();
  const auto work = grid->step_mm > 0 ? LICAG3D_SELECT_ISA(project_march) : LICAG3D_SELECT_ISA(project_planes);
  for (int64_t b = 0; b < grid->batch; ++b) {
    licag3d::ProjectTask task = {};
    task.grid = grid;
    task.rays = rays;
    task.volume = volume + b * grid->stride_batch;
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
  for (int64_t b = 0; b < grid->batch; ++b) {
    licag3d::ProjectTask task = {};
    task.grid = grid;
    task.rays = rays;
    task.volume = volume + b * grid->stride_batch;
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
  const bool march = grid->step_mm > 0;
  const auto pack = LICAG3D_SELECT_ISA(pack);
  const auto planes = LICAG3D_SELECT_ISA(scatter_planes);
  const auto samples = LICAG3D_SELECT_ISA(scatter_march);
  const int64_t block = std::min(kBlockRays, std::max<int64_t>(rays->count, 1));
  const int64_t chunks = (block + kChunkRays - 1) / kChunkRays;
  const int64_t bytes = chunks * kChunkPackets * LICAG3D_SELECT_ISA(packet_bytes)(march);
  std::unique_ptr<unsigned char[]> packets(new (std::nothrow) unsigned char[bytes]);
  std::unique_ptr<int32_t[]> counts(new (std::nothrow) int32_t[chunks]);
  if (!packets || !counts) return licag3d::fail(LICAG3D_OUT_OF_MEMORY, "no memory for the ray packets");

  for (int64_t b = 0; b < grid->batch; ++b)
    for (int64_t first = 0; first < rays->count; first += block) {
      const int64_t here = std::min(block, rays->count - first);
      licag3d::ScatterTask task = {};
      task.grid = grid;
      task.rays = rays;
      task.projections = projections + b * rays->count;
      task.volume = volume + b * grid->stride_batch;
      task.first_ray = first;
      task.packets = packets.get();
      task.counts = counts.get();
      task.chunks = (here + kChunkRays - 1) / kChunkRays;
      parallel_for(here, kChunkRays, run->threads,
                   [&](int64_t begin, int64_t end) { pack(task, first + begin, first + end); });
      if (march) {
        parallel_for(grid->size[2], kSlab, run->threads, [&](int64_t begin, int64_t end) {
          samples(task, static_cast<int>(begin), static_cast<int>(end));
        });
      } else {
        // One axis after another: planes of two axes share voxels.
        for (int axis = 0; axis < 3; ++axis)
          parallel_for(grid->size[axis], kSlab, run->threads, [&](int64_t begin, int64_t end) {
            planes(task, axis, static_cast<int>(begin), static_cast<int>(end));
          });
      }
    }
  return LICAG3D_OK;
}

}  // extern "C"
