// SPDX-License-Identifier: Apache-2.0
// Tri-plane operators on CUDA: buffers, launches and entry points. Memory beyond inputs and outputs: a channel-padded copy
// of the planes (halves where the decoder is bfloat16) and one of their gradient, a few numbers a ray, and at most
// kPartialBytes of weight sums. Nothing waits for the device, so calls may be captured into a graph.
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "cuda/buffer.cuh"
#include "cuda/error.h"
#include "cuda/launch.cuh"
#include "cuda/triplane_kernels.cuh"
#include "cuda/triplane_memory.cuh"

namespace licag3d {
namespace cuda {
namespace {

constexpr int64_t kPartialBytes = 64 << 20;
constexpr int kMaxChannels = 64;               // features and their gradient must fit into registers
constexpr int64_t kSharedWeights = 10000 + 16;  // floats of a decoder in shared memory
constexpr int64_t kWantedUnits = 4096;         // warps that keep a large device busy

struct Call {
  const licag3d_run &run;
  const licag3d_triplane &field;
  licag3d_triplane_options options;
  Work work;
  bool rays_per_item;
  float *values;
  const float *grad_values;                     // NULL: forward
  const licag3d_triplane_gradients *gradients;  // NULL: forward
};

// One pass over one item of the batch, with the template arguments chosen.
template <class Decoder, bool kPoints, bool kBackward, bool kWeights>
cudaError_t launch(const Call &call, const Field &field, const TriplaneBox &box, const CellGrid &cells, const Work &work,
                   const float *grad_values, float *values, const Targets &targets, int64_t blocks) {
  const size_t bytes = Decoder::shared_bytes(field.hidden, kBackward);
  const auto kernel = triplane_kernel<Decoder, kPoints, kBackward, kWeights>;
  const cudaError_t status =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (status != cudaSuccess) return status;
  kernel<<<static_cast<int>(blocks), kBlockThreads, bytes, stream_of(&call.run)>>>(field, box, cells, work, grad_values,
                                                                                   values, targets);
  return cudaGetLastError();
}

template <class Decoder>
class Operator {
 public:
  using Texel = typename Decoder::Texel;
  static constexpr int kPadded = Decoder::kPadded;

  Operator(const Call &call, int hidden)
      : call_(call),
        stream_(stream_of(&call.run)),
        backward_(call.grad_values != nullptr),
        points_(call.work.points != nullptr),
        hidden_(hidden),
        texels_(static_cast<int64_t>(call.field.resolution) * call.field.resolution),
        weight_floats_(weight_floats(kPadded, hidden)),
        box_(make_box(call.field.box_center_mm, call.field.box_size_mm, call.field.resolution)) {}

