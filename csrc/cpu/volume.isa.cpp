// SPDX-License-Identifier: Apache-2.0
// CPU kernels of the volume operators. Rays are taken in packets of one main axis; each loop over the lanes of a packet
// is written so that the compiler turns it into SIMD.
#include "core/volume.h"
#include "cpu/volume_tasks.h"

namespace licag3d {
namespace LICAG3D_ISA {
namespace {

constexpr int kLanes = 16;

struct Packet {
  int count = 0;
  int64_t ray[kLanes];
  PlaneRay plane[kLanes];
};

void project_packet(const licag3d_grid &grid, const int axis[3], const Packet &packet, const float *volume, float *out) {
  const int nu = grid.size[axis[0]], nv = grid.size[axis[1]];
  const int64_t su = grid.stride[axis[0]], sv = grid.stride[axis[1]], sk = grid.stride[axis[2]];
  for (int l = 0; l < packet.count; ++l) {
    const PlaneRay &ray = packet.plane[l];
    float sum = 0;
    for (int k = ray.first; k <= ray.last; ++k) {
      const Neighbours u = neighbours(static_cast<float>(ray.u0 + k * ray.du), nu);
      const Neighbours v = neighbours(static_cast<float>(ray.v0 + k * ray.dv), nv);
      const float *row0 = volume + k * sk + v.index0 * sv, *row1 = volume + k * sk + v.index1 * sv;
      const float value = v.weight0 * (u.weight0 * row0[u.index0 * su] + u.weight1 * row0[u.index1 * su]) +
                          v.weight1 * (u.weight0 * row1[u.index0 * su] + u.weight1 * row1[u.index1 * su]);
      sum += static_cast<float>(plane_weight(ray, k)) * value;
    }
    out[packet.ray[l]] = sum * static_cast<float>(ray.plane_mm);
  }
}

}  // namespace

void project_chunk(const licag3d_grid &grid, const licag3d_rays &rays, const float *volume, float *projections,
                   int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const GridRay ray = to_grid(grid, load_ray(rays, i));
    Packet packet;
    packet.count = 1;
    packet.ray[0] = i;
    packet.plane[0] = plane_ray(grid, ray);
    project_packet(grid, ray.axis, packet, volume, projections);
    if (ray.valid == 0) projections[i] = NAN;
  }
}

}  // namespace LICAG3D_ISA
}  // namespace licag3d
