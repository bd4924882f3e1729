// SPDX-License-Identifier: Apache-2.0
// The sum over all planes of one packet, by the fastest way that its rays allow.
#pragma once

#include "cpu/simd_windows.h"

LICAG3D_CORE_BEGIN

// The volume with u adjacent in memory, where there is such a copy.
template <class Voxel>
inline Field<Voxel> field_of(const ProjectTask &task, int main) {
  const licag3d_grid &grid = *task.grid;
  if (main == 0 && task.turned != nullptr)
    return {static_cast<const Voxel *>(task.turned),
            {grid.size[1], 1, static_cast<int64_t>(grid.size[0]) * grid.size[1]}};
  return {static_cast<const Voxel *>(task.volume), {grid.stride[0], grid.stride[1], grid.stride[2]}};
}

template <bool kGradient, class Voxel>
inline void sum_packet(const ProjectTask &task, const PlanePacket &packet, LaneSums &sums) {
  const licag3d_grid &grid = *task.grid;
  const Field<Voxel> field = field_of<Voxel>(task, packet.axis[2]);
  const Band u = band(packet.u, packet.du, packet), v = band(packet.v, packet.dv, packet);
  // Windows know no rays that end inside the grid.
  const bool whole = lane_max(packet.low) + 0.5f <= static_cast<float>(packet.range.first - packet.centre) &&
                     lane_min(packet.high) - 0.5f >= static_cast<float>(packet.range.last - packet.centre);
  const int rows = whole && field.stride[packet.axis[0]] == 1 ? window_rows(grid, packet.axis, u, v) : 0;
  if (rows == 4) return sum_windows<kGradient, 4>(grid, field, packet, u, v, task.bricks, sums);
  if (rows == 8) return sum_windows<kGradient, 8>(grid, field, packet, u, v, task.bricks, sums);
  for_runs(grid, packet, u, v, task.bricks,
           [&](int begin, int end) { add_run<kGradient>(grid, field, packet, begin, end, sums); });
}

LICAG3D_CORE_END