  int32_t run() {
    const licag3d_triplane_gradients *out = call_.gradients;
    const bool want_weights = backward_ && out->weight_1 != nullptr, want_planes = backward_ && out->planes != nullptr,
               want_rays = backward_ && out->origin != nullptr, whole = want_planes && call_.options.deterministic != 0;
    Work work = call_.work;
    // Rays of no image say that they are one long row.
    const int64_t row = work.rays.image_cols;
    if (!points_ && row >= 8 && work.count % row == 0 && work.count / row >= 4) work.cols = static_cast<int32_t>(row);
    // Few rays: their samples are cut into pieces. Fixed numbers, so that sums do not depend on the device.
    const int64_t tiles = std::max<int64_t>(1, tiles_of(work));
    work.segments = points_ ? 1
                            : static_cast<int>(std::max<int64_t>(
                                  1, std::min<int64_t>((kWantedUnits + tiles - 1) / tiles, (work.samples + 7) / 8)));
    const int64_t blocks = block_count(tiles * work.segments, want_weights);
    const int64_t values = 3 * texels_ * kPadded, sets = want_weights ? Decoder::weight_sets(blocks) : 0;
    const int64_t sums = points_ && !want_rays ? 0 : (want_rays ? kRaySums : backward_ ? 0 : 1) * work.segments * work.count;
    const int64_t cells = call_.options.occupancy != nullptr ? call_.options.cells : 0, cell_count = cells * cells * cells;
    const Buffer planes(stream_, values * static_cast<int64_t>(sizeof(Texel))), weights(stream_, 4 * weight_floats_),
        gradient(stream_, want_planes ? values * (whole ? 8 : 4) : 0), partial(stream_, 4 * sets * weight_floats_),
        ray_sums(stream_, 4 * sums), distance(stream_, cell_count), other(stream_, cell_count), unit(stream_, whole ? 32 : 0);
    for (const Buffer *buffer : {&planes, &weights, &gradient, &partial, &ray_sums, &distance, &other, &unit})
      if (buffer->status() != cudaSuccess) return cuda_check(buffer->status());
    if (sets > 0) cudaMemsetAsync(partial.as<float>(), 0, 4 * sets * weight_floats_, stream_);
    const int64_t all_rays = points_ ? work.count : work.rays.count;
    if (want_rays) cudaMemsetAsync(out->origin, 0, 12 * all_rays, stream_);
    if (want_rays && !points_) cudaMemsetAsync(out->direction, 0, 12 * all_rays, stream_);
    pack_weights_kernel<<<blocks_for(weight_floats_), kThreads, 0, stream_>>>(call_.field, kPadded, hidden_,
                                                                              weights.as<float>());
    double *scale = unit.as<double>();
    int *broken = whole ? reinterpret_cast<int *>(scale + 1) : nullptr;
    if (whole) {
      unsigned *largest = reinterpret_cast<unsigned *>(scale + 2);
      cudaMemsetAsync(unit.as<char>(), 0, 32, stream_);
      largest_kernel<<<blocks_for(call_.field.batch * work.count), kThreads, 0, stream_>>>(
          call_.grad_values, call_.field.batch * work.count, largest);
      const double longest_mm = points_ ? 1.0 : 1.7320508075688773 * call_.field.box_size_mm / work.samples;
      choose_scale_kernel<<<1, 1, 0, stream_>>>(weights.as<float>(), kPadded, hidden_, largest, longest_mm,
                                                static_cast<double>(work.count) * work.samples, scale);
    }
    const Field field = {planes.as<void>(), weights.as<float>(), call_.field.resolution, hidden_};
    const Targets targets = {whole ? nullptr : gradient.as<float>(),
                             whole ? gradient.as<unsigned long long>() : nullptr,
                             scale,
                             broken,
                             partial.as<float>(),
                             ray_sums.as<float>()};
    const int64_t plane_bytes = 3 * call_.field.channels * texels_ * (call_.field.planes_are_half ? 2 : 4);
    const int tile_blocks = static_cast<int>(std::min<int64_t>(3 * ((texels_ + kTileTexels - 1) / kTileTexels), 65536));
    CellGrid grid = {nullptr, static_cast<int>(cells), static_cast<float>(cells) / static_cast<float>(call_.field.resolution)};
    for (int64_t b = 0; b < call_.field.batch && work.count > 0; ++b) {
      repack_kernel<Texel><<<tile_blocks, kThreads, 0, stream_>>>(
          static_cast<const char *>(call_.field.planes) + b * plane_bytes, call_.field.planes_are_half, call_.field.channels,
          kPadded, texels_, planes.as<Texel>());
      if (cells > 0 && (b == 0 || call_.options.occupancy_per_item)) {
        measure_cells(call_.options.occupancy + (call_.options.occupancy_per_item ? b * cell_count : 0), cell_count,
                      distance.as<uint8_t>(), other.as<uint8_t>());
        grid.distance = other.as<uint8_t>();
      }
      work.first_ray = call_.rays_per_item ? b * work.count : 0;
      if (want_planes) cudaMemsetAsync(gradient.as<char>(), 0, values * (whole ? 8 : 4), stream_);
      const float *grads = backward_ ? call_.grad_values + b * work.count : nullptr;
      float *to = backward_ ? nullptr : call_.values + b * work.count;
      const cudaError_t status = choose(field, grid, work, grads, to, targets, blocks, want_weights);
      if (status != cudaSuccess) return cuda_check(status);
      if (!backward_ && !points_)
        finish_values_kernel<<<blocks_for(work.count), kThreads, 0, stream_>>>(box_, work, ray_sums.as<float>(), to);
      if (want_rays)
        finish_rays_kernel<<<blocks_for(work.count), kThreads, 0, stream_>>>(box_, work, ray_sums.as<float>(), grads,
                                                                             out->origin, out->direction);
      if (want_planes)
        unpack_kernel<<<tile_blocks, kThreads, 0, stream_>>>(gradient.as<float>(), targets.whole, scale, broken,
                                                             call_.field.channels, kPadded, texels_,
                                                             out->planes + b * 3 * call_.field.channels * texels_);
    }
    if (want_planes && work.count == 0)
      cudaMemsetAsync(out->planes, 0, 4 * call_.field.batch * 3 * call_.field.channels * texels_, stream_);
    if (want_weights)
      sum_weights_kernel<<<blocks_for(weight_floats_), kThreads, 0, stream_>>>(
          partial.as<float>(), sets, call_.field.channels, kPadded, call_.field.hidden, hidden_, *out);
    return cuda_check(cudaGetLastError());
  }

 private:
  int64_t block_count(int64_t units, bool want_weights) const {
    int processors = 1;
    cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, call_.run.device);
    // Blocks read the decoder once and go on; a few rounds even out rays of different length.
    int64_t blocks = std::min<int64_t>((units + kWarps - 1) / kWarps, (backward_ ? 6LL : 16LL) * processors);
    if (want_weights)
      blocks = std::min<int64_t>(blocks, kPartialBytes / (4 * weight_floats_) / Decoder::weight_sets(1));
    return std::max<int64_t>(1, blocks);
  }

