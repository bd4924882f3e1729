// SPDX-License-Identifier: Apache-2.0
// Entry points of the tri-plane operators on the CPU: rows are listed, decoded in blocks, and summed along their rays.
//
// Nothing depends on the number of threads: lists, blocks and sums are cut at fixed places. Memory: O(rays), one copy
// of the planes in the form that rows gather from and one of their gradient, the list of kListed rows, and the records
// of a few blocks.
#include "core/triplane.h"

#include <cmath>
#include <cstring>

#include "core/rays.h"
#include "cpu/error.h"
#include "cpu/triplane_gradient.h"

namespace licag3d {
namespace {

constexpr int64_t kMaxChannels = kTriplaneMaxChannels, kMaxHidden = 4096, kMaxCells = 1024, kMaxSamples = 4096;
constexpr int64_t kListed = 1 << 18;        // rows in a list where every row counts
constexpr int64_t kListedSparse = 1 << 22;  // rows before empty cells are left out
constexpr int64_t kPointUnit = 1024;

template <class Body>
int32_t guarded(Body &&body) {
  try {
    return body();
  } catch (const std::bad_alloc &) {
    return fail(LICAG3D_OUT_OF_MEMORY, "not enough memory for the tri-plane operator");
  }
}

bool sizes_fit(const licag3d_triplane &field, const licag3d_triplane_options &options, int32_t samples) {
  const int64_t cp = (field.channels + 15) / 16 * 16, r = field.resolution;
  return field.batch >= 0 && field.channels >= 1 && field.channels <= kMaxChannels && field.hidden >= 1 &&
         field.hidden <= kMaxHidden && r >= 1 && field.box_size_mm > 0 && r * r * cp < (1LL << 31) && samples >= 1 &&
         samples <= kMaxSamples && (options.occupancy == nullptr || (options.cells >= 1 && options.cells <= kMaxCells)) &&
         (options.texel_stride == 0 ||
          (options.texel_stride >= field.channels && field.channels % 16 == 0 && !field.planes_are_half));
}

// Rays [first, first + count) that meet the box, in squares of 4 x 4 pixels within columns of 32 where the image is known:
// neighbours in a tile read the same texels. values, where given, is set to 0, or NaN for a ray that is not finite.
std::vector<int64_t> rays_that_hit(const licag3d_run &run, const licag3d_triplane &field, const licag3d_rays &rays,
                                   int64_t first, int64_t count, float *values) {
  const plain::TriplaneBox box = plain::make_box(field.box_center_mm, field.box_size_mm, field.resolution);
  std::vector<char> hit(count);
  parallel_for(count, 4096, run.threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const plain::RayMm ray = plain::load_ray(rays, first + i);
      hit[i] = plain::clip_ray(box, ray.origin, ray.direction).hit;
      if (values != nullptr) values[i] = hit[i] || plain::is_finite(ray) ? 0.0f : NAN;
    }
  });
  std::vector<int64_t> order;
  order.reserve(count);
  const int64_t cols = rays.image_cols > 0 && count % rays.image_cols == 0 ? rays.image_cols : count;
  const int64_t rows = cols > 0 ? count / cols : 0, high = rows > 1 ? 4 : 1;
  const int64_t column = rows > 1 ? 32 : std::max<int64_t>(cols, 1), wide = rows > 1 ? 4 : column;
  for (int64_t start = 0; start < cols; start += column)
    for (int64_t top = 0; top < rows; top += high)
      for (int64_t left = start; left < std::min(start + column, cols); left += wide)
        for (int64_t r = top; r < std::min(top + high, rows); ++r)
          for (int64_t c = left; c < std::min(left + wide, cols); ++c)
            if (hit[r * cols + c]) order.push_back(r * cols + c);
  return order;
}

