// SPDX-License-Identifier: Apache-2.0
// Threads and entry points of the tri-plane operators on the CPU.
//
// The backward pass recomputes the forward one, chunk by chunk, in two phases. First every tile of 16 rays is decoded
// and leaves the gradients of its samples' features in a record. Then the threads share out slices of the plane
// gradient, 16 channels of one plane each, and every slice adds the records in the order of the tiles. So no two
// threads write to one place, no thread needs a gradient of its own, and neither threads nor chunks change a single bit
// of the result. Memory: O(rays), two channel-padded copies of the planes, and the records of one chunk (kRecordBytes
// at most, unless a single tile needs more).
#include "core/triplane.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#include "core/rays.h"
#include "cpu/error.h"
#include "cpu/threads.h"
#include "cpu/triplane_tasks.h"

namespace licag3d {
namespace {

constexpr int64_t kRecordBytes = 64 << 20;
constexpr int64_t kMaxChannels = 512, kMaxHidden = 4096;

// 64-byte aligned floats; std::bad_alloc is turned into an error code by guarded().
class Floats {
 public:
  explicit Floats(int64_t count) {
    const size_t bytes = (static_cast<size_t>(std::max<int64_t>(count, 1)) * sizeof(float) + 63) / 64 * 64;
    memory_.reset(static_cast<float *>(std::aligned_alloc(64, bytes)));
    if (!memory_) throw std::bad_alloc();
  }
  float *get() const { return memory_.get(); }

 private:
  struct Free {
    void operator()(float *p) const { std::free(p); }
  };
  std::unique_ptr<float, Free> memory_;
};

template <class Body>
int32_t guarded(Body &&body) {
  try {
    return body();
  } catch (const std::bad_alloc &) {
    return fail(LICAG3D_OUT_OF_MEMORY, "not enough memory for the tri-plane operator");
  }
}

int thread_count(const licag3d_run &run) {
  return run.threads > 0 ? run.threads : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

int32_t check(const licag3d_triplane &field) {
  const int64_t cp = (field.channels + 15) / 16 * 16;
  if (field.batch < 0 || field.channels < 1 || field.channels > kMaxChannels || field.hidden < 1 ||
      field.hidden > kMaxHidden || field.resolution < 1 || !(field.box_size_mm > 0) ||
      static_cast<int64_t>(field.resolution) * field.resolution * cp >= (1LL << 31))
    return fail(LICAG3D_BAD_ARGUMENT, "tri-plane sizes are out of range");
  return LICAG3D_OK;
}

// Scratch of every thread that may run a tile, handed out by an atomic ticket: a tile must not allocate, it cannot
// throw.
class ScratchPool {
 public:
  ScratchPool(int threads, int64_t floats)
      : floats_((floats + 15) / 16 * 16), memory_(threads * floats_), busy_(threads) {
    for (auto &flag : busy_) flag.store(false);
  }
  int take() {
    for (;;)
      for (size_t i = 0; i < busy_.size(); ++i)
        if (!busy_[i].exchange(true, std::memory_order_acquire)) return static_cast<int>(i);
  }
  void give(int i) { busy_[i].store(false, std::memory_order_release); }
  float *at(int i) const { return memory_.get() + i * floats_; }

 private:
  int64_t floats_;
  Floats memory_;
  std::vector<std::atomic<bool>> busy_;
};

// Padded weights, and channel-last planes of one item of the batch at a time.
class Field {
 public:
  Field(const licag3d_run &run, const licag3d_triplane &field)
      : run_(run),
        field_(field),
        cp_((field.channels + 15) / 16 * 16),
        hp_((field.hidden + 15) / 16 * 16),
        texels_(3 * texel_count() * cp_),
        weights_(2LL * cp_ * hp_ + 2 * hp_) {
    float *weight_1 = weights_.get(), *weight_1t = weight_1 + cp_ * hp_, *bias_1 = weight_1t + cp_ * hp_,
          *weight_2 = bias_1 + hp_;
    std::fill(weight_1, weight_2 + hp_, 0.0f);
    for (int j = 0; j < field.hidden; ++j) {
      for (int c = 0; c < field.channels; ++c)
        weight_1[j * cp_ + c] = weight_1t[c * hp_ + j] = field.weight_1[j * field.channels + c];
      bias_1[j] = field.bias_1[j];
      weight_2[j] = field.weight_2[j];
    }
    item_ = {&field_,         texels_.get(),  weight_1, weight_1t,    bias_1, weight_2,
             field.bias_2[0], field.channels, cp_,      field.hidden, hp_,    field.resolution};
  }

  const TriplaneItem &select(int64_t batch) {
    const int64_t texels = texel_count();
    const int64_t bytes = field_.planes_are_half ? 2 : 4;
    const auto repack = LICAG3D_SELECT_ISA(triplane_repack);
    const int64_t grain = 1024, blocks = (texels + grain - 1) / grain;
    parallel_for(3 * blocks, 4, run_.threads, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t plane = i / blocks, first = i % blocks * grain;
        const char *source =
            static_cast<const char *>(field_.planes) + (3 * batch + plane) * field_.channels * texels * bytes;
        repack(field_, source, cp_, texels_.get() + plane * texels * cp_, first, std::min(first + grain, texels));
      }
    });
    return item_;
  }

