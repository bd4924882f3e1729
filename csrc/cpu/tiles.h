// SPDX-License-Identifier: Apache-2.0
// Packets made of a small rectangle of pixels of one view: neighbours on the detector meet neighbouring voxels, so that a
// few loads serve all 16 rays. The rays are worked out here, 16 at a time, instead of being read from memory.
#pragma once

#include "core/views.h"
#include "cpu/bricks.h"

LICAG3D_CORE_BEGIN

// A rectangle of pixels of one view, see kChunkRows.
struct Chunk {
  int64_t view, first_ray;
  int row0, row1, col0, col1;
};

inline Chunk chunk_of(const licag3d_views &views, int64_t index) {
  const int64_t across = (views.cols + kChunkCols - 1) / kChunkCols, down = (views.rows + kChunkRows - 1) / kChunkRows;
  Chunk out;
  out.view = index / (across * down);
  out.first_ray = out.view * views.rows * views.cols;
  out.row0 = static_cast<int>(index / across % down) * kChunkRows;
  out.col0 = static_cast<int>(index % across) * kChunkCols;
  out.row1 = out.row0 + kChunkRows < views.rows ? out.row0 + kChunkRows : views.rows;
  out.col1 = out.col0 + kChunkCols < views.cols ? out.col0 + kChunkCols : views.cols;
  return out;
}

struct TileShape {
  int cols, rows;  // cols * rows == kLanes
};

// In double what the gradient by the frame of the view needs, lane by lane.
struct Tile : PlanePacket {
  unsigned active;  // bit l: lane l is a pixel of its own, and not one repeated beyond the side of the image
  alignas(64) double col[kLanes], row[kLanes];
  alignas(64) double way[3][kLanes];  // direction in voxel indices, by axis x, y, z
  alignas(64) double inverse[kLanes], square_mm[kLanes], slope_u[kLanes], slope_v[kLanes];
};

enum class TileKind {
  empty,  // no ray of the tile meets a voxel
  ready,
  odd,  // rays with different main axes, not finite, or with an end inside the volume: one by one, please
};

namespace tile_detail {

// Lane by lane what clip() does, without branches and in float, whose rounding kBandMargin covers. A slope of nothing
// counts as a tiny one: its bounds are then far away on either side, or both on the same side.
inline void clip_lanes(const float *position, const float *inverse, float low_bound, float high_bound, float *low,
                       float *high) {
  for (int l = 0; l < kLanes; ++l) {
    const float one = (low_bound - position[l]) * inverse[l], two = (high_bound - position[l]) * inverse[l];
    const float from = one < two ? one : two, to = one < two ? two : one;
    low[l] = from > low[l] ? from : low[l];
    high[l] = to < high[l] ? to : high[l];
  }
}

}  // namespace tile_detail