// Rows of one list, unit by unit (a unit is a piece of rays, or so many points).
class RowList {
 public:
  // list(unit, rows) writes the rows of a unit, at most `most`, and returns their number.
  template <class List>
  void fill(const licag3d_run &run, int64_t units, int64_t most, List &&list) {
    if (static_cast<int64_t>(capacity_) < units * most) {
      rows_.reset(new uint32_t[units * most]);  // not set: only what is listed is touched
      capacity_ = units * most;
    }
    begin_.assign(units + 1, 0);
    parallel_for(units, 1, run.threads, [&](int64_t from, int64_t to) {
      for (int64_t unit = from; unit < to; ++unit) begin_[unit + 1] = list(unit, rows_.get() + unit * most);
    });
    for (int64_t unit = 0; unit < units; ++unit) {
      const int64_t count = begin_[unit + 1];
      if (begin_[unit] != unit * most)
        std::memmove(rows_.get() + begin_[unit], rows_.get() + unit * most, count * sizeof(uint32_t));
      begin_[unit + 1] = begin_[unit] + count;
    }
    if (static_cast<int64_t>(field_.size()) < begin_.back()) field_.resize(begin_.back());
  }

  // With slopes also room for them.
  TriplaneRows rows(bool slopes) {
    TriplaneRows rows = {};
    rows.row = rows_.get();
    rows.count = begin_.back();
    rows.field = field_.data();
    if (slopes) {
      if (static_cast<int64_t>(slope_.size()) < 3 * rows.count) slope_.resize(3 * rows.count);
      rows.slope = slope_.data();
      rows.slope_stride = rows.count;
    }
    return rows;
  }
  const int64_t *begin() const { return begin_.data(); }

 private:
  int64_t capacity_ = 0;
  std::unique_ptr<uint32_t[]> rows_;
  std::vector<int64_t> begin_;
  std::vector<float> field_, slope_;
};

int64_t blocks_of(int64_t rows) { return (rows + kTriplaneBlock - 1) / kTriplaneBlock; }

void decode(const licag3d_run &run, const TriplaneItem &item, ScratchPool &pool, const TriplaneRows &rows) {
  const auto block_task = LICAG3D_SELECT_ISA(triplane_decode);
  parallel_for(blocks_of(rows.count), 1, run.threads, [&](int64_t from, int64_t to) {
    const int slot = pool.take();
    for (int64_t block = from; block < to; ++block)
      block_task(item, rows, block * kTriplaneBlock, std::min((block + 1) * kTriplaneBlock, rows.count), pool.at(slot));
    pool.give(slot);
  });
}

void decode_backward(const licag3d_run &run, const TriplaneItem &item, ScratchPool &pool, const TriplaneRows &rows,
                     Accumulator &sum) {
  const auto block_task = LICAG3D_SELECT_ISA(triplane_decode_backward);
  const int64_t blocks = blocks_of(rows.count);
  for (int64_t begin = 0; begin < blocks; begin += sum.chunk()) {
    const int64_t end = std::min(begin + sum.chunk(), blocks);
    parallel_for(end - begin, 1, run.threads, [&](int64_t from, int64_t to) {
      const int slot = pool.take();
      for (int64_t block = begin + from; block < begin + to; ++block)
        block_task(item, rows, block * kTriplaneBlock, std::min((block + 1) * kTriplaneBlock, rows.count),
                   pool.at(slot), sum.record(block));
      pool.give(slot);
    });
    sum.add(begin, end);
  }
}

