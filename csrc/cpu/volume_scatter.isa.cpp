// SPDX-License-Identifier: Apache-2.0
// The transpose of the projection. Weights are worked out in SIMD, the additions follow one lane after another because
// neighbouring rays meet in the same voxels.
#include "cpu/packets.h"
#include "cpu/volume_tasks.h"

LICAG3D_CORE_BEGIN
namespace {

template <class Packet, class Ray>
void pack_chunk(const ScatterTask &task, int64_t begin, int64_t end) {
  const int64_t chunk = (begin - task.first_ray) / kChunkRays;
  Packet *slots = reinterpret_cast<Packet *>(task.packets) + chunk * kChunkPackets;
  int32_t used = 0;
  for_packets<Packet, Ray>(
      *task.grid, *task.rays, begin, end, [&](int64_t i) { return task.projections[i] == 0.0f; },
      [&](const Builder<Packet, Ray> &builder) {
        Packet &packet = slots[used++] = builder.packet;
        for (int l = 0; l < kLanes; ++l) packet.scale[l] *= l < packet.count ? task.projections[packet.ray[l]] : 0.0f;
      },
      // A ray without samples gives nothing to the volume, one that is not finite too: it has no place to give it.
      [](int64_t, int) {});
  task.counts[chunk] = used;
}

// What each lane adds to its four voxels of one plane.
struct Spread4 {
  alignas(64) int at00[kLanes], at10[kLanes], at01[kLanes], at11[kLanes];
  alignas(64) float w00[kLanes], w10[kLanes], w01[kLanes], w11[kLanes];
};

void spread_edge(const Plane &plane, const PlanePacket &packet, float j, Spread4 &out) {
  for (int l = 0; l < kLanes; ++l) {
    const PlaneLane ray = packet.lane(l);
    const Neighbours u = neighbours(ray.u + j * ray.du, plane.nu), v = neighbours(ray.v + j * ray.dv, plane.nv);
    const float from = ray.low > j - 0.5f ? ray.low : j - 0.5f, to = ray.high < j + 0.5f ? ray.high : j + 0.5f;
    const float w = weighted(to > from ? to - from : 0.0f, packet.scale[l]);
    out.at00[l] = v.index0 * plane.sv + u.index0 * plane.su;
    out.at10[l] = v.index0 * plane.sv + u.index1 * plane.su;
    out.at01[l] = v.index1 * plane.sv + u.index0 * plane.su;
    out.at11[l] = v.index1 * plane.sv + u.index1 * plane.su;
    // A weight of zero must give zero even where the projection is NaN: the voxel stands in for one outside the grid.
    out.w00[l] = weighted(u.weight0 * v.weight0, w);
    out.w10[l] = weighted(u.weight1 * v.weight0, w);
    out.w01[l] = weighted(u.weight0 * v.weight1, w);
    out.w11[l] = weighted(u.weight1 * v.weight1, w);
  }
}

void spread_inner(const Plane &plane, const PlanePacket &packet, float j, Spread4 &out) {
  for (int l = 0; l < kLanes; ++l) {
    const PlaneLane ray = packet.lane(l);
    const float u = ray.u + j * ray.du, v = ray.v + j * ray.dv;
    const int iu = static_cast<int>(u), iv = static_cast<int>(v);
    const float fu = u - static_cast<float>(iu), fv = v - static_cast<float>(iv);
    const float upper = packet.scale[l] * fv, lower = packet.scale[l] - upper;
    out.at00[l] = iv * plane.sv + iu * plane.su;
    out.w10[l] = lower * fu;
    out.w00[l] = lower - out.w10[l];
    out.w11[l] = upper * fu;
    out.w01[l] = upper - out.w11[l];
  }
}

}  // namespace

int64_t packet_bytes(bool march) { return march ? sizeof(MarchPacket) : sizeof(PlanePacket); }

void pack(const ScatterTask &task, int64_t begin, int64_t end) {
  if (task.grid->step_mm > 0)
    pack_chunk<MarchPacket, MarchRay>(task, begin, end);
  else
    pack_chunk<PlanePacket, PlaneRay>(task, begin, end);
}

