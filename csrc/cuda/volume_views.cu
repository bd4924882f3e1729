// SPDX-License-Identifier: Apache-2.0
// Volume operators for whole views on CUDA: a thread per pixel builds its ray in registers from the twelve numbers of its
// view, so thousands of candidate cameras are one launch and no ray is stored. The transpose runs a thread per voxel
// (core/view_gather.h): no atomics, the same bits every time. Nothing waits for the device and nothing is copied to the
// host: what depends on the data (whether bricks are worth looking at, whether a view runs along x) is decided on the
// device, so that a call may be captured into a graph.
#include <algorithm>

#include "core/view_gather.h"
#include "core/view_walk.h"
#include "cuda/buffer.cuh"
#include "cuda/launch.cuh"

LICAG3D_CORE_BEGIN
namespace {

using ::licag3d::blocks_for;
using ::licag3d::cuda_status;
using ::licag3d::kThreads;
using ::licag3d::cuda::Buffer;

constexpr int kTileCols = 16, kTileRows = 8;  // pixels of a block; a warp has 8 x 4 of them

// What the device knows about a call, zeroed before it.
struct Known {
  int full_bricks;
  int along_x;  // some ray runs mainly along x
};

__device__ int64_t first_index() { return blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; }
__device__ int64_t index_step() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

__device__ bool holds_something(float voxel) { return voxel != 0.0f; }  // true for NaN
__device__ bool holds_something(Half voxel) { return (voxel.bits & 0x7fff) != 0; }

// 0 for bricks that hold something, kWalkReach for the others. A block looks at 128 voxels along x, four rows and planes.
template <class Voxel>
__global__ void find_bricks_kernel(licag3d_grid grid, const Voxel *volume, WalkBricks bricks, uint8_t *out, Known *known) {
  const int64_t across = (grid.size[0] + kThreads - 1) / kThreads;
  const int64_t total = across * bricks.size[1] * bricks.size[2];
  for (int64_t block = blockIdx.x; block < total; block += gridDim.x) {
    const int x = static_cast<int>(block % across) * kThreads + threadIdx.x;
    const int by = static_cast<int>(block / across % bricks.size[1]), bz = static_cast<int>(block / across / bricks.size[1]);
    bool full = false;
    if (x < grid.size[0])
      for (int z = bz * kWalkBrick; z < (bz + 1) * kWalkBrick && z < grid.size[2]; ++z)
        for (int y = by * kWalkBrick; y < (by + 1) * kWalkBrick && y < grid.size[1]; ++y)
          full = full || holds_something(volume[(static_cast<int64_t>(z) * grid.size[1] + y) * grid.size[0] + x]);
    const unsigned mask = __ballot_sync(0xffffffffu, full);
    const int lane = threadIdx.x % 32, bx = x / kWalkBrick;
    const bool brick = (mask >> (lane / kWalkBrick * kWalkBrick) & ((1u << kWalkBrick) - 1)) != 0;
    if (lane % kWalkBrick == 0 && bx < bricks.size[0]) {
      out[(static_cast<int64_t>(bz) * bricks.size[1] + by) * bricks.size[0] + bx] = brick ? 0 : kWalkReach;
      if (brick) atomicAdd(&known->full_bricks, 1);
    }
  }
}

__global__ void reach_kernel(WalkBricks bricks, int axis, const uint8_t *in, uint8_t *out) {
  const int64_t stride = axis == 0 ? 1 : axis == 1 ? bricks.size[0] : static_cast<int64_t>(bricks.size[0]) * bricks.size[1];
  const int64_t count = static_cast<int64_t>(bricks.size[0]) * bricks.size[1] * bricks.size[2];
  for (int64_t i = first_index(); i < count; i += index_step())
    out[i] = walk_reach(in + i, stride, static_cast<int>(i / stride % bricks.size[axis]), bricks.size[axis]);
}

__global__ void look_at_views_kernel(licag3d_grid grid, licag3d_views views, Known *known) {
  for (int64_t v = first_index(); v < views.count; v += index_step())
    if (main_axes(view_in_grid(grid, view_mm(views, v)), views.rows, views.cols) & 1) known->along_x = 1;
}

// The volume with x and y exchanged, where a view runs along x: its pixels then meet neighbours side by side.
template <class Voxel>
__global__ void turn_kernel(licag3d_grid grid, const Voxel *volume, Voxel *turned, const Known *known) {
  __shared__ Voxel tile[32][33];
  if (known->along_x == 0) return;
  const int nx = grid.size[0], ny = grid.size[1];
  const int64_t across = (nx + 31) / 32, down = (ny + 31) / 32, total = across * down * grid.size[2];
  for (int64_t block = blockIdx.x; block < total; block += gridDim.x) {
    const int x0 = static_cast<int>(block % across) * 32, y0 = static_cast<int>(block / across % down) * 32;
    const int64_t plane = block / across / down * nx * ny;
    const int lane = threadIdx.x % 32;
    for (int r = threadIdx.x / 32; r < 32; r += kThreads / 32)
      if (x0 + lane < nx && y0 + r < ny) tile[r][lane] = volume[plane + static_cast<int64_t>(y0 + r) * nx + x0 + lane];
    __syncthreads();
    for (int r = threadIdx.x / 32; r < 32; r += kThreads / 32)
      if (x0 + r < nx && y0 + lane < ny) turned[plane + static_cast<int64_t>(x0 + r) * ny + y0 + lane] = tile[lane][r];
    __syncthreads();
  }
}

// A pixel of a block's tile; view is that of the tile, in_image whether there is such a pixel.
struct TilePixel {
  int64_t view;
  int col, row;
  bool in_image;
};

__device__ int64_t tiles_of_view(const licag3d_views &views) {
  return static_cast<int64_t>((views.cols + kTileCols - 1) / kTileCols) * ((views.rows + kTileRows - 1) / kTileRows);
}

__device__ TilePixel tile_pixel(const licag3d_views &views, int64_t view, int64_t tile) {
  const int across = (views.cols + kTileCols - 1) / kTileCols, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  TilePixel out;
  out.view = view;
  out.col = static_cast<int>(tile % across) * kTileCols + warp % 2 * 8 + lane % 8;
  out.row = static_cast<int>(tile / across) * kTileRows + warp / 2 * 4 + lane / 8;
  out.in_image = out.col < views.cols && out.row < views.rows;
  return out;
}

// A volume and what was found out about it.
template <class Voxel>
struct Seen {
  WalkVolume<Voxel> plain, turned;  // turned.data may be NULL
  WalkBricks bricks;                // bricks.distance may be NULL
  const Known *known;

