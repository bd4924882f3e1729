// SPDX-License-Identifier: Apache-2.0
#include "cpu/volume_prepare.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <new>

#include "cpu/threads.h"

namespace licag3d {

bool usable_grid(const licag3d_grid &grid) {
  if (grid.batch < 0) return false;
  double voxels = 1;
  for (int a = 0; a < 3; ++a) {
    if (grid.size[a] < 1 || !(grid.voxel_size_mm[a] > 0)) return false;
    voxels *= grid.size[a];
  }
  return voxels < 2147483648.0 && grid.step_mm >= 0;
}

Buffer large_buffer(int64_t bytes) {
  constexpr int64_t kPage = 1 << 21;
  void *memory = std::aligned_alloc(kPage, (bytes + kPage - 1) / kPage * kPage);
#if defined(__linux__)
  // Advice may be refused; the memory is good either way.
  if (memory != nullptr && bytes >= kPage) (void)madvise(memory, bytes, MADV_HUGEPAGE);
#endif
  return Buffer(memory);
}

PreparedVolume::PreparedVolume(const licag3d_run &run, const licag3d_grid &grid, int64_t rays, int64_t rays_along_x)
    : run_(run), grid_(grid) {
  const int64_t voxels = static_cast<int64_t>(grid.size[0]) * grid.size[1] * grid.size[2];
  if (grid.step_mm > 0 || grid.stride[0] != 1) return;
  const int64_t longest = std::max(grid.size[0], std::max(grid.size[1], grid.size[2]));
  // Looking at every voxel pays when about as many samples are saved, turning when each voxel is read several times.
  if (!(grid.flags & LICAG3D_KEEP_EMPTY) && rays * longest > voxels / 4 && grid.size[0] <= 16384) {
    int64_t count = 1;
    for (int a = 0; a < 3; ++a) count *= bricks_.size[a] = (grid.size[a] + kBrick - 1) / kBrick;
    full_.reset(new (std::nothrow) uint8_t[count]);
    bricks_.full = full_.get();
  }
  if (rays_along_x * grid.size[0] > 2 * voxels) turned_ = large_buffer(voxels * (grid.flags & LICAG3D_HALF ? 2 : 4));
}

void PreparedVolume::set(const void *volume, ProjectTask &task) {
  task.volume = volume;
  task.bricks = nullptr;
  if (full_) {
    const auto find = LICAG3D_SELECT_ISA(find_bricks);
    parallel_for(bricks_.size[2], 1, run_.threads, [&](int64_t begin, int64_t end) {
      for (int64_t layer = begin; layer < end; ++layer) find(grid_, volume, bricks_, static_cast<int>(layer));
    });
    const int64_t count = static_cast<int64_t>(bricks_.size[0]) * bricks_.size[1] * bricks_.size[2];
    int64_t full = 0;
    for (int64_t i = 0; i < count; ++i) full += bricks_.full[i];
    // Looking up bricks costs more than it saves where most of them hold something.
    if (full < count - count / 8) task.bricks = &bricks_;
  }
  task.turned = turned_.get();
  if (turned_) {
    const auto turn = LICAG3D_SELECT_ISA(turn);
    parallel_for(grid_.size[2], 1, run_.threads, [&](int64_t begin, int64_t end) {
      for (int64_t z = begin; z < end; ++z) turn(grid_, volume, task.bricks, static_cast<int>(z), turned_.get());
    });
  }
}

}  // namespace licag3d
