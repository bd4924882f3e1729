// SPDX-License-Identifier: Apache-2.0
// Volume operators that read the volume along rays: the projection and its gradient by the rays.
#include "cpu/packet_sums.h"
#include "cpu/volume_tasks.h"

LICAG3D_CORE_BEGIN
namespace {

template <bool kGradient>
void sum_march(const licag3d_grid &grid, const float *volume, const MarchPacket &packet, MarchSums *sums) {
  const Voxels voxels = {volume,
                         static_cast<int>(grid.stride[0]),
                         static_cast<int>(grid.stride[1]),
                         static_cast<int>(grid.stride[2]),
                         grid.size[0],
                         grid.size[1],
                         grid.size[2]};
  alignas(64) float value[kLanes] = {}, gx[kLanes] = {}, gy[kLanes] = {}, gz[kLanes] = {}, hx[kLanes] = {},
                    hy[kLanes] = {}, hz[kLanes] = {}, last[kLanes] = {};
  const auto edge = [&](int from, int to) {
    for (int i = from; i <= to; ++i) {
      const float j = static_cast<float>(i - packet.centre);
      for (int l = 0; l < kLanes; ++l) {
        MarchSums s = {value[l], gx[l], gy[l], gz[l], hx[l], hy[l], hz[l], last[l]};
        add_sample<kGradient>(voxels, packet.lane(l), j, s);
        value[l] = s.value;
        if (kGradient)
          gx[l] = s.gx, gy[l] = s.gy, gz[l] = s.gz, hx[l] = s.hx, hy[l] = s.hy, hz[l] = s.hz, last[l] = s.last;
      }
    }
  };
  const Range &range = packet.range;
  edge(range.first, range.inner_first - 1);
  for (int i = range.inner_first; i <= range.inner_last; ++i) {
    const float j = static_cast<float>(i - packet.centre);
    for (int l = 0; l < kLanes; ++l) {
      MarchSums s = {value[l], gx[l], gy[l], gz[l], hx[l], hy[l], hz[l], 0};
      add_sample_inner<kGradient>(voxels, packet.lane(l), j, s);
      value[l] = s.value;
      if (kGradient) gx[l] = s.gx, gy[l] = s.gy, gz[l] = s.gz, hx[l] = s.hx, hy[l] = s.hy, hz[l] = s.hz;
    }
  }
  edge(range.inner_last + 1, range.last);
  for (int l = 0; l < kLanes; ++l) sums[l] = {value[l], gx[l], gy[l], gz[l], hx[l], hy[l], hz[l], last[l]};
}

bool take_all(int64_t) { return false; }

// The integral of a ray that meets no voxel.
float empty_value(int valid) { return valid == 0 ? NAN : 0.0f; }

void add_gradient(const ProjectTask &task, int64_t ray, float weight, const RayGradient &gradient) {
  for (int a = 0; a < 3; ++a) {
    task.grad_origin[3 * ray + a] += static_cast<float>(weight * gradient.origin[a]);
    task.grad_direction[3 * ray + a] += static_cast<float>(weight * gradient.direction[a]);
  }
}

void add_empty_gradient(const ProjectTask &task, int64_t ray, int valid) {
  if (valid == 0)
    for (int a = 0; a < 3; ++a) task.grad_origin[3 * ray + a] = task.grad_direction[3 * ray + a] = NAN;
}

}  // namespace

void project_planes(const ProjectTask &task, int64_t begin, int64_t end) {
  for_packets<PlanePacket, PlaneRay>(
      *task.grid, begin, end, [&](int64_t i) { return load_ray(*task.rays, i); }, take_all,
      [&](const Builder<PlanePacket, PlaneRay> &builder) {
        const PlanePacket &packet = builder.packet;
        LaneSums sums;
        sum_packet<false, float>(task, packet, sums);
        for (int l = 0; l < packet.count; ++l) task.projections[packet.ray[l]] = packet.scale[l] * sums.value[l];
      },
      [&](int64_t i, int valid) { task.projections[i] = empty_value(valid); });
}

void project_march(const ProjectTask &task, int64_t begin, int64_t end) {
  for_packets<MarchPacket, MarchRay>(
      *task.grid, begin, end, [&](int64_t i) { return load_ray(*task.rays, i); }, take_all,
      [&](const Builder<MarchPacket, MarchRay> &builder) {
        const MarchPacket &packet = builder.packet;
        MarchSums sums[kLanes];
        sum_march<false>(*task.grid, static_cast<const float *>(task.volume), packet, sums);
        for (int l = 0; l < packet.count; ++l) task.projections[packet.ray[l]] = packet.scale[l] * sums[l].value;
      },
      [&](int64_t i, int valid) { task.projections[i] = empty_value(valid); });
}

void grad_rays_planes(const ProjectTask &task, int64_t begin, int64_t end) {
  for_packets<PlanePacket, PlaneRay>(
      *task.grid, begin, end, [&](int64_t i) { return load_ray(*task.rays, i); },
      [&](int64_t i) { return task.weights[i] == 0.0f; },
      [&](const Builder<PlanePacket, PlaneRay> &builder) {
        const PlanePacket &packet = builder.packet;
        LaneSums sums;
        sum_packet<true, float>(task, packet, sums);
        for (int l = 0; l < packet.count; ++l)
          add_gradient(task, packet.ray[l], task.weights[packet.ray[l]],
                       plane_gradient(*task.grid, builder.grid_rays[l], builder.rays[l], packet.centre, sums.lane(l)));
      },
      [&](int64_t i, int valid) { add_empty_gradient(task, i, valid); });
}

void grad_rays_march(const ProjectTask &task, int64_t begin, int64_t end) {
  for_packets<MarchPacket, MarchRay>(
      *task.grid, begin, end, [&](int64_t i) { return load_ray(*task.rays, i); },
      [&](int64_t i) { return task.weights[i] == 0.0f; },
      [&](const Builder<MarchPacket, MarchRay> &builder) {
        const MarchPacket &packet = builder.packet;
        MarchSums sums[kLanes];
        sum_march<true>(*task.grid, static_cast<const float *>(task.volume), packet, sums);
        for (int l = 0; l < packet.count; ++l)
          add_gradient(task, packet.ray[l], task.weights[packet.ray[l]],
                       march_gradient(*task.grid, builder.grid_rays[l], packet.centre, sums[l]));
      },
      [&](int64_t i, int valid) { add_empty_gradient(task, i, valid); });
}

LICAG3D_CORE_END
