// SPDX-License-Identifier: Apache-2.0
// Threads and entry points of the volume operators on the CPU.
#include <algorithm>
#include <atomic>
#include <cmath>
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

// A copy of the volume with x and y exchanged, in tiles that fit the first cache.
void turn(const licag3d_grid &grid, const float *volume, float *turned, int threads) {
  const int nx = grid.size[0], ny = grid.size[1];
  parallel_for(grid.size[2], 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t z = begin; z < end; ++z) {
      const float *from = volume + z * grid.stride[2];
      float *to = turned + z * nx * ny;
      for (int y0 = 0; y0 < ny; y0 += 16)
        for (int x0 = 0; x0 < nx; x0 += 16)
          for (int x = x0; x < std::min(x0 + 16, nx); ++x)
            for (int y = y0; y < std::min(y0 + 16, ny); ++y)
              to[static_cast<int64_t>(x) * ny + y] = from[y * grid.stride[1] + x * grid.stride[0]];
    }
  });
}

int32_t refuse() { return licag3d::fail(LICAG3D_BAD_ARGUMENT, "the grid or the rays are malformed"); }

}  // namespace

extern "C" {

int32_t licag3d_project_volume(const licag3d_run *run, const licag3d_grid *grid, const licag3d_rays *rays,
                               const float *volume, float *projections) {
  if (!usable(grid, rays)) return refuse();
  const auto work = grid->step_mm > 0 ? LICAG3D_SELECT_ISA(project_march) : LICAG3D_SELECT_ISA(project_planes);
  // Turning the volume pays when each voxel is then read several times. Without memory for it we go on without.
  std::unique_ptr<float[]> turned;
  const int64_t voxels = static_cast<int64_t>(grid->size[0]) * grid->size[1] * grid->size[2];
  if (grid->step_mm == 0 && count_along_x(*grid, *rays, run->threads) * grid->size[0] > 2 * voxels)
    turned.reset(new (std::nothrow) float[voxels]);
  for (int64_t b = 0; b < grid->batch; ++b) {
    licag3d::ProjectTask task = {};
    task.grid = grid;
    task.rays = rays;
    task.volume = volume + b * grid->stride_batch;
    if (turned) turn(*grid, task.volume, turned.get(), run->threads);
    task.turned = turned.get();
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