// Fills `out` with the rays of the tile whose first pixel is (row0, col0); `frame` is in voxel indices.
inline TileKind make_tile(const licag3d_grid &grid, const ViewFrame &frame, TileShape shape, int row0, int col0, int rows,
                          int cols, int64_t first_ray, Tile &out) {
  using tile_detail::clip_lanes;
  out.active = 0;
  for (int l = 0; l < kLanes; ++l) {
    const int c = col0 + l % shape.cols, r = row0 + l / shape.cols;
    const int col = c < cols ? c : cols - 1, row = r < rows ? r : rows - 1;
    out.active |= static_cast<unsigned>(c < cols && r < rows) << l;
    out.col[l] = col;
    out.row[l] = row;
    out.ray[l] = first_ray + static_cast<int64_t>(row) * cols + col;
  }
  double odd[kLanes] = {};
  for (int a = 0; a < 3; ++a)
    for (int l = 0; l < kLanes; ++l) {
      out.way[a][l] = frame.first[a] + out.col[l] * frame.per_col[a] + out.row[l] * frame.per_row[a];
      odd[l] += (out.way[a][l] - out.way[a][l]) + (frame.source[a] - frame.source[a]);  // 0 unless one is not finite
    }
  int main = 0;
  for (int a = 1; a < 3; ++a)
    if (std::fabs(out.way[a][0]) > std::fabs(out.way[main][0])) main = a;
  const int ua = main == 0 ? 1 : 0, va = main == 2 ? 1 : 2;
  out.axis[0] = ua, out.axis[1] = va, out.axis[2] = main;
  const double *way = out.way[main], *way_u = out.way[ua], *way_v = out.way[va];
  for (int l = 0; l < kLanes; ++l) {
    // As to_grid() chooses: the first of equal axes.
    const double size = std::fabs(way[l]), u = std::fabs(way_u[l]), v = std::fabs(way_v[l]);
    const bool agrees = (ua < main ? size > u : size >= u) && (va < main ? size > v : size >= v) && size > 0;
    odd[l] += agrees ? 0.0 : 1.0;
  }
  for (int l = 0; l < kLanes; ++l)
    if (!(odd[l] == 0.0)) return TileKind::odd;

  const double source = frame.source[main];
  const int nu = grid.size[ua], nv = grid.size[va], n = grid.size[main];
  alignas(64) double u0[kLanes], v0[kLanes], begin[kLanes], end[kLanes];
  alignas(64) float u[kLanes], v[kLanes], by_u[kLanes], by_v[kLanes], low[kLanes], high[kLanes], inner_low[kLanes],
      inner_high[kLanes];
  for (int l = 0; l < kLanes; ++l) {
    out.inverse[l] = 1.0 / way[l];
    out.slope_u[l] = way_u[l] * out.inverse[l];
    out.slope_v[l] = way_v[l] * out.inverse[l];
    u0[l] = frame.source[ua] - source * out.slope_u[l];
    v0[l] = frame.source[va] - source * out.slope_v[l];
    const double x = out.way[0][l] * grid.voxel_size_mm[0], y = out.way[1][l] * grid.voxel_size_mm[1],
                 z = out.way[2][l] * grid.voxel_size_mm[2];
    out.square_mm[l] = x * x + y * y + z * z;
    const double far = source + way[l];
    begin[l] = source < far ? source : far;
    end[l] = source < far ? far : source;
  }
  for (int l = 0; l < kLanes; ++l) {
    out.scale[l] = std::sqrt(static_cast<float>(out.square_mm[l])) * static_cast<float>(std::fabs(out.inverse[l]));
    u[l] = to_float_bounded(u0[l]), v[l] = to_float_bounded(v0[l]);
    out.du[l] = static_cast<float>(out.slope_u[l]);
    out.dv[l] = static_cast<float>(out.slope_v[l]);
    by_u[l] = 1.0f / (std::fabs(out.du[l]) < 1e-12f ? 1e-12f : out.du[l]);
    by_v[l] = 1.0f / (std::fabs(out.dv[l]) < 1e-12f ? 1e-12f : out.dv[l]);
    out.low[l] = to_float_bounded(begin[l]), out.high[l] = to_float_bounded(end[l]);
    low[l] = out.low[l] - 0.6f > 0 ? out.low[l] - 0.6f : 0;
    high[l] = out.high[l] + 0.6f < n - 1 ? out.high[l] + 0.6f : n - 1;
    inner_low[l] = 0;
    inner_high[l] = n - 1;
  }
  clip_lanes(u, by_u, -1 - kBandMargin, nu + kBandMargin, low, high);
  clip_lanes(v, by_v, -1 - kBandMargin, nv + kBandMargin, low, high);
  clip_lanes(u, by_u, kBandMargin, nu - 1 - kBandMargin, inner_low, inner_high);
  clip_lanes(v, by_v, kBandMargin, nv - 1 - kBandMargin, inner_low, inner_high);
  for (int l = 0; l < kLanes; ++l) {
    const bool meets = high[l] >= low[l];
    low[l] = meets ? low[l] : 1e30f;
    high[l] = meets ? high[l] : -1e30f;
  }
  const float first = lane_min(low), last = lane_max(high);
  if (!(last >= first)) return TileKind::empty;
  out.range = make_range(true, first, last, lane_max(inner_low), lane_min(inner_high));
  out.range.first = out.range.first > 0 ? out.range.first : 0;
  out.range.last = out.range.last < n - 1 ? out.range.last : n - 1;
  if (lane_max(begin) + 0.5 > out.range.first || lane_min(end) - 0.5 < out.range.last) return TileKind::odd;
  out.count = kLanes;
  out.centre = out.range.first + (out.range.last - out.range.first) / 2;
  for (int l = 0; l < kLanes; ++l) {
    out.u[l] = to_float_bounded(u0[l] + out.centre * out.slope_u[l]);
    out.v[l] = to_float_bounded(v0[l] + out.centre * out.slope_v[l]);
    out.low[l] = to_float_bounded(begin[l] - out.centre);
    out.high[l] = to_float_bounded(end[l] - out.centre);
  }
  return TileKind::ready;
}

// Extent along u and v of one step on the detector, in voxels, on the plane of the grid's middle; for choosing a shape.
struct PixelPitch {
  double col_u, col_v, row_u, row_v;
};

inline PixelPitch pixel_pitch(const licag3d_grid &grid, const ViewFrame &frame, double col, double row) {
  double way[3][3];  // of the pixel, its right and its lower neighbour
  for (int a = 0; a < 3; ++a) {
    way[0][a] = frame.first[a] + col * frame.per_col[a] + row * frame.per_row[a];
    way[1][a] = way[0][a] + frame.per_col[a];
    way[2][a] = way[0][a] + frame.per_row[a];
  }
  int main = 0;
  for (int a = 1; a < 3; ++a)
    if (std::fabs(way[0][a]) > std::fabs(way[0][main])) main = a;
  const int ua = main == 0 ? 1 : 0, va = main == 2 ? 1 : 2;
  const double depth = 0.5 * (grid.size[main] - 1) - frame.source[main];
  double u[3], v[3];
  for (int i = 0; i < 3; ++i) u[i] = depth * way[i][ua] / way[i][main], v[i] = depth * way[i][va] / way[i][main];
  return {std::fabs(u[1] - u[0]), std::fabs(v[1] - v[0]), std::fabs(u[2] - u[0]), std::fabs(v[2] - v[0])};
}

LICAG3D_CORE_END
