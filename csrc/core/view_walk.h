// SPDX-License-Identifier: Apache-2.0
// One ray of the planes rule through a volume, jumping over bricks in which every voxel is zero. A sample there is exactly
// zero, so the sums are the same bit for bit with and without. Used by the CUDA kernels; the CPU does the same for
// packets of rays (cpu/bricks.h).
#pragma once

#include "core/volume.h"

LICAG3D_CORE_BEGIN

constexpr int kWalkBrick = 4;   // voxels along an edge of a brick
constexpr int kWalkReach = 16;  // distances are counted up to here, in bricks
constexpr int kWalkRun = 8;     // planes sampled between two looks at the bricks

// Distance of every brick to the nearest one that is not empty, the largest difference of an index counting; 0 in that
// brick itself, at most kWalkReach. NULL: no brick is empty.
struct WalkBricks {
  const uint8_t *distance;  // order [z, y, x]
  int size[3];
};

// A volume as the walk reads it: strides in elements, in the order x, y, z.
template <class Voxel>
struct WalkVolume {
  const Voxel *data;
  int64_t stride[3];
};

LICAG3D_HD int walk_brick(float position, int count) {
  // Comparisons so written that NaN ends at 0: an index is always valid.
  const float above = position > 0.0f ? position : 0.0f, top = static_cast<float>(count * kWalkBrick - 1);
  return static_cast<int>(above < top ? above : top) / kWalkBrick;
}

// The bricks in the order of a ray's axes: strides and numbers, looked up once and not per sample.
struct RayBricks {
  const uint8_t *distance;
  int64_t su, sv, sk;
  int nu, nv;
};

LICAG3D_HD RayBricks turn_bricks(const WalkBricks &bricks, const int *axis) {
  const int64_t sy = bricks.size[0], sz = sy * bricks.size[1];
  RayBricks out;
  out.distance = bricks.distance;
  out.su = axis[0] == 0 ? 1 : sy;
  out.sv = axis[1] == 1 ? sy : sz;
  out.sk = axis[2] == 0 ? 1 : axis[2] == 1 ? sy : sz;
  out.nu = axis[0] == 0 ? bricks.size[0] : bricks.size[1];
  out.nv = axis[1] == 1 ? bricks.size[1] : bricks.size[2];
  return out;
}

// How many planes from k on need no look, the ray standing at (u, v) there. From one plane to the next a ray moves by at
// most one voxel along every axis, and a sample reads the voxel it is in and the next one. From a brick at distance d the
// samples of 4 (d - 1) planes therefore meet only empty bricks; one less allows for rounding.
LICAG3D_HD int clear_planes(const RayBricks &bricks, float u, float v, int k) {
  const int distance = bricks.distance[walk_brick(u, bricks.nu) * bricks.su + walk_brick(v, bricks.nv) * bricks.sv +
                                       k / kWalkBrick * bricks.sk];
  return distance > 1 ? kWalkBrick * (distance - 1) - 1 : 0;
}

// The sums of one ray, samples counted from plane `centre`.
template <bool kGradient, class Voxel>
LICAG3D_HD PlaneSums walk_planes(const WalkVolume<Voxel> &volume, const WalkBricks &bricks, const licag3d_grid &grid,
                                 const GridRay &ray, const PlaneRay &plane_ray, int centre) {
  const PlaneLane lane = plane_lane(plane_ray, centre);
  const Range &range = plane_ray.range;
  const int64_t step = volume.stride[ray.axis[2]];
  PlaneOf<Voxel> plane = {volume.data, static_cast<int>(volume.stride[ray.axis[0]]),
                          static_cast<int>(volume.stride[ray.axis[1]]), grid.size[ray.axis[0]], grid.size[ray.axis[1]]};
  const RayBricks here = turn_bricks(bricks, ray.axis);
  PlaneSums sums = {};
  const auto edge = [&](int k) {
    plane.data = volume.data + k * step;
    add_plane<kGradient>(plane, lane, static_cast<float>(k - centre), sums);
  };
  for (int k = range.first; k <= range.last;) {
    int end = range.last + 1;
    if (bricks.distance != nullptr) {
      const float j = static_cast<float>(k - centre);
      const int clear = clear_planes(here, lane.u + j * lane.du, lane.v + j * lane.dv, k);
      if (clear > 0) {
        k += clear;
        continue;
      }
      end = k + kWalkRun < end ? k + kWalkRun : end;
    }
    for (; k < end && k < range.inner_first; ++k) edge(k);
    const int inner = range.inner_last + 1 < end ? range.inner_last + 1 : end;
#if defined(__CUDA_ARCH__)
#pragma unroll 4
#endif
    for (; k < inner; ++k) {
      plane.data = volume.data + k * step;
      add_plane_inner<kGradient>(plane, lane, static_cast<float>(k - centre), sums);
    }
    for (; k < end; ++k) edge(k);
  }
  return sums;
}

// Samples are counted from the middle of the ray's range, where float loses least.
LICAG3D_HD int middle_of(const Range &range) { return range.first + (range.last - range.first) / 2; }

// Distance along one axis shortened by what neighbours know: `at` points to a brick at index i of n along that axis.
LICAG3D_HD uint8_t walk_reach(const uint8_t *at, int64_t stride, int i, int n) {
  int best = at[0];
  for (int o = 1; o < best; ++o) {  // a brick o away tells of no distance below o
    if (i >= o) {
      const int there = at[-o * stride] > o ? at[-o * stride] : o;
      best = there < best ? there : best;
    }
    if (i + o < n) {
      const int there = at[o * stride] > o ? at[o * stride] : o;
      best = there < best ? there : best;
    }
  }
  return static_cast<uint8_t>(best);
}

LICAG3D_CORE_END