// body(list, rows) for lists of the rays of a task; rows has no slopes yet.
template <class Body>
void for_ray_lists(const licag3d_run &run, const Field &planes, const TriplaneItem &item, const TriplaneRayTask &task,
                   int64_t hits, RowList &rows_of_list, bool slopes, Body &&body) {
  const auto prepare = LICAG3D_SELECT_ISA(triplane_prepare_rays);
  const auto list_task = LICAG3D_SELECT_ISA(triplane_list_rays);
  const TriplaneCells cells = planes.cells();
  const int64_t listed = cells.distance != nullptr ? kListedSparse : kListed;
  const int64_t most = std::min<int64_t>(listed / task.samples / kTriplaneLanes, 1 << 16);
  const int64_t step = std::min(std::max<int64_t>(most, 1) * kTriplaneLanes, hits);
  std::vector<TriplaneRay> rays(step);
  std::unique_ptr<uint16_t[]> mask;
  if (cells.distance != nullptr) mask.reset(new uint16_t[(step + kTriplaneLanes - 1) / kTriplaneLanes * task.samples]);
  for (int64_t first = 0; first < hits; first += step) {
    TriplaneList list = {first, std::min(step, hits - first), 0, task.samples, 1, rays.data(), mask.get()};
    list.groups = (list.count + kTriplaneGroup - 1) / kTriplaneGroup;
    parallel_for(list.groups, 1, run.threads, [&](int64_t from, int64_t to) {
      for (int64_t group = from; group < to; ++group) prepare(item, cells, task, list, group);
    });
    double depth = 1;  // texels along the longest ray
    for (int64_t i = 0; i < list.count; ++i)
      for (float along : rays[i].delta) depth = std::max(depth, std::abs(static_cast<double>(along)));
    list.slab = static_cast<int32_t>(std::min<double>(std::max(1.0, kTriplaneSlab / depth * task.samples), task.samples));
    list.slabs = (task.samples + list.slab - 1) / list.slab;
    rows_of_list.fill(run, list.slabs * list.groups, int64_t{kTriplaneGroup} * list.slab,
                      [&](int64_t piece, uint32_t *rows) { return list_task(task, list, piece, rows); });
    TriplaneRows rows = rows_of_list.rows(slopes);
    rows.rays = rays.data();
    rows.per_sample = 1.0f / static_cast<float>(task.samples);
    rows.scattered = task.rays->count <= task.rays->image_cols || task.rays->image_cols <= 0;  // no image
    body(list, rows);
  }
}

// The same for points.
template <class Body>
void for_point_lists(const licag3d_run &run, const Field &planes, const TriplaneItem &item, const void *points,
                     bool is_double, int64_t count, RowList &list, bool slopes, Body &&body) {
  const auto list_task = LICAG3D_SELECT_ISA(triplane_list_points);
  const TriplaneCells cells = planes.cells();
  const int64_t step = kListed;
  for (int64_t first = 0; first < count; first += step) {
    const int64_t here = std::min(step, count - first), units = (here + kPointUnit - 1) / kPointUnit;
    const char *at = static_cast<const char *>(points) + 3 * first * (is_double ? 8 : 4);
    list.fill(run, units, kPointUnit, [&](int64_t unit, uint32_t *rows) {
      return list_task(item, cells, at, is_double, unit * kPointUnit, std::min((unit + 1) * kPointUnit, here), rows);
    });
    TriplaneRows rows = list.rows(slopes);
    rows.points = at;
    rows.scattered = true;
    rows.points_are_double = is_double;
    body(first, rows);
  }
}

void clear(float *values, int64_t count) {
  if (values != nullptr) std::fill(values, values + count, 0.0f);
}

}  // namespace
}  // namespace licag3d

using namespace licag3d;

