// SPDX-License-Identifier: Apache-2.0
#include "core/tubes.h"

#include "cpu/tubes_tasks.h"

LICAG3D_CORE_BEGIN
namespace {

struct Rectangle {
  int64_t view, row0, row1, col0, col1;
};

int64_t ray_index(const TubesTask &task, int64_t view, int64_t row, int64_t col) {
  return (view * task.rows + row) * task.cols + col;
}

// A cone with a thick apex that holds every ray of a rectangle.
struct Cone {
  double apex[3], unit[3], thickness, cosine, sine;
  bool empty;
};

Cone cone_of(const TubesTask &task, const Rectangle &part) {
  Cone cone = {};
  double apex[3] = {}, sum[3] = {};
  int64_t count = 0;
  const auto visit = [&](auto &&see) {
    for (int64_t row = part.row0; row < part.row1; ++row)
      for (int64_t col = part.col0; col < part.col1; ++col) {
        const RayMm ray = load_ray(*task.rays, ray_index(task, part.view, row, col));
        if (!is_finite(ray)) continue;
        const UnitRay unit = unit_ray(ray);
        if (unit.length_mm > 0) see(unit);
      }
  };
  visit([&](const UnitRay &ray) {
    for (int a = 0; a < 3; ++a) apex[a] += ray.origin[a], sum[a] += ray.unit[a];
    ++count;
  });
  cone.empty = count == 0;
  if (cone.empty) return cone;
  const double length = sqrt(dot3(sum, sum));
  for (int a = 0; a < 3; ++a) {
    cone.apex[a] = apex[a] / count;
    cone.unit[a] = length > 0 ? sum[a] / length : 0.0;
  }
  double lowest = 1, farthest = 0;
  visit([&](const UnitRay &ray) {
    const double cosine = dot3(ray.unit, cone.unit);
    lowest = cosine < lowest ? cosine : lowest;
    const double m[3] = {ray.origin[0] - cone.apex[0], ray.origin[1] - cone.apex[1], ray.origin[2] - cone.apex[2]};
    const double square = dot3(m, m);
    farthest = square > farthest ? square : farthest;
  });
  // Beyond a half angle of 90 degrees the cone excludes nothing.
  cone.cosine = lowest > 0 ? lowest : 0;
  cone.sine = sqrt(1 - cone.cosine * cone.cosine);
  cone.thickness = lowest > 0 ? sqrt(farthest) + 1e-6 : 1e300;
  return cone;
}

// Keeps the balls that meet the cone; candidates == NULL means all.
int64_t cull(const Balls &balls, const Cone &cone, const int32_t *candidates, int64_t count, int32_t *kept) {
  int64_t used = 0;
  constexpr int64_t kGroup = 64;
  double excess[kGroup];
  for (int64_t start = 0; start < count; start += kGroup) {
    const int64_t here = count - start < kGroup ? count - start : kGroup;
    for (int64_t i = 0; i < here; ++i) {
      const int64_t n = candidates ? candidates[start + i] : start + i;
      const double x = balls.x[n] - cone.apex[0], y = balls.y[n] - cone.apex[1], z = balls.z[n] - cone.apex[2];
      const double along = x * cone.unit[0] + y * cone.unit[1] + z * cone.unit[2];
      const double square = x * x + y * y + z * z - along * along;
      // Distance from the side of the cone; behind the apex the true distance is larger, so nothing is lost.
      excess[i] = sqrt(square > 0 ? square : 0) * cone.cosine - along * cone.sine - balls.radius[n] - cone.thickness;
    }
    for (int64_t i = 0; i < here; ++i) {
      kept[used] = candidates ? candidates[start + i] : static_cast<int32_t>(start + i);
      used += excess[i] <= 0;
    }
  }
  return used;
}

double path_of(const TubesTask &task, const UnitRay &ray, const int32_t *candidates, int64_t count) {
  IntervalUnion<64> pieces;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t n = candidates[i];
    const double centre[3] = {task.balls.x[n], task.balls.y[n], task.balls.z[n]};
    if (!ray_meets_ball(ray, centre, task.balls.radius[n])) continue;
    if (!pieces.add(segment_interval(ray, task.segments + 8 * n)))
      return swept_length(count, [&](int64_t k) { return segment_interval(ray, task.segments + 8 * candidates[k]); });
  }
  return pieces.length();
}

}  // namespace

void tubes_block(const TubesTask &task, int64_t view, int64_t block_row, int64_t block_col, int32_t *scratch) {
  const auto least = [](int64_t a, int64_t b) { return a < b ? a : b; };
  const Rectangle block = {view, block_row * task.block_rows, least((block_row + 1) * task.block_rows, task.rows),
                           block_col * task.block_cols, least((block_col + 1) * task.block_cols, task.cols)};
  int32_t *in_block = scratch, *in_tile = scratch + task.balls.count;
  const Cone cone = cone_of(task, block);
  const int64_t block_count = cone.empty ? 0 : cull(task.balls, cone, nullptr, task.balls.count, in_block);
  for (int64_t row = block.row0; row < block.row1; row += task.tile_rows)
    for (int64_t col = block.col0; col < block.col1; col += task.tile_cols) {
      const Rectangle tile = {view, row, least(row + task.tile_rows, block.row1), col,
                              least(col + task.tile_cols, block.col1)};
      int64_t count = 0;
      if (block_count > 0) {
        const Cone narrow = cone_of(task, tile);
        count = narrow.empty ? 0 : cull(task.balls, narrow, in_block, block_count, in_tile);
      }
      for (int64_t r = tile.row0; r < tile.row1; ++r)
        for (int64_t c = tile.col0; c < tile.col1; ++c) {
          const int64_t i = ray_index(task, view, r, c);
          const RayMm ray = load_ray(*task.rays, i);
          if (!is_finite(ray))
            task.path_mm[i] = NAN;
          else
            task.path_mm[i] = count > 0 ? static_cast<float>(path_of(task, unit_ray(ray), in_tile, count)) : 0.0f;
        }
    }
}

LICAG3D_CORE_END