  __device__ WalkBricks worthwhile() const {
    WalkBricks out = bricks;
    const int64_t count = static_cast<int64_t>(bricks.size[0]) * bricks.size[1] * bricks.size[2];
    if (bricks.distance != nullptr && known->full_bricks > count - count / 8) out.distance = nullptr;
    return out;
  }
};

template <bool kGradient, class Voxel>
__device__ PlaneSums walk(const licag3d_grid &grid, const Seen<Voxel> &seen, const WalkBricks &bricks, int64_t shift,
                          const GridRay &ray, const PlaneRay &plane, int centre) {
  WalkVolume<Voxel> volume = ray.axis[2] == 0 && seen.turned.data != nullptr ? seen.turned : seen.plain;
  volume.data += shift;
  return walk_planes<kGradient>(volume, bricks, grid, ray, plane, centre);
}

template <class Voxel>
__global__ void __launch_bounds__(kThreads)
    project_views_kernel(licag3d_grid grid, licag3d_views views, Seen<Voxel> seen, float *projections) {
  const WalkBricks bricks = seen.worthwhile();
  const int64_t tiles = tiles_of_view(views), total = tiles * views.count;
  for (int64_t t = blockIdx.x; t < total; t += gridDim.x) {
    const TilePixel pixel = tile_pixel(views, t / tiles, t % tiles);
    if (!pixel.in_image) continue;
    const GridRay ray = to_grid(grid, pixel_ray(view_mm(views, pixel.view), pixel.col, pixel.row));
    const PlaneRay plane = plane_ray(grid, ray);
    const float sum = walk<false>(grid, seen, bricks, 0, ray, plane, middle_of(plane.range)).value;
    projections[(pixel.view * views.rows + pixel.row) * views.cols + pixel.col] =
        ray.valid == 1 ? static_cast<float>(plane.plane_mm) * sum : ray.valid == 0 ? NAN : 0.0f;
  }
}

__device__ double sum_over_warp(double value) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

// Twelve sums for each part of a view; a block takes the tiles of one part in a fixed order.
template <class Voxel>
__global__ void __launch_bounds__(kThreads) grad_frames_kernel(licag3d_grid grid, licag3d_views views, Seen<Voxel> seen,
                                                               const float *weights, int parts, double *partial) {
  __shared__ double of_warp[kThreads / 32][12];
  const WalkBricks bricks = seen.worthwhile();
  const int64_t tiles = tiles_of_view(views);
  for (int64_t job = blockIdx.x; job < views.count * parts; job += gridDim.x) {
    const int64_t view = job / parts, part = job % parts;
    double sum[12] = {};
    for (int64_t tile = part; tile < tiles; tile += parts) {
      const TilePixel pixel = tile_pixel(views, view, tile);
      if (!pixel.in_image) continue;
      const float weight = weights[(view * views.rows + pixel.row) * views.cols + pixel.col];
      if (weight == 0.0f) continue;
      const GridRay ray = to_grid(grid, pixel_ray(view_mm(views, view), pixel.col, pixel.row));
      const PlaneRay plane = plane_ray(grid, ray);
      const int centre = middle_of(plane.range);
      const RayGradient one =
          plane_gradient(grid, ray, plane, centre, walk<true>(grid, seen, bricks, 0, ray, plane, centre));
      for (int a = 0; a < 3; ++a) {
        const double by_source = ray.valid == 1 ? weight * one.origin[a] : ray.valid == 0 ? NAN : 0.0;
        const double by_way = ray.valid == 1 ? weight * one.direction[a] : ray.valid == 0 ? NAN : 0.0;
        sum[a] += by_source;
        sum[3 + a] += by_way;
        sum[6 + a] += pixel.col * by_way;
        sum[9 + a] += pixel.row * by_way;
      }
    }
    for (int i = 0; i < 12; ++i) {
      const double total = sum_over_warp(sum[i]);
      if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32][i] = total;
    }
    __syncthreads();
    if (threadIdx.x < 12) {
      double total = 0;
      for (int w = 0; w < kThreads / 32; ++w) total += of_warp[w][threadIdx.x];
      partial[12 * job + threadIdx.x] = total;
    }
    __syncthreads();
  }
}

