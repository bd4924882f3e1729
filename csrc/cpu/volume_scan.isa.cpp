// SPDX-License-Identifier: Apache-2.0
// What is done to a whole volume before it is projected: finding its empty bricks, and a copy with x and y exchanged.
#include <cstring>

#include "core/half.h"
#include "cpu/volume_tasks.h"

LICAG3D_CORE_BEGIN
namespace {

// Bits that are zero for zero of either sign and for nothing else (NaN is not zero).
inline uint32_t not_zero(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits << 1;
}
inline uint32_t not_zero(Half x) { return static_cast<uint32_t>(x.bits) << 17; }

constexpr int kLongestSide = 16384;  // of rows looked through on the stack

template <class Voxel>
void find_layer(const licag3d_grid &grid, const Voxel *volume, const Bricks &bricks, int layer, uint32_t *seen) {
  const int nx = grid.size[0];
  const int z1 = (layer + 1) * kBrick < grid.size[2] ? (layer + 1) * kBrick : grid.size[2];
  for (int by = 0; by < bricks.size[1]; ++by) {
    uint8_t *full = bricks.full + (static_cast<int64_t>(layer) * bricks.size[1] + by) * bricks.size[0];
    const int y1 = (by + 1) * kBrick < grid.size[1] ? (by + 1) * kBrick : grid.size[1];
    std::memset(seen, 0, bricks.size[0] * kBrick * sizeof *seen);
    bool open = true;  // some brick of this row may still turn out empty
    for (int z = layer * kBrick; z < z1 && open; ++z) {
      const Voxel *rows = volume + z * grid.stride[2] + by * kBrick * grid.stride[1];
      const int64_t sy = grid.stride[1];
      if (y1 - by * kBrick == kBrick) {
        for (int x = 0; x < nx; ++x) {
          uint32_t bits = seen[x];
          for (int y = 0; y < kBrick; ++y) bits |= not_zero(rows[y * sy + x]);
          seen[x] = bits;
        }
      } else {
        for (int y = by * kBrick; y < y1; ++y, rows += sy)
          for (int x = 0; x < nx; ++x) seen[x] |= not_zero(rows[x]);
      }
      open = false;
      for (int b = 0; b < bricks.size[0]; ++b) {
        uint32_t bits = 0;
        for (int x = 0; x < kBrick; ++x) bits |= seen[b * kBrick + x];
        full[b] = bits != 0;
        open |= bits == 0;
      }
    }
  }
}

template <class Voxel>
void turn_slice(const licag3d_grid &grid, const Voxel *volume, const Bricks *bricks, int z, Voxel *turned) {
  const int nx = grid.size[0], ny = grid.size[1];
  const Voxel *from = volume + z * grid.stride[2];
  Voxel *to = turned + static_cast<int64_t>(z) * nx * ny;
  for (int x0 = 0; x0 < nx; x0 += 2 * kBrick)
    for (int y0 = 0; y0 < ny; y0 += 2 * kBrick) {
      const int x1 = x0 + 2 * kBrick < nx ? x0 + 2 * kBrick : nx, y1 = y0 + 2 * kBrick < ny ? y0 + 2 * kBrick : ny;
      unsigned full = bricks == nullptr;
      if (bricks != nullptr)
        for (int y = y0; y < y1; y += kBrick)
          for (int x = x0; x < x1; x += kBrick)
            full |= bricks->full[(static_cast<int64_t>(z / kBrick) * bricks->size[1] + y / kBrick) * bricks->size[0] +
                                 x / kBrick];
      if (full == 0) {
        // Neighbours of a brick that is not empty are read too.
        for (int x = x0; x < x1; ++x) std::memset(static_cast<void *>(to + static_cast<int64_t>(x) * ny + y0), 0, (y1 - y0) * sizeof(Voxel));
        continue;
      }
      if (x1 - x0 == 2 * kBrick && y1 - y0 == 2 * kBrick) {
        Voxel block[2 * kBrick][2 * kBrick];  // known sizes make this a matter of registers
        for (int y = 0; y < 2 * kBrick; ++y)
          for (int x = 0; x < 2 * kBrick; ++x) block[x][y] = from[(y0 + y) * grid.stride[1] + x0 + x];
        for (int x = 0; x < 2 * kBrick; ++x)
          std::memcpy(static_cast<void *>(to + static_cast<int64_t>(x0 + x) * ny + y0), block[x], sizeof block[x]);
        continue;
      }
      for (int x = x0; x < x1; ++x)
        for (int y = y0; y < y1; ++y) to[static_cast<int64_t>(x) * ny + y] = from[y * grid.stride[1] + x];
    }
}

}  // namespace

void find_bricks(const licag3d_grid &grid, const void *volume, const Bricks &bricks, int layer) {
  alignas(64) uint32_t seen[kLongestSide + kBrick];
  (grid.flags & LICAG3D_HALF) ? find_layer(grid, static_cast<const Half *>(volume), bricks, layer, seen)
                              : find_layer(grid, static_cast<const float *>(volume), bricks, layer, seen);
}

void add_turned(const licag3d_grid &grid, const float *turned, int z, float *volume) {
  constexpr int kBlock = 2 * kBrick;
  const int nx = grid.size[0], ny = grid.size[1];
  const float *from = turned + static_cast<int64_t>(z) * nx * ny;
  float *to = volume + z * grid.stride[2];
  for (int y0 = 0; y0 < ny; y0 += kBlock)
    for (int x0 = 0; x0 < nx; x0 += kBlock) {
      if (x0 + kBlock <= nx && y0 + kBlock <= ny) {
        float block[kBlock][kBlock];
        for (int x = 0; x < kBlock; ++x)
          for (int y = 0; y < kBlock; ++y) block[y][x] = from[static_cast<int64_t>(x0 + x) * ny + y0 + y];
        for (int y = 0; y < kBlock; ++y)
          for (int x = 0; x < kBlock; ++x) to[(y0 + y) * grid.stride[1] + x0 + x] += block[y][x];
        continue;
      }
      for (int y = y0; y < ny && y < y0 + kBlock; ++y)
        for (int x = x0; x < nx && x < x0 + kBlock; ++x)
          to[y * grid.stride[1] + x] += from[static_cast<int64_t>(x) * ny + y];
    }
}

void turn(const licag3d_grid &grid, const void *volume, const Bricks *bricks, int z, void *turned) {
  (grid.flags & LICAG3D_HALF)
      ? turn_slice(grid, static_cast<const Half *>(volume), bricks, z, static_cast<Half *>(turned))
      : turn_slice(grid, static_cast<const float *>(volume), bricks, z, static_cast<float *>(turned));
}

LICAG3D_CORE_END