  int64_t texel_count() const { return static_cast<int64_t>(field_.resolution) * field_.resolution; }
  const TriplaneItem &item() const { return item_; }

 private:
  const licag3d_run &run_;
  const licag3d_triplane &field_;
  int cp_, hp_;
  Floats texels_, weights_;
  TriplaneItem item_;
};

// Rays [first, first + count) that meet the box, in squares of 4 x 4 pixels where the image is known: neighbours in a
// tile read the same texels. values, where given, is set for the others: 0, or NaN for a ray that is not finite.
std::vector<int64_t> rays_that_hit(const licag3d_run &run, const licag3d_triplane &field, const licag3d_rays &rays,
                                   int64_t first, int64_t count, float *values) {
  const plain::TriplaneBox box = plain::make_box(field.box_center_mm, field.box_size_mm, field.resolution);
  std::vector<char> hit(count);
  parallel_for(count, 4096, run.threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const plain::RayMm ray = plain::load_ray(rays, first + i);
      hit[i] = plain::clip_ray(box, ray.origin, ray.direction).hit;
      if (values != nullptr && !hit[i]) values[i] = plain::is_finite(ray) ? 0.0f : NAN;
    }
  });
  std::vector<int64_t> order;
  order.reserve(count);
  const int64_t cols = rays.image_cols > 0 && count % rays.image_cols == 0 ? rays.image_cols : count;
  const int64_t rows = cols > 0 ? count / cols : 0, high = rows > 1 ? 4 : 1, wide = rows > 1 ? 4 : 16;
  for (int64_t top = 0; top < rows; top += high)
    for (int64_t left = 0; left < cols; left += wide)
      for (int64_t r = top; r < std::min(top + high, rows); ++r)
        for (int64_t c = left; c < std::min(left + wide, cols); ++c)
          if (hit[r * cols + c]) order.push_back(r * cols + c);
  return order;
}

template <class Tile>
void for_tiles(const licag3d_run &run, ScratchPool &pool, int64_t begin, int64_t end, Tile &&tile) {
  parallel_for(end - begin, 1, run.threads, [&](int64_t from, int64_t to) {
    const int slot = pool.take();
    for (int64_t i = from; i < to; ++i) tile(begin + i, pool.at(slot));
    pool.give(slot);
  });
}

// The two phases of the backward pass over all tiles of one item.
class Accumulator {
 public:
  Accumulator(const licag3d_run &run, const licag3d_triplane &field, const licag3d_triplane_gradients &gradients,
              const TriplaneItem &item, int64_t tile_samples, int64_t tiles)
      : run_(run),
        field_(field),
        gradients_(gradients),
        cp_(item.cp),
        hp_(item.hp),
        samples_(tile_samples),
        weights_size_(gradients.weight_1 ? cp_ * hp_ + 2LL * hp_ + 16 : 0),
        sample_size_(gradients.planes ? 6 + cp_ : 0),
        tile_size_((samples_ * sample_size_ + weights_size_ + 15) / 16 * 16),
        tiles_(std::max<int64_t>(1, std::min({tiles, int64_t{8} * thread_count(run),
                                              kRecordBytes / std::max<int64_t>(tile_size_ * 4, 1)}))),
        records_(tiles_ * tile_size_),
        slices_(gradients.planes ? 3 * texel_count() * cp_ : 0),
        sums_(weights_size_) {}

  int64_t chunk() const { return tiles_; }

  TriplaneRecord record(int64_t tile) const {
    float *at = records_.get() + tile % tiles_ * tile_size_;
    TriplaneRecord record = {};
    record.samples = samples_;
    record.want_planes = gradients_.planes != nullptr;
    record.want_weights = gradients_.weight_1 != nullptr;
    if (record.want_planes) {
      record.features = at;  // first: rows of 16 floats stay aligned
      record.fraction = at + samples_ * cp_;
      record.texel = reinterpret_cast<int32_t *>(record.fraction + 3 * samples_);
    }
    record.weights = at + samples_ * sample_size_;
    return record;
  }

  void begin_item() {
    const int64_t size = gradients_.planes ? 3 * texel_count() * cp_ : 0;
    parallel_for(size, 1 << 18, run_.threads,
                 [&](int64_t begin, int64_t end) { std::fill(slices_.get() + begin, slices_.get() + end, 0.0f); });
  }