__global__ void add_parts_kernel(int64_t count, int parts, const double *partial, double *grad_frames) {
  for (int64_t i = first_index(); i < 12 * count; i += index_step()) {
    double sum = 0;
    for (int p = 0; p < parts; ++p) sum += partial[12 * (i / 12 * parts + p) + i % 12];
    grad_frames[i] += sum;
  }
}

// --- transpose -------------------------------------------------------------------------------------------------------

__global__ void gather_views_kernel(licag3d_grid grid, licag3d_views views, GatherView *out) {
  for (int64_t v = first_index(); v < views.count; v += index_step()) out[v] = gather_view(grid, views, v);
}

__global__ void share_kernel(licag3d_grid grid, licag3d_views views, const float *projections, float *share, uint8_t *axis) {
  const int64_t pixels = static_cast<int64_t>(views.rows) * views.cols;
  for (int64_t i = first_index(); i < views.count * pixels; i += index_step())
    share[i] = pixel_share(grid, views, i / pixels, static_cast<int>(i % views.cols),
                           static_cast<int>(i % pixels / views.cols), projections[i], axis[i]);
}

__global__ void __launch_bounds__(kThreads) gather_kernel(licag3d_grid grid, licag3d_views views, const GatherView *ready,
                                                          const float *share, const uint8_t *axis, float *volume) {
  const int64_t across = (grid.size[0] + 31) / 32, down = (grid.size[1] + 3) / 4, total = across * down * grid.size[2];
  const int64_t pixels = static_cast<int64_t>(views.rows) * views.cols;
  for (int64_t block = blockIdx.x; block < total; block += gridDim.x) {
    const int voxel[3] = {static_cast<int>(block % across) * 32 + static_cast<int>(threadIdx.x % 32),
                          static_cast<int>(block / across % down) * 4 + static_cast<int>(threadIdx.x / 32),
                          static_cast<int>(block / across / down)};
    if (voxel[0] >= grid.size[0] || voxel[1] >= grid.size[1]) continue;
    float sum = 0.0f;
    for (int64_t v = 0; v < views.count; ++v)
      if (ready[v].regular) sum += gather_voxel(ready[v], voxel, views.rows, views.cols, share + v * pixels, axis + v * pixels);
    volume[(static_cast<int64_t>(voxel[2]) * grid.size[1] + voxel[1]) * grid.size[0] + voxel[0]] += sum;
  }
}

