// SPDX-License-Identifier: Apache-2.0
// Rays of one main axis gathered into packets of kLanes: lanes are arrays, so that loops over them become SIMD.
#pragma once

#include "core/march.h"
#include "core/volume.h"

LICAG3D_CORE_BEGIN

constexpr int kLanes = 16;

// The least and the greatest of all lanes, in halves, which become SIMD.
template <class Number>
inline Number lane_min(const Number *x) {
  Number half[kLanes / 2];
  for (int l = 0; l < 8; ++l) half[l] = x[l] < x[l + 8] ? x[l] : x[l + 8];
  for (int l = 0; l < 4; ++l) half[l] = half[l] < half[l + 4] ? half[l] : half[l + 4];
  for (int l = 0; l < 2; ++l) half[l] = half[l] < half[l + 2] ? half[l] : half[l + 2];
  return half[0] < half[1] ? half[0] : half[1];
}

template <class Number>
inline Number lane_max(const Number *x) {
  Number half[kLanes / 2];
  for (int l = 0; l < 8; ++l) half[l] = x[l] > x[l + 8] ? x[l] : x[l + 8];
  for (int l = 0; l < 4; ++l) half[l] = half[l] > half[l + 4] ? half[l] : half[l + 4];
  for (int l = 0; l < 2; ++l) half[l] = half[l] > half[l + 2] ? half[l] : half[l + 2];
  return half[0] > half[1] ? half[0] : half[1];
}

struct PacketHead {
  int axis[3];
  int count;    // lanes in use; the others repeat lane 0 and their results are dropped
  int centre;
  Range range;  // [first, last] holds the samples of every lane, [inner_first, inner_last] is inner to every lane
  int64_t ray[kLanes];
};

struct PlanePacket : PacketHead {
  float scale[kLanes];  // L
  float u[kLanes], v[kLanes], du[kLanes], dv[kLanes], low[kLanes], high[kLanes];

  LICAG3D_HD PlaneLane lane(int l) const { return {u[l], v[l], du[l], dv[l], low[l], high[l]}; }
};

struct MarchPacket : PacketHead {
  float scale[kLanes];
  float x[kLanes], y[kLanes], z[kLanes], dx[kLanes], dy[kLanes], dz[kLanes], steps[kLanes];

  LICAG3D_HD MarchLane lane(int l) const { return {x[l], y[l], z[l], dx[l], dy[l], dz[l], steps[l]}; }
};

inline PlaneRay prepare(const licag3d_grid &grid, const GridRay &ray, const PlanePacket *) { return plane_ray(grid, ray); }
inline MarchRay prepare(const licag3d_grid &grid, const GridRay &ray, const MarchPacket *) { return march_ray(grid, ray); }

inline void set_lane(PlanePacket &packet, int l, const licag3d_grid &, const PlaneRay &ray) {
  const PlaneLane lane = plane_lane(ray, packet.centre);
  packet.scale[l] = static_cast<float>(ray.plane_mm);
  packet.u[l] = lane.u, packet.v[l] = lane.v, packet.du[l] = lane.du, packet.dv[l] = lane.dv;
  packet.low[l] = lane.low, packet.high[l] = lane.high;
}

inline void set_lane(MarchPacket &packet, int l, const licag3d_grid &grid, const MarchRay &ray) {
  const MarchLane lane = march_lane(ray, packet.centre);
  packet.scale[l] = static_cast<float>(grid.step_mm);
  packet.x[l] = lane.x, packet.y[l] = lane.y, packet.z[l] = lane.z;
  packet.dx[l] = lane.dx, packet.dy[l] = lane.dy, packet.dz[l] = lane.dz;
  packet.steps[l] = lane.count;
}

// Collects rays of one main axis and hands out full packets.
template <class Packet, class Ray>
struct Builder {
  Packet packet;
  Ray rays[kLanes];
  GridRay grid_rays[kLanes];
  int filled = 0;

  // Adds a ray; true when the packet is full.
  bool add(int64_t index, const GridRay &grid_ray, const Ray &ray) {
    packet.ray[filled] = index;
    grid_rays[filled] = grid_ray;
    rays[filled] = ray;
    return ++filled == kLanes;
  }

  // Completes the packet from what was added.
  void finish(const licag3d_grid &grid) {
    Range range = rays[0].range;
    for (int l = 1; l < filled; ++l) {
      const Range &other = rays[l].range;
      range.first = other.first < range.first ? other.first : range.first;
      range.last = other.last > range.last ? other.last : range.last;
      range.inner_first = other.inner_first > range.inner_first ? other.inner_first : range.inner_first;
      range.inner_last = other.inner_last < range.inner_last ? other.inner_last : range.inner_last;
    }
    if (range.inner_first > range.inner_last) range.inner_first = range.last + 1, range.inner_last = range.last;
    packet.range = range;
    packet.count = filled;
    packet.centre = range.first + (range.last - range.first) / 2;
    for (int i = 0; i < 3; ++i) packet.axis[i] = grid_rays[0].axis[i];
    for (int l = 0; l < kLanes; ++l) set_lane(packet, l, grid, rays[l < filled ? l : 0]);
    for (int l = filled; l < kLanes; ++l) packet.ray[l] = packet.ray[0];
    filled = 0;
  }
};

// Sorts rays [begin, end) by main axis into packets, in order; use(builder) sees each finished packet, empty(i, valid) each
// ray without samples. load(i) is the ray in mm, skip(i) leaves it out.
template <class Packet, class Ray, class Load, class Skip, class Use, class Empty>
inline void for_packets(const licag3d_grid &grid, int64_t begin, int64_t end, Load &&load, Skip &&skip, Use &&use,
                        Empty &&empty) {
  Builder<Packet, Ray> builders[3];
  for (int64_t i = begin; i < end; ++i) {
    if (skip(i)) continue;
    const GridRay grid_ray = to_grid(grid, load(i));
    const Ray ray = prepare(grid, grid_ray, static_cast<const Packet *>(nullptr));
    if (ray.range.first > ray.range.last) {
      empty(i, grid_ray.valid);
      continue;
    }
    Builder<Packet, Ray> &builder = builders[grid_ray.axis[2]];
    if (builder.add(i, grid_ray, ray)) {
      builder.finish(grid);
      use(builder);
    }
  }
  for (auto &builder : builders)
    if (builder.filled > 0) {
      builder.finish(grid);
      use(builder);
    }
}

LICAG3D_CORE_END