void scatter_planes(const ScatterTask &task, int axis, int slab_begin, int slab_end) {
  const licag3d_grid &grid = *task.grid;
  const int ua = axis == 0 ? 1 : 0, va = axis == 2 ? 1 : 2;
  const int su = static_cast<int>(grid.stride[ua]), sv = static_cast<int>(grid.stride[va]);
  const Plane plane = {nullptr, su, sv, grid.size[ua], grid.size[va]};
  const PlanePacket *packets = reinterpret_cast<const PlanePacket *>(task.packets);
  Spread4 spread;
  for (int64_t chunk = 0; chunk < task.chunks; ++chunk)
    for (int32_t p = 0; p < task.counts[chunk]; ++p) {
      const PlanePacket &packet = packets[chunk * kChunkPackets + p];
      if (packet.axis[2] != axis) continue;
      const Range &range = packet.range;
      const int from = range.first > slab_begin ? range.first : slab_begin;
      const int to = range.last < slab_end - 1 ? range.last : slab_end - 1;
      for (int k = from; k <= to; ++k) {
        float *data = task.volume + k * grid.stride[axis];
        const float j = static_cast<float>(k - packet.centre);
        if (k >= range.inner_first && k <= range.inner_last) {
          spread_inner(plane, packet, j, spread);
          for (int l = 0; l < packet.count; ++l) {
            float *at = data + spread.at00[l];
            at[0] += spread.w00[l];
            at[su] += spread.w10[l];
            at[sv] += spread.w01[l];
            at[sv + su] += spread.w11[l];
          }
        } else {
          spread_edge(plane, packet, j, spread);
          for (int l = 0; l < packet.count; ++l) {
            data[spread.at00[l]] += spread.w00[l];
            data[spread.at10[l]] += spread.w10[l];
            data[spread.at01[l]] += spread.w01[l];
            data[spread.at11[l]] += spread.w11[l];
          }
        }
      }
    }
}

void scatter_march(const ScatterTask &task, int slab_begin, int slab_end) {
  const licag3d_grid &grid = *task.grid;
  const int sx = static_cast<int>(grid.stride[0]), sy = static_cast<int>(grid.stride[1]);
  const int64_t sz = grid.stride[2];
  const MarchPacket *packets = reinterpret_cast<const MarchPacket *>(task.packets);
  alignas(64) int at[4][kLanes], z0[kLanes], z1[kLanes];
  alignas(64) float w0[4][kLanes], w1[4][kLanes];
  for (int64_t chunk = 0; chunk < task.chunks; ++chunk)
    for (int32_t p = 0; p < task.counts[chunk]; ++p) {
      const MarchPacket &packet = packets[chunk * kChunkPackets + p];
      // Samples with a neighbour in the slab: slab_begin - 1 < z < slab_end, for any lane; rounded outwards.
      double first = 1e30, last = -1e30;
      for (int l = 0; l < packet.count; ++l) {
        double low = packet.range.first - packet.centre, high = packet.range.last - packet.centre;
        clip(packet.z[l], packet.dz[l], slab_begin - 1.001, slab_end + 0.001, low, high);
        if (high < low) continue;
        first = low < first ? low : first;
        last = high > last ? high : last;
      }
      if (last < first) continue;
      for (int i = static_cast<int>(floor(first)); i <= static_cast<int>(ceil(last)); ++i) {
        const float j = static_cast<float>(i);
        for (int l = 0; l < kLanes; ++l) {
          const MarchLane ray = packet.lane(l);
          const Neighbours x = neighbours(ray.x + j * ray.dx, grid.size[0]),
                           y = neighbours(ray.y + j * ray.dy, grid.size[1]),
                           z = neighbours(ray.z + j * ray.dz, grid.size[2]);
          const float rest = ray.count - j;
          const float w = weighted(rest > 1.0f ? 1.0f : rest > 0.0f ? rest : 0.0f, packet.scale[l]);
          z0[l] = z.weight0 != 0.0f ? z.index0 : -1;
          z1[l] = z.weight1 != 0.0f ? z.index1 : -1;
          const float weights[4] = {x.weight0 * y.weight0, x.weight1 * y.weight0, x.weight0 * y.weight1,
                                    x.weight1 * y.weight1};
          at[0][l] = x.index0 * sx + y.index0 * sy;
          at[1][l] = x.index1 * sx + y.index0 * sy;
          at[2][l] = x.index0 * sx + y.index1 * sy;
          at[3][l] = x.index1 * sx + y.index1 * sy;
          for (int c = 0; c < 4; ++c) {
            w0[c][l] = weighted(weights[c] * z.weight0, w);
            w1[c][l] = weighted(weights[c] * z.weight1, w);
          }
        }
        for (int l = 0; l < packet.count; ++l) {
          if (z0[l] >= slab_begin && z0[l] < slab_end)
            for (int c = 0; c < 4; ++c) task.volume[z0[l] * sz + at[c][l]] += w0[c][l];
          if (z1[l] >= slab_begin && z1[l] < slab_end)
            for (int c = 0; c < 4; ++c) task.volume[z1[l] * sz + at[c][l]] += w1[c][l];
        }
      }
    }
}

LICAG3D_CORE_END