extern "C" {

int32_t licag3d_render_triplane_with(const licag3d_run *run, const licag3d_triplane *field,
                                     const licag3d_triplane_options *given, const licag3d_rays *rays,
                                     int32_t rays_per_item, int32_t samples, float *values) {
  const licag3d_triplane_options options = given != nullptr ? *given : licag3d_triplane_options{};
  if (!sizes_fit(*field, options, samples)) return fail(LICAG3D_BAD_ARGUMENT, "tri-plane sizes are out of range");
  return guarded([&]() -> int32_t {
    const int64_t count = rays_per_item && field->batch > 0 ? rays->count / field->batch : rays->count;
    Field planes(*run, *field, options, count * samples);
    ScratchPool pool(thread_count(*run), LICAG3D_SELECT_ISA(triplane_scratch_floats)(planes.item()));
    RowList row_list;
    for (int64_t b = 0; b < field->batch; ++b) {
      const TriplaneItem &item = planes.select(b);
      const int64_t first_ray = rays_per_item ? b * count : 0;
      float *out = values + b * count;
      const std::vector<int64_t> hits = rays_that_hit(*run, *field, *rays, first_ray, count, out);
      const TriplaneRayTask task = {rays, first_ray, hits.data(), samples, nullptr};
      for_ray_lists(*run, planes, item, task, static_cast<int64_t>(hits.size()), row_list, false,
                    [&](const TriplaneList &list, const TriplaneRows &rows) {
                      decode(*run, item, pool, rows);
                      const int64_t *begin = row_list.begin();
                      parallel_for(list.groups, 1, run->threads, [&](int64_t from, int64_t to) {
                        for (int64_t group = from; group < to; ++group)
                          for (int64_t piece = group; piece < list.slabs * list.groups; piece += list.groups)
                            for (int64_t k = begin[piece]; k < begin[piece + 1]; ++k) {
                              const uint32_t ray = rows.row[k] >> kTriplaneSampleBits;
                              out[hits[list.first + ray]] += rows.field[k] * rows.rays[ray].step_mm;
                            }
                      });
                    });
    }
    return LICAG3D_OK;
  });
}

int32_t licag3d_render_triplane_backward_with(const licag3d_run *run, const licag3d_triplane *field,
                                              const licag3d_triplane_options *given, const licag3d_rays *rays,
                                              int32_t rays_per_item, int32_t samples, const float *grad_values,
                                              const licag3d_triplane_gradients *gradients) {
  const licag3d_triplane_options options = given != nullptr ? *given : licag3d_triplane_options{};
  if (!sizes_fit(*field, options, samples)) return fail(LICAG3D_BAD_ARGUMENT, "tri-plane sizes are out of range");
  return guarded([&]() -> int32_t {
    const int64_t count = rays_per_item && field->batch > 0 ? rays->count / field->batch : rays->count;
    Field planes(*run, *field, options, count * samples);
    ScratchPool pool(thread_count(*run), LICAG3D_SELECT_ISA(triplane_scratch_floats)(planes.item()));
    const auto ray_task = LICAG3D_SELECT_ISA(triplane_ray_gradients);
    clear(gradients->origin, 3 * rays->count);
    clear(gradients->direction, 3 * rays->count);
    Accumulator sum(*run, *field, *gradients, planes, blocks_of(count * samples));
    RowList row_list;
    for (int64_t b = 0; b < field->batch; ++b) {
      const TriplaneItem &item = planes.select(b);
      const int64_t first_ray = rays_per_item ? b * count : 0;
      const std::vector<int64_t> hits = rays_that_hit(*run, *field, *rays, first_ray, count, nullptr);
      const TriplaneRayTask task = {rays, first_ray, hits.data(), samples, grad_values + b * count};
      sum.begin_item(b);
      for_ray_lists(*run, planes, item, task, static_cast<int64_t>(hits.size()), row_list, gradients->origin != nullptr,
                    [&](const TriplaneList &list, const TriplaneRows &rows) {
                      decode_backward(*run, item, pool, rows, sum);
                      if (rows.slope == nullptr) return;
                      parallel_for(list.groups, 1, run->threads, [&](int64_t from, int64_t to) {
                        for (int64_t group = from; group < to; ++group)
                          ray_task(item, task, list, group, rows, row_list.begin(), gradients->origin,
                                   gradients->direction);
                      });
                    });
      sum.end_item(b);
    }
    sum.finish_weights();
    return LICAG3D_OK;
  });
}

int32_t licag3d_query_triplane_with(const licag3d_run *run, const licag3d_triplane *field,
                                    const licag3d_triplane_options *given, const void *points,
                                    int32_t points_are_double, int64_t count, float *values) {
  const licag3d_triplane_options options = given != nullptr ? *given : licag3d_triplane_options{};
  if (!sizes_fit(*field, options, 1)) return fail(LICAG3D_BAD_ARGUMENT, "tri-plane sizes are out of range");
  return guarded([&]() -> int32_t {
    Field planes(*run, *field, options, count);
    ScratchPool pool(thread_count(*run), LICAG3D_SELECT_ISA(triplane_scratch_floats)(planes.item()));
    RowList list;
    for (int64_t b = 0; b < field->batch; ++b) {
      const TriplaneItem &item = planes.select(b);
      for_point_lists(*run, planes, item, points, points_are_double != 0, count, list, false,
                      [&](int64_t first, const TriplaneRows &rows) {
                        float *out = values + b * count + first;
                        std::fill(out, out + std::min(kListed, count - first), 0.0f);
                        decode(*run, item, pool, rows);
                        for (int64_t k = 0; k < rows.count; ++k) out[rows.row[k]] = rows.field[k];
                      });
    }
    return LICAG3D_OK;
  });
}

int32_t licag3d_query_triplane_backward_with(const licag3d_run *run, const licag3d_triplane *field,
                                             const licag3d_triplane_options *given, const void *points,
                                             int32_t points_are_double, int64_t count, const float *grad_values,
                                             const licag3d_triplane_gradients *gradients) {
  const licag3d_triplane_options options = given != nullptr ? *given : licag3d_triplane_options{};
  if (!sizes_fit(*field, options, 1)) return fail(LICAG3D_BAD_ARGUMENT, "tri-plane sizes are out of range");
  return guarded([&]() -> int32_t {
    Field planes(*run, *field, options, count);
    ScratchPool pool(thread_count(*run), LICAG3D_SELECT_ISA(triplane_scratch_floats)(planes.item()));
    clear(gradients->origin, 3 * count);
    Accumulator sum(*run, *field, *gradients, planes, blocks_of(count));
    RowList list;
    const double texels_per_mm = field->resolution / field->box_size_mm;
    for (int64_t b = 0; b < field->batch; ++b) {
      const TriplaneItem &item = planes.select(b);
      sum.begin_item(b);
      for_point_lists(*run, planes, item, points, points_are_double != 0, count, list, gradients->origin != nullptr,
                      [&](int64_t first, TriplaneRows rows) {
                        rows.grad_points = grad_values + b * count + first;
                        decode_backward(*run, item, pool, rows, sum);
                        for (int a = 0; rows.slope != nullptr && a < 3; ++a)
                          for (int64_t k = 0; k < rows.count; ++k)
                            gradients->origin[3 * (first + rows.row[k]) + a] +=
                                static_cast<float>(rows.slope[a * rows.slope_stride + k] * texels_per_mm);
                      });
      sum.end_item(b);
    }
    sum.finish_weights();
    return LICAG3D_OK;
  });
}

int32_t licag3d_render_triplane(const licag3d_run *run, const licag3d_triplane *field, const licag3d_rays *rays,
                                int32_t rays_per_item, int32_t samples, float *values) {
  return licag3d_render_triplane_with(run, field, nullptr, rays, rays_per_item, samples, values);
}

int32_t licag3d_render_triplane_backward(const licag3d_run *run, const licag3d_triplane *field,
                                         const licag3d_rays *rays, int32_t rays_per_item, int32_t samples,
                                         const float *grad_values, const licag3d_triplane_gradients *gradients) {
  return licag3d_render_triplane_backward_with(run, field, nullptr, rays, rays_per_item, samples, grad_values,
                                               gradients);
}

int32_t licag3d_query_triplane(const licag3d_run *run, const licag3d_triplane *field, const void *points,
                               int32_t points_are_double, int64_t count, float *values) {
  return licag3d_query_triplane_with(run, field, nullptr, points, points_are_double, count, values);
}

int32_t licag3d_query_triplane_backward(const licag3d_run *run, const licag3d_triplane *field, const void *points,
                                        int32_t points_are_double, int64_t count, const float *grad_values,
                                        const licag3d_triplane_gradients *gradients) {
  return licag3d_query_triplane_backward_with(run, field, nullptr, points, points_are_double, count, grad_values,
                                              gradients);
}

}  // extern "C"
