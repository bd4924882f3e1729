// SPDX-License-Identifier: Apache-2.0
// Volume operators on CUDA for any rays: one thread per ray, the arithmetic of core/. The transpose adds with atomics, so its last
// bits depend on the order in which threads arrive.
#include "core/march.h"
#include "core/view_walk.h"
#include "cuda/launch.cuh"

LICAG3D_CORE_BEGIN
namespace {

using ::licag3d::blocks_for;
using ::licag3d::kThreads;

template <bool kGradient>
__device__ PlaneSums sum_planes(const licag3d_grid &grid, const GridRay &ray, const PlaneRay &plane_ray, int centre,
                                const float *volume) {
  const WalkVolume<float> plain = {volume, {grid.stride[0], grid.stride[1], grid.stride[2]}};
  return walk_planes<kGradient>(plain, WalkBricks{}, grid, ray, plane_ray, centre);
}

template <bool kGradient>
__device__ MarchSums sum_march(const licag3d_grid &grid, const MarchRay &march, int centre, const float *volume) {
  const MarchLane lane = march_lane(march, centre);
  const Range &range = march.range;
  const Voxels voxels = {volume,
                         static_cast<int>(grid.stride[0]),
                         static_cast<int>(grid.stride[1]),
                         static_cast<int>(grid.stride[2]),
                         grid.size[0],
                         grid.size[1],
                         grid.size[2]};
  MarchSums sums = {};
  for (int i = range.first; i <= range.last; ++i) {
    if (i >= range.inner_first && i <= range.inner_last)
      add_sample_inner<kGradient>(voxels, lane, static_cast<float>(i - centre), sums);
    else
      add_sample<kGradient>(voxels, lane, static_cast<float>(i - centre), sums);
  }
  return sums;
}

__global__ void project_kernel(licag3d_grid grid, licag3d_rays rays, const float *volume, float *projections) {
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < rays.count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const GridRay ray = to_grid(grid, load_ray(rays, i));
    float value;
    if (grid.step_mm > 0) {
      const MarchRay march = march_ray(grid, ray);
      value = static_cast<float>(grid.step_mm) * sum_march<false>(grid, march, middle_of(march.range), volume).value;
    } else {
      const PlaneRay plane = plane_ray(grid, ray);
      value = static_cast<float>(plane.plane_mm) *
              sum_planes<false>(grid, ray, plane, middle_of(plane.range), volume).value;
    }
    projections[i] = ray.valid == 1 ? value : ray.valid == 0 ? NAN : 0.0f;
  }
}

__global__ void grad_rays_kernel(licag3d_grid grid, licag3d_rays rays, const float *volume, const float *weights,
                                 float *grad_origin, float *grad_direction) {
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < rays.count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    RayGradient total = {};
    const GridRay ray = to_grid(grid, load_ray(rays, i));
    for (int64_t b = 0; b < grid.batch; ++b) {
      const float weight = weights[b * rays.count + i];
      if (weight == 0.0f) continue;
      const float *data = volume + b * grid.stride_batch;
      RayGradient one;
      if (grid.step_mm > 0) {
        const MarchRay march = march_ray(grid, ray);
        const int centre = middle_of(march.range);
        one = march_gradient(grid, ray, centre, sum_march<true>(grid, march, centre, data));
      } else {
        const PlaneRay plane = plane_ray(grid, ray);
        const int centre = middle_of(plane.range);
        one = plane_gradient(grid, ray, plane, centre, sum_planes<true>(grid, ray, plane, centre, data));
      }
      for (int a = 0; a < 3; ++a) {
        total.origin[a] += ray.valid == 1 ? weight * one.origin[a] : ray.valid == 0 ? NAN : 0.0;
        total.direction[a] += ray.valid == 1 ? weight * one.direction[a] : ray.valid == 0 ? NAN : 0.0;
      }
    }
    for (int a = 0; a < 3; ++a) {
      grad_origin[3 * i + a] = static_cast<float>(total.origin[a]);
      grad_direction[3 * i + a] = static_cast<float>(total.direction[a]);
    }
  }
}