  void measure_cells(const uint8_t *occupancy, int64_t count, uint8_t *one, uint8_t *two) const {
    start_cells_kernel<<<blocks_for(count), kThreads, 0, stream_>>>(occupancy, count, one);
    for (int axis = 0; axis < 3; ++axis, std::swap(one, two))
      reach_cells_kernel<<<blocks_for(count), kThreads, 0, stream_>>>(call_.options.cells, axis, one, two);
  }

  cudaError_t choose(const Field &field, const CellGrid &cells, const Work &work, const float *grads, float *to,
                     const Targets &targets, int64_t blocks, bool want_weights) const {
    const auto go = [&](auto function) { return function(call_, field, box_, cells, work, grads, to, targets, blocks); };
    if (!backward_) return points_ ? go(launch<Decoder, true, false, false>) : go(launch<Decoder, false, false, false>);
    if (want_weights) return points_ ? go(launch<Decoder, true, true, true>) : go(launch<Decoder, false, true, true>);
    return points_ ? go(launch<Decoder, true, true, false>) : go(launch<Decoder, false, true, false>);
  }

  const Call &call_;
  cudaStream_t stream_;
  bool backward_, points_;
  int hidden_;
  int64_t texels_, weight_floats_;
  TriplaneBox box_;
};

int32_t dispatch(const Call &call) {
  const licag3d_triplane &field = call.field;
  const int padded = field.channels <= 16 ? 16 : field.channels <= 32 ? 32 : 64;
  const int hidden = (field.hidden + 15) / 16 * 16;
  const int64_t texels = static_cast<int64_t>(field.resolution) * field.resolution;
  if (field.batch < 0 || field.channels < 1 || field.channels > kMaxChannels || field.hidden < 1 ||
      field.resolution < 1 || texels >= (1LL << 31) || !(field.box_size_mm > 0) || call.work.samples < 1 ||
      weight_floats(padded, hidden) > kSharedWeights || (call.options.occupancy != nullptr && call.options.cells < 1))
    return cuda_fail(LICAG3D_BAD_ARGUMENT,
                     "tri-plane sizes are out of range (at most 64 channels, and a decoder of 10000 weights on CUDA)");
  const cudaError_t status = cudaSetDevice(call.run.device);
  if (status != cudaSuccess) return cuda_check(status);
  if (call.options.precision == 1 && field.channels <= kTensorChannels && field.hidden <= kTensorHidden)
    return Operator<TensorDecoder>(call, kTensorHidden).run();
  if (padded == 16) return Operator<PlainDecoder<16>>(call, hidden).run();
  if (padded == 32) return Operator<PlainDecoder<32>>(call, hidden).run();
  return Operator<PlainDecoder<64>>(call, hidden).run();
}

licag3d_triplane_options options_of(const licag3d_triplane_options *given) {
  return given != nullptr ? *given : licag3d_triplane_options{};
}

Work ray_work(const licag3d_triplane &field, const licag3d_rays &rays, bool per_item, int32_t samples) {
  return {rays, nullptr, 0, per_item && field.batch > 0 ? rays.count / field.batch : rays.count, samples, 0, 0, 1};
}

Work point_work(const void *points, int32_t are_double, int64_t count) {
  return {{}, points, 0, count, 1, are_double, 0, 1};
}

}  // namespace
}  // namespace cuda
}  // namespace licag3d

using namespace licag3d::cuda;

extern "C" {

int32_t licag3d_cuda_render_triplane_with(const licag3d_run *run, const licag3d_triplane *field,
                                          const licag3d_triplane_options *options, const licag3d_rays *rays,
                                          int32_t rays_per_item, int32_t samples, float *values) {
  return dispatch({*run, *field, options_of(options), ray_work(*field, *rays, rays_per_item, samples), rays_per_item != 0,
                   values, nullptr, nullptr});
}

int32_t licag3d_cuda_render_triplane_backward_with(const licag3d_run *run, const licag3d_triplane *field,
                                                   const licag3d_triplane_options *options, const licag3d_rays *rays,
                                                   int32_t rays_per_item, int32_t samples, const float *grad_values,
                                                   const licag3d_triplane_gradients *gradients) {
  return dispatch({*run, *field, options_of(options), ray_work(*field, *rays, rays_per_item, samples), rays_per_item != 0,
                   nullptr, grad_values, gradients});
}

int32_t licag3d_cuda_query_triplane_with(const licag3d_run *run, const licag3d_triplane *field,
                                         const licag3d_triplane_options *options, const void *points,
                                         int32_t points_are_double, int64_t count, float *values) {
  return dispatch({*run, *field, options_of(options), point_work(points, points_are_double, count), false, values, nullptr,
                   nullptr});
}

int32_t licag3d_cuda_query_triplane_backward_with(const licag3d_run *run, const licag3d_triplane *field,
                                                  const licag3d_triplane_options *options, const void *points,
                                                  int32_t points_are_double, int64_t count, const float *grad_values,
                                                  const licag3d_triplane_gradients *gradients) {
  return dispatch({*run, *field, options_of(options), point_work(points, points_are_double, count), false, nullptr,
                   grad_values, gradients});
}

}  // extern "C"