  // Second phase for tiles [begin, end), at most chunk() of them.
  void add(int64_t begin, int64_t end) {
    const auto scatter = LICAG3D_SELECT_ISA(triplane_scatter);
    const int64_t slices = gradients_.planes ? 3 * (cp_ / 16) : 0;
    parallel_for(slices + (weights_size_ > 0 ? 1 : 0), 1, run_.threads, [&](int64_t from, int64_t to) {
      for (int64_t unit = from; unit < to; ++unit)
        for (int64_t tile = begin; tile < end; ++tile) {
          const TriplaneRecord part = record(tile);
          if (unit < slices)
            scatter(part, field_.resolution, static_cast<int>(unit / (cp_ / 16)), static_cast<int>(unit % (cp_ / 16)),
                    slices_.get() + unit * texel_count() * 16);
          else
            for (int64_t i = 0; i < weights_size_; ++i) sums_[i] += part.weights[i];
        }
    });
  }

  // Gradient of the planes of one item, back in the order (3, C, R, R).
  void end_item(int64_t batch) const {
    if (gradients_.planes == nullptr) return;
    const int64_t texels = texel_count(), grain = 1024, blocks = (texels + grain - 1) / grain;
    parallel_for(3 * blocks, 1, run_.threads, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t plane = i / blocks, first = i % blocks * grain, last = std::min(first + grain, texels);
        float *out = gradients_.planes + (3 * batch + plane) * field_.channels * texels;
        for (int64_t block = first; block < last; block += 64)  // small enough for the first cache
          for (int c = 0; c < field_.channels; ++c) {
            const float *slice = slices_.get() + (plane * (cp_ / 16) + c / 16) * texels * 16 + c % 16;
            for (int64_t t = block; t < std::min(block + 64, last); ++t) out[c * texels + t] = slice[t * 16];
          }
      }
    });
  }

  void finish_weights() const {
    if (weights_size_ == 0) return;
    const double *bias_1 = sums_.data() + cp_ * hp_, *weight_2 = bias_1 + hp_, *bias_2 = weight_2 + hp_;
    for (int j = 0; j < field_.hidden; ++j) {
      for (int c = 0; c < field_.channels; ++c)
        gradients_.weight_1[j * field_.channels + c] = static_cast<float>(sums_[c * hp_ + j]);
      gradients_.bias_1[j] = static_cast<float>(bias_1[j]);
      gradients_.weight_2[j] = static_cast<float>(weight_2[j]);
    }
    double sum = 0;
    for (int i = 0; i < 16; ++i) sum += bias_2[i];
    gradients_.bias_2[0] = static_cast<float>(sum);
  }

 private:
  int64_t texel_count() const { return static_cast<int64_t>(field_.resolution) * field_.resolution; }

  const licag3d_run &run_;
  const licag3d_triplane &field_;
  const licag3d_triplane_gradients &gradients_;
  int64_t cp_, hp_, samples_, weights_size_, sample_size_, tile_size_, tiles_;
  Floats records_, slices_;
  std::vector<double> sums_;
};

void clear(float *values, int64_t count) {
  if (values != nullptr) std::fill(values, values + count, 0.0f);
}

}  // namespace
}  // namespace licag3d

using namespace licag3d;