// Ray by ray with atomics: all views, or where `ready` is given those that cannot be gathered.
__global__ void scatter_views_kernel(licag3d_grid grid, licag3d_views views, const GatherView *ready,
                                     const float *projections, float *volume) {
  const int64_t pixels = static_cast<int64_t>(views.rows) * views.cols;
  for (int64_t i = first_index(); i < views.count * pixels; i += index_step()) {
    const int64_t v = i / pixels;
    const float value = projections[i];
    if (value == 0.0f || (ready != nullptr && ready[v].regular)) continue;
    const GridRay ray = to_grid(grid, pixel_ray(view_mm(views, v), static_cast<int>(i % views.cols),
                                                static_cast<int>(i % pixels / views.cols)));
    if (ray.valid != 1) continue;
    spread_planes(grid, ray, value, volume, [](float *at, float share) { atomicAdd(at, share); });
  }
}

// --- host ------------------------------------------------------------------------------------------------------------

bool usable(const licag3d_grid &grid, const licag3d_views &views) {
  double voxels = 1;
  for (int a = 0; a < 3; ++a) {
    if (grid.size[a] < 1 || !(grid.voxel_size_mm[a] > 0)) return false;
    voxels *= grid.size[a];
  }
  return voxels < 2147483648.0 && grid.batch >= 0 && grid.step_mm == 0 && grid.stride[0] == 1 &&
         grid.stride[1] == grid.size[0] && grid.stride[2] == static_cast<int64_t>(grid.size[0]) * grid.size[1] &&
         views.count >= 0 && views.rows >= 0 && views.cols >= 0;
}

int32_t refuse() { return ::licag3d::cuda::cuda_fail(LICAG3D_BAD_ARGUMENT, "the grid or the views are malformed"); }

int64_t rays_of(const licag3d_views &views) { return views.count * views.rows * views.cols; }

int blocks_of(int64_t blocks) { return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(blocks, 1 << 22))); }

