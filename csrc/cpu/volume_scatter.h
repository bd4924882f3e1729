// SPDX-License-Identifier: Apache-2.0
// The order of work of the transpose, the same for lists of rays and for views.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>

#include "cpu/error.h"
#include "cpu/threads.h"
#include "cpu/volume_prepare.h"

namespace licag3d {

// Rays packed at a time: bounds the memory for packets to some 12 MB whatever the number of rays.
constexpr int64_t kBlockRays = 1 << 18;
// Planes per slab: few enough to stay in the cache of a core, many enough that looking through the packets costs little.
constexpr int kSlab = 8;

// Packs `chunks` chunks of at most chunk_rays rays by pack(task, begin, end), a block of them at a time, and adds them to
// every volume of the batch. Threads own slabs of planes, and within a slab packets come in their order: no atomics, and
// the same bits on any number of threads.
template <class Pack>
int32_t scatter(const licag3d_run &run, ScatterTask task, int64_t chunks, int64_t chunk_rays, int64_t rays,
                int64_t rays_along_x, const float *projections, float *volume, Pack &&pack) {
  const licag3d_grid &grid = *task.grid;
  const bool march = grid.step_mm > 0;
  const auto planes = LICAG3D_SELECT_ISA(scatter_planes);
  const auto samples = LICAG3D_SELECT_ISA(scatter_march);
  const int64_t block = std::min(std::max<int64_t>(kBlockRays / chunk_rays, 1), std::max<int64_t>(chunks, 1));
  Buffer packets = large_buffer(block * task.slots * LICAG3D_SELECT_ISA(packet_bytes)(march));
  std::unique_ptr<int32_t[]> counts(new (std::nothrow) int32_t[block]);
  if (!packets || !counts) return fail(LICAG3D_OUT_OF_MEMORY, "no memory for the ray packets");
  task.packets = static_cast<unsigned char *>(packets.get());
  task.counts = counts.get();
  // Rays along x meet rows of y, which are adjacent only in a turned volume. It pays when each voxel is added to often.
  const int64_t voxels = static_cast<int64_t>(grid.size[0]) * grid.size[1] * grid.size[2];
  Buffer turned;
  if (rays_along_x * grid.size[0] > voxels && grid.stride[0] == 1) turned = large_buffer(voxels * 4);
  task.turned = static_cast<float *>(turned.get());
  for (int64_t b = 0; b < grid.batch; ++b) {
    task.projections = projections + b * rays;
    task.volume = volume + b * grid.stride_batch;
    if (turned) std::memset(turned.get(), 0, voxels * 4);
    for (int64_t first = 0; first < chunks; first += block) {
      task.first_chunk = first;
      task.chunks = std::min(block, chunks - first);
      parallel_for(task.chunks, 1, run.threads,
                   [&](int64_t begin, int64_t end) { pack(task, first + begin, first + end); });
      if (march) {
        parallel_for(grid.size[2], kSlab, run.threads, [&](int64_t begin, int64_t end) {
          samples(task, static_cast<int>(begin), static_cast<int>(end));
        });
        continue;
      }
      // One axis after another: planes of two axes share voxels.
      for (int axis = 0; axis < 3; ++axis)
        parallel_for(grid.size[axis], kSlab, run.threads, [&](int64_t begin, int64_t end) {
          planes(task, axis, static_cast<int>(begin), static_cast<int>(end));
        });
    }
    if (turned) {
      const auto add = LICAG3D_SELECT_ISA(add_turned);
      parallel_for(grid.size[2], 1, run.threads, [&](int64_t begin, int64_t end) {
        for (int64_t z = begin; z < end; ++z) add(grid, task.turned, static_cast<int>(z), task.volume);
      });
    }
  }
  return LICAG3D_OK;
}

}  // namespace licag3d