extern "C" {

int32_t licag3d_render_triplane(const licag3d_run *run, const licag3d_triplane *field, const licag3d_rays *rays,
                                int32_t rays_per_item, int32_t samples, float *values) {
  if (check(*field) != LICAG3D_OK || samples < 1) return fail(LICAG3D_BAD_ARGUMENT, "tri-plane sizes are out of range");
  return guarded([&]() -> int32_t {
    Field planes(*run, *field);
    ScratchPool pool(thread_count(*run), LICAG3D_SELECT_ISA(triplane_scratch_floats)(planes.item()));
    const auto tile_task = LICAG3D_SELECT_ISA(triplane_render_tile);
    const int64_t count = rays_per_item && field->batch > 0 ? rays->count / field->batch : rays->count;
    for (int64_t b = 0; b < field->batch; ++b) {
      const TriplaneItem &item = planes.select(b);
      const int64_t first = rays_per_item ? b * count : 0;
      float *out = values + b * count;
      const std::vector<int64_t> hits = rays_that_hit(*run, *field, *rays, first, count, out);
      const TriplaneRayTask task = {rays, first, hits.data(), static_cast<int64_t>(hits.size()), samples};
      for_tiles(*run, pool, 0, (task.hit_count + kTriplaneLanes - 1) / kTriplaneLanes,
                [&](int64_t tile, float *scratch) { tile_task(item, task, tile, scratch, out); });
    }
    return LICAG3D_OK;
  });
}

int32_t licag3d_render_triplane_backward(const licag3d_run *run, const licag3d_triplane *field,
                                         const licag3d_rays *rays, int32_t rays_per_item, int32_t samples,
                                         const float *grad_values, const licag3d_triplane_gradients *gradients) {
  if (check(*field) != LICAG3D_OK || samples < 1) return fail(LICAG3D_BAD_ARGUMENT, "tri-plane sizes are out of range");
  return guarded([&]() -> int32_t {
    Field planes(*run, *field);
    ScratchPool pool(thread_count(*run), LICAG3D_SELECT_ISA(triplane_scratch_floats)(planes.item()));
    const auto tile_task = LICAG3D_SELECT_ISA(triplane_render_tile_backward);
    const int64_t count = rays_per_item && field->batch > 0 ? rays->count / field->batch : rays->count;
    clear(gradients->origin, 3 * rays->count);
    clear(gradients->direction, 3 * rays->count);
    Accumulator sum(*run, *field, *gradients, planes.item(), int64_t{kTriplaneLanes} * samples,
                    (count + kTriplaneLanes - 1) / kTriplaneLanes);
    for (int64_t b = 0; b < field->batch; ++b) {
      const TriplaneItem &item = planes.select(b);
      const int64_t first = rays_per_item ? b * count : 0;
      const std::vector<int64_t> hits = rays_that_hit(*run, *field, *rays, first, count, nullptr);
      const TriplaneRayTask task = {rays, first, hits.data(), static_cast<int64_t>(hits.size()), samples};
      const int64_t tiles = (task.hit_count + kTriplaneLanes - 1) / kTriplaneLanes;
      sum.begin_item();
      for (int64_t begin = 0; begin < tiles; begin += sum.chunk()) {
        const int64_t end = std::min(begin + sum.chunk(), tiles);
        for_tiles(*run, pool, begin, end, [&](int64_t tile, float *scratch) {
          tile_task(item, task, tile, grad_values + b * count, scratch, sum.record(tile), gradients->origin,
                    gradients->direction);
        });
        sum.add(begin, end);
      }
      sum.end_item(b);
    }
    sum.finish_weights();
    return LICAG3D_OK;
  });
}

int32_t licag3d_query_triplane(const licag3d_run *run, const licag3d_triplane *field, const void *points,
                               int32_t points_are_double, int64_t count, float *values) {
  if (check(*field) != LICAG3D_OK) return LICAG3D_BAD_ARGUMENT;
  return guarded([&]() -> int32_t {
    Field planes(*run, *field);
    ScratchPool pool(thread_count(*run), LICAG3D_SELECT_ISA(triplane_scratch_floats)(planes.item()));
    const auto tile_task = LICAG3D_SELECT_ISA(triplane_query_tile);
    const int64_t tile_size = kTriplaneLanes * kTriplaneQueryDepth;
    for (int64_t b = 0; b < field->batch; ++b) {
      const TriplaneItem &item = planes.select(b);
      for_tiles(*run, pool, 0, (count + tile_size - 1) / tile_size, [&](int64_t tile, float *scratch) {
        tile_task(item, points, points_are_double != 0, count, tile, scratch, values + b * count);
      });
    }
    return LICAG3D_OK;
  });
}

int32_t licag3d_query_triplane_backward(const licag3d_run *run, const licag3d_triplane *field, const void *points,
                                        int32_t points_are_double, int64_t count, const float *grad_values,
                                        const licag3d_triplane_gradients *gradients) {
  if (check(*field) != LICAG3D_OK) return LICAG3D_BAD_ARGUMENT;
  return guarded([&]() -> int32_t {
    Field planes(*run, *field);
    ScratchPool pool(thread_count(*run), LICAG3D_SELECT_ISA(triplane_scratch_floats)(planes.item()));
    const auto tile_task = LICAG3D_SELECT_ISA(triplane_query_tile_backward);
    const int64_t tile_size = kTriplaneLanes * kTriplaneQueryDepth, tiles = (count + tile_size - 1) / tile_size;
    clear(gradients->origin, 3 * count);
    Accumulator sum(*run, *field, *gradients, planes.item(), tile_size, tiles);
    for (int64_t b = 0; b < field->batch; ++b) {
      const TriplaneItem &item = planes.select(b);
      sum.begin_item();
      for (int64_t begin = 0; begin < tiles; begin += sum.chunk()) {
        const int64_t end = std::min(begin + sum.chunk(), tiles);
        for_tiles(*run, pool, begin, end, [&](int64_t tile, float *scratch) {
          tile_task(item, points, points_are_double != 0, count, tile, grad_values + b * count, scratch,
                    sum.record(tile), gradients->origin);
        });
        sum.add(begin, end);
      }
      sum.end_item(b);
    }
    sum.finish_weights();
    return LICAG3D_OK;
  });
}

}  // extern "C"