// Looks at every volume of a batch in turn and calls body(b, seen).
template <class Voxel, class Body>
int32_t for_volumes(const licag3d_run &run, const licag3d_grid &grid, const licag3d_views &views, const Voxel *volume,
                    Body &&body) {
  const cudaStream_t stream = ::licag3d::stream_of(&run);
  const int64_t voxels = grid.stride[2] * grid.size[2], rays = rays_of(views);
  const int64_t longest = std::max(grid.size[0], std::max(grid.size[1], grid.size[2]));
  WalkBricks bricks = {nullptr, {}};
  int64_t count = 1;
  for (int a = 0; a < 3; ++a) count *= bricks.size[a] = (grid.size[a] + kWalkBrick - 1) / kWalkBrick;
  // Looking at every voxel pays when about as many samples may be saved, turning when each voxel is read several times.
  const bool look = !(grid.flags & LICAG3D_KEEP_EMPTY) && rays * longest > voxels / 4;
  const bool turn = rays * longest > 4 * voxels;
  const Buffer known(stream, sizeof(Known)), distance(stream, look ? count : 0), other(stream, look ? count : 0),
      turned(stream, turn ? voxels * static_cast<int64_t>(sizeof(Voxel)) : 0);
  for (const cudaError_t status : {known.status(), distance.status(), other.status(), turned.status()})
    if (status != cudaSuccess) return ::licag3d::cuda::cuda_check(status);
  for (int64_t b = 0; b < grid.batch; ++b) {
    const Voxel *data = volume + b * grid.stride_batch;
    cudaMemsetAsync(known.as<Known>(), 0, sizeof(Known), stream);
    if (look) {
      const int64_t blocks = static_cast<int64_t>((grid.size[0] + kThreads - 1) / kThreads) * bricks.size[1] * bricks.size[2];
      uint8_t *one = distance.as<uint8_t>(), *two = other.as<uint8_t>();
      find_bricks_kernel<<<blocks_of(blocks), kThreads, 0, stream>>>(grid, data, bricks, two, known.as<Known>());
      reach_kernel<<<blocks_for(count), kThreads, 0, stream>>>(bricks, 0, two, one);
      reach_kernel<<<blocks_for(count), kThreads, 0, stream>>>(bricks, 1, one, two);
      reach_kernel<<<blocks_for(count), kThreads, 0, stream>>>(bricks, 2, two, one);
      bricks.distance = one;
    }
    const int64_t nx = grid.size[0], ny = grid.size[1];
    Seen<Voxel> seen = {{data, {1, nx, nx * ny}}, {nullptr, {ny, 1, nx * ny}}, bricks, known.as<Known>()};
    if (turn) {
      look_at_views_kernel<<<blocks_for(views.count), kThreads, 0, stream>>>(grid, views, known.as<Known>());
      turn_kernel<<<blocks_of((nx + 31) / 32 * ((ny + 31) / 32) * grid.size[2]), kThreads, 0, stream>>>(
          grid, data, turned.as<Voxel>(), known.as<Known>());
      seen.turned.data = turned.as<Voxel>();
    }
    body(b, seen);
  }
  return cuda_status();
}

int64_t tiles_in(const licag3d_views &views) {
  return static_cast<int64_t>((views.cols + kTileCols - 1) / kTileCols) * ((views.rows + kTileRows - 1) / kTileRows);
}

template <class Voxel>
int32_t project(const licag3d_run &run, const licag3d_grid &grid, const licag3d_views &views, const Voxel *volume,
                float *projections) {
  return for_volumes(run, grid, views, volume, [&](int64_t b, const Seen<Voxel> &seen) {
    project_views_kernel<<<blocks_of(views.count * tiles_in(views)), kThreads, 0, ::licag3d::stream_of(&run)>>>(
        grid, views, seen, projections + b * rays_of(views));
  });
}

template <class Voxel>
int32_t grad_frames(const licag3d_run &run, const licag3d_grid &grid, const licag3d_views &views, const Voxel *volume,
                    const float *weights, double *out) {
  // About 8192 blocks whatever the number of views; the number of parts does not depend on the device.
  const int64_t wanted = (8192 + views.count - 1) / views.count;
  const int parts = static_cast<int>(std::min(wanted, tiles_in(views)));
  const cudaStream_t stream = ::licag3d::stream_of(&run);
  const Buffer partial(stream, 12 * views.count * parts * static_cast<int64_t>(sizeof(double)));
  if (partial.status() != cudaSuccess) return ::licag3d::cuda::cuda_check(partial.status());
  return for_volumes(run, grid, views, volume, [&](int64_t b, const Seen<Voxel> &seen) {
    grad_frames_kernel<<<blocks_of(views.count * parts), kThreads, 0, stream>>>(
        grid, views, seen, weights + b * rays_of(views), parts, partial.as<double>());
    add_parts_kernel<<<blocks_for(12 * views.count), kThreads, 0, stream>>>(views.count, parts, partial.as<double>(), out);
  });
}

}  // namespace
LICAG3D_CORE_END