__device__ void add_voxel(float *at, float weight, float value) {
  if (weight != 0.0f) atomicAdd(at, weight * value);
}

__device__ void scatter_planes(const licag3d_grid &grid, const GridRay &ray, float value, float *volume) {
  spread_planes(grid, ray, value, volume, [](float *at, float share) { atomicAdd(at, share); });
}

__device__ void scatter_march(const licag3d_grid &grid, const GridRay &ray, float value, float *volume) {
  const MarchRay march = march_ray(grid, ray);
  const int centre = middle_of(march.range);
  const MarchLane lane = march_lane(march, centre);
  const float scaled = value * static_cast<float>(grid.step_mm);
  for (int i = march.range.first; i <= march.range.last; ++i) {
    const float j = static_cast<float>(i - centre), rest = lane.count - j;
    const float w = rest > 1.0f ? 1.0f : rest > 0.0f ? rest : 0.0f;
    const Neighbours x = neighbours(lane.x + j * lane.dx, grid.size[0]), y = neighbours(lane.y + j * lane.dy, grid.size[1]),
                     z = neighbours(lane.z + j * lane.dz, grid.size[2]);
    for (int corner = 0; corner < 8; ++corner) {
      const bool ux = corner & 1, uy = corner & 2, uz = corner & 4;
      float *at = volume + (ux ? x.index1 : x.index0) * grid.stride[0] + (uy ? y.index1 : y.index0) * grid.stride[1] +
                  (uz ? z.index1 : z.index0) * grid.stride[2];
      add_voxel(at, w * (ux ? x.weight1 : x.weight0) * (uy ? y.weight1 : y.weight0) * (uz ? z.weight1 : z.weight0), scaled);
    }
  }
}

__global__ void backproject_kernel(licag3d_grid grid, licag3d_rays rays, const float *projections, float *volume) {
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < rays.count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const float value = projections[i];
    if (value == 0.0f) continue;
    const GridRay ray = to_grid(grid, load_ray(rays, i));
    if (ray.valid != 1) continue;
    if (grid.step_mm > 0)
      scatter_march(grid, ray, value, volume);
    else
      scatter_planes(grid, ray, value, volume);
  }
}

}  // namespace
LICAG3D_CORE_END

extern "C" {

int32_t licag3d_cuda_project_volume(const licag3d_run *run, const licag3d_grid *grid, const licag3d_rays *rays,
                                    const float *volume, float *projections) {
  for (int64_t b = 0; b < grid->batch && rays->count > 0; ++b)
    licag3d::LICAG3D_ISA::project_kernel<<<licag3d::blocks_for(rays->count), licag3d::kThreads, 0,
                                           licag3d::stream_of(run)>>>(*grid, *rays, volume + b * grid->stride_batch,
                                                                      projections + b * rays->count);
  return licag3d::cuda_status();
}

int32_t licag3d_cuda_backproject(const licag3d_run *run, const licag3d_grid *grid, const licag3d_rays *rays,
                                 const float *projections, float *volume) {
  for (int64_t b = 0; b < grid->batch && rays->count > 0; ++b)
    licag3d::LICAG3D_ISA::backproject_kernel<<<licag3d::blocks_for(rays->count), licag3d::kThreads, 0,
                                               licag3d::stream_of(run)>>>(
        *grid, *rays, projections + b * rays->count, volume + b * grid->stride_batch);
  return licag3d::cuda_status();
}

int32_t licag3d_cuda_project_volume_grad_rays(const licag3d_run *run, const licag3d_grid *grid, const licag3d_rays *rays,
                                              const float *volume, const float *weights, float *grad_origin,
                                              float *grad_direction) {
  if (rays->count > 0)
    licag3d::LICAG3D_ISA::grad_rays_kernel<<<licag3d::blocks_for(rays->count), licag3d::kThreads, 0,
                                             licag3d::stream_of(run)>>>(*grid, *rays, volume, weights, grad_origin,
                                                                        grad_direction);
  return licag3d::cuda_status();
}

}  // extern "C"
