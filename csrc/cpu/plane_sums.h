// SPDX-License-Identifier: Apache-2.0
// Sums of the planes rule over part of a packet's planes, for any rays, any strides and any instruction set.
#pragma once

#include <type_traits>

#include "cpu/simd_planes.h"

LICAG3D_CORE_BEGIN

struct alignas(64) LaneSums {
  float value[kLanes] = {}, gu[kLanes] = {}, gv[kLanes] = {}, hu[kLanes] = {}, hv[kLanes] = {}, low[kLanes] = {},
        high[kLanes] = {};

  PlaneSums lane(int l) const { return {value[l], gu[l], gv[l], hu[l], hv[l], low[l], high[l]}; }
};

// A volume as a packet sees it: strides by axis x, y, z.
template <class Voxel>
struct Field {
  const Voxel *data;
  int64_t stride[3];
};

template <class Voxel>
inline PlaneOf<Voxel> plane_of(const licag3d_grid &grid, const Field<Voxel> &field, const int axis[3], int k) {
  return {field.data + k * field.stride[axis[2]], static_cast<int>(field.stride[axis[0]]),
          static_cast<int>(field.stride[axis[1]]), grid.size[axis[0]], grid.size[axis[1]]};
}

template <bool kGradient, bool kInner, class Voxel>
inline void add_planes(const licag3d_grid &grid, const Field<Voxel> &field, const PlanePacket &packet, int begin, int end,
                       LaneSums &sums) {
  for (int k = begin; k < end; ++k) {
    const PlaneOf<Voxel> plane = plane_of(grid, field, packet.axis, k);
    const float j = static_cast<float>(k - packet.centre);
    for (int l = 0; l < kLanes; ++l) {
      PlaneSums s = sums.lane(l);
      if (kInner)
        add_plane_inner<kGradient>(plane, packet.lane(l), j, s);
      else
        add_plane<kGradient>(plane, packet.lane(l), j, s);
      sums.value[l] = s.value;
      if (kGradient) sums.gu[l] = s.gu, sums.gv[l] = s.gv, sums.hu[l] = s.hu, sums.hv[l] = s.hv;
      if (kGradient && !kInner) sums.low[l] = s.low, sums.high[l] = s.high;
    }
  }
}

// Adds planes [begin, end).
template <bool kGradient, class Voxel>
inline void add_run(const licag3d_grid &grid, const Field<Voxel> &field, const PlanePacket &packet, int begin, int end,
                    LaneSums &sums) {
  const int from = packet.range.inner_first > begin ? packet.range.inner_first : begin;
  const int to = packet.range.inner_last + 1 < end ? packet.range.inner_last + 1 : end;
  if (from >= to) return add_planes<kGradient, false>(grid, field, packet, begin, end, sums);
  add_planes<kGradient, false>(grid, field, packet, begin, from, sums);
  bool done = false;
  if constexpr (!kGradient && std::is_same<Voxel, float>::value) {
    done = field.stride[packet.axis[0]] == 1;
    if (done)
      sum_inner_pairs(plane_of(grid, field, packet.axis, 0), field.stride[packet.axis[2]], packet, from, to, sums.value);
  }
  if (!done) add_planes<kGradient, true>(grid, field, packet, from, to, sums);
  add_planes<kGradient, false>(grid, field, packet, to, end, sums);
}

LICAG3D_CORE_END