extern "C" {

int32_t licag3d_cuda_project_views(const licag3d_run *run, const licag3d_grid *grid, const licag3d_views *views,
                                   const void *volume, float *projections) {
  using namespace licag3d::LICAG3D_ISA;
  if (!usable(*grid, *views)) return refuse();
  if (rays_of(*views) == 0) return LICAG3D_OK;
  return grid->flags & LICAG3D_HALF ? project(*run, *grid, *views, static_cast<const Half *>(volume), projections)
                                    : project(*run, *grid, *views, static_cast<const float *>(volume), projections);
}

int32_t licag3d_cuda_backproject_views(const licag3d_run *run, const licag3d_grid *grid, const licag3d_views *views,
                                       const float *projections, float *volume) {
  using namespace licag3d::LICAG3D_ISA;
  if (!usable(*grid, *views)) return refuse();
  const int64_t rays = rays_of(*views);
  if (rays == 0) return LICAG3D_OK;
  const cudaStream_t stream = licag3d::stream_of(run);
  const bool gather = !(grid->flags & LICAG3D_ATOMIC);
  const Buffer ready(stream, gather ? views->count * static_cast<int64_t>(sizeof(GatherView)) : 0),
      share(stream, gather ? rays * static_cast<int64_t>(sizeof(float)) : 0), axis(stream, gather ? rays : 0);
  for (const cudaError_t status : {ready.status(), share.status(), axis.status()})
    if (status != cudaSuccess) return licag3d::cuda::cuda_check(status);
  if (gather) gather_views_kernel<<<blocks_for(views->count), kThreads, 0, stream>>>(*grid, *views, ready.as<GatherView>());
  const int64_t blocks = static_cast<int64_t>((grid->size[0] + 31) / 32) * ((grid->size[1] + 3) / 4) * grid->size[2];
  for (int64_t b = 0; b < grid->batch; ++b) {
    const float *from = projections + b * rays;
    float *to = volume + b * grid->stride_batch;
    if (gather) {
      share_kernel<<<blocks_for(rays), kThreads, 0, stream>>>(*grid, *views, from, share.as<float>(), axis.as<uint8_t>());
      gather_kernel<<<blocks_of(blocks), kThreads, 0, stream>>>(*grid, *views, ready.as<GatherView>(), share.as<float>(),
                                                               axis.as<uint8_t>(), to);
    }
    scatter_views_kernel<<<blocks_for(rays), kThreads, 0, stream>>>(*grid, *views, ready.as<GatherView>(), from, to);
  }
  return licag3d::cuda_status();
}

int32_t licag3d_cuda_project_views_grad_frames(const licag3d_run *run, const licag3d_grid *grid, const licag3d_views *views,
                                               const void *volume, const float *weights, double *grad_frames) {
  using namespace licag3d::LICAG3D_ISA;
  if (!usable(*grid, *views)) return refuse();
  cudaMemsetAsync(grad_frames, 0, 12 * views->count * sizeof(double), licag3d::stream_of(run));
  if (rays_of(*views) == 0) return licag3d::cuda_status();
  return grid->flags & LICAG3D_HALF
             ? licag3d::LICAG3D_ISA::grad_frames(*run, *grid, *views, static_cast<const Half *>(volume), weights, grad_frames)
             : licag3d::LICAG3D_ISA::grad_frames(*run, *grid, *views, static_cast<const float *>(volume), weights, grad_frames);
}

}  // extern "C"
