// SPDX-License-Identifier: Apache-2.0
// The projection of whole views and its gradient by their frames: tiles of pixels through windows of voxels.
#include "cpu/packet_sums.h"
#include "cpu/tiles.h"

LICAG3D_CORE_BEGIN
namespace {

// The shape whose rays fit the smallest window; all divide a chunk.
TileShape best_shape(const licag3d_grid &grid, const ViewFrame &frame, const Chunk &chunk) {
  const PixelPitch pitch = pixel_pitch(grid, frame, 0.5 * (chunk.col0 + chunk.col1), 0.5 * (chunk.row0 + chunk.row1));
  const TileShape shapes[] = {{8, 2}, {4, 4}, {2, 8}};
  const int window_heights[] = {4, 8};
  for (int rows : window_heights)
    for (const TileShape &shape : shapes) {
      const double u = (shape.cols - 1) * pitch.col_u + (shape.rows - 1) * pitch.row_u;
      const double v = (shape.cols - 1) * pitch.col_v + (shape.rows - 1) * pitch.row_v;
      if (u < 5.7 && v < rows - 2.3) return shape;
    }
  return shapes[0];
}

// Rays of an odd tile, sorted into packets of one main axis. index: lane.
template <class Use, class Empty>
void for_odd(const licag3d_grid &grid, const ViewFrame &mm, const Tile &tile, unsigned lanes, Use &&use, Empty &&empty) {
  for_packets<PlanePacket, PlaneRay>(
      grid, 0, kLanes, [&](int64_t l) { return pixel_ray(mm, tile.col[l], tile.row[l]); },
      [&](int64_t l) { return !(lanes >> l & 1); }, use, empty);
}

template <class Use>
void for_tiles(const ProjectTask &task, const ViewFrame &frame, const Chunk &chunk, Use &&use) {
  const TileShape shape = best_shape(*task.grid, frame, chunk);
  const licag3d_views &views = *task.views;
  Tile tile;
  for (int row = chunk.row0; row < chunk.row1; row += shape.rows)
    for (int col = chunk.col0; col < chunk.col1; col += shape.cols)
      use(make_tile(*task.grid, frame, shape, row, col, views.rows, views.cols, chunk.first_ray, tile), tile);
}

template <class Voxel>
void project_chunk(const ProjectTask &task, int64_t index) {
  const licag3d_grid &grid = *task.grid;
  const Chunk chunk = chunk_of(*task.views, index);
  const ViewFrame mm = view_mm(*task.views, chunk.view);
  for_tiles(task, view_in_grid(grid, mm), chunk, [&](TileKind kind, const Tile &tile) {
    if (kind == TileKind::odd) {
      for_odd(
          grid, mm, tile, tile.active,
          [&](const Builder<PlanePacket, PlaneRay> &builder) {
            LaneSums sums;
            sum_packet<false, Voxel>(task, builder.packet, sums);
            for (int l = 0; l < builder.packet.count; ++l)
              task.projections[tile.ray[builder.packet.ray[l]]] = builder.packet.scale[l] * sums.value[l];
          },
          [&](int64_t l, int valid) { task.projections[tile.ray[l]] = valid == 0 ? NAN : 0.0f; });
      return;
    }
    LaneSums sums;
    if (kind == TileKind::ready) sum_packet<false, Voxel>(task, tile, sums);
    for (int l = 0; l < kLanes; ++l)
      if (tile.active >> l & 1) task.projections[tile.ray[l]] = kind == TileKind::ready ? tile.scale[l] * sums.value[l] : 0.0f;
  });
}

// Adds weight times the gradient of each lane to the twelve numbers of the view; plane_gradient() for all lanes at once.
void add_tile_gradient(const licag3d_grid &grid, const ViewFrame &frame, const Tile &tile, const float *weights,
                       const LaneSums &sums, double *out) {
  const int ua = tile.axis[0], va = tile.axis[1], main = tile.axis[2];
  const double from_origin = tile.centre - frame.source[main];
  alignas(64) double origin[3][kLanes], way[3][kLanes];  // by u, v, main
  for (int l = 0; l < kLanes; ++l) {
    const double gu = sums.gu[l], gv = sums.gv[l];
    const double tu = (from_origin * gu + sums.hu[l]) * tile.inverse[l], tv = (from_origin * gv + sums.hv[l]) * tile.inverse[l];
    const double scale = static_cast<double>(weights[l]) * tile.scale[l], length = sums.value[l] / tile.square_mm[l];
    const double mm_u = grid.voxel_size_mm[ua], mm_v = grid.voxel_size_mm[va], mm = grid.voxel_size_mm[main];
    origin[0][l] = scale * gu / mm_u;
    origin[1][l] = scale * gv / mm_v;
    origin[2][l] = -scale * (tile.slope_u[l] * gu + tile.slope_v[l] * gv) / mm;
    way[0][l] = scale * (tu / mm_u + length * tile.way[ua][l] * mm_u);
    way[1][l] = scale * (tv / mm_v + length * tile.way[va][l] * mm_v);
    way[2][l] = scale * (length * tile.way[main][l] * mm -
                         (tile.slope_u[l] * tu + tile.slope_v[l] * tv + sums.value[l] * tile.inverse[l]) / mm);
  }
  for (int i = 0; i < 3; ++i) {
    double sum[4] = {};
    for (int l = 0; l < kLanes; ++l) {
      sum[0] += origin[i][l];
      sum[1] += way[i][l];
      sum[2] += tile.col[l] * way[i][l];
      sum[3] += tile.row[l] * way[i][l];
    }
    for (int part = 0; part < 4; ++part) out[3 * part + tile.axis[i]] += sum[part];
  }
}

template <class Voxel>
void grad_chunk(const ProjectTask &task, int64_t index) {
  const licag3d_grid &grid = *task.grid;
  const Chunk chunk = chunk_of(*task.views, index);
  const ViewFrame mm = view_mm(*task.views, chunk.view), frame = view_in_grid(grid, mm);
  double *out = task.grad_frames + 12 * index;
  for_tiles(task, frame, chunk, [&](TileKind kind, const Tile &tile) {
    alignas(64) float weights[kLanes];
    unsigned wanted = 0;
    for (int l = 0; l < kLanes; ++l) {
      weights[l] = tile.active >> l & 1 ? task.weights[tile.ray[l]] : 0.0f;
      wanted |= static_cast<unsigned>(weights[l] != 0.0f) << l;
    }
    if (wanted == 0 || kind == TileKind::empty) return;
    if (kind == TileKind::ready) {
      LaneSums sums;
      sum_packet<true, Voxel>(task, tile, sums);
      return add_tile_gradient(grid, frame, tile, weights, sums, out);
    }
    const auto add = [&](int64_t l, const double *by_origin, const double *by_way) {
      for (int a = 0; a < 3; ++a) {
        out[a] += by_origin[a];
        out[3 + a] += by_way[a];
        out[6 + a] += tile.col[l] * by_way[a];
        out[9 + a] += tile.row[l] * by_way[a];
      }
    };
    for_odd(
        grid, mm, tile, wanted,
        [&](const Builder<PlanePacket, PlaneRay> &builder) {
          LaneSums sums;
          sum_packet<true, Voxel>(task, builder.packet, sums);
          for (int l = 0; l < builder.packet.count; ++l) {
            RayGradient one =
                plane_gradient(grid, builder.grid_rays[l], builder.rays[l], builder.packet.centre, sums.lane(l));
            const int64_t lane = builder.packet.ray[l];
            for (int a = 0; a < 3; ++a) one.origin[a] *= weights[lane], one.direction[a] *= weights[lane];
            add(lane, one.origin, one.direction);
          }
        },
        [&](int64_t l, int valid) {
          const double nothing[3] = {NAN, NAN, NAN};
          if (valid == 0) add(l, nothing, nothing);
        });
  });
}

}  // namespace

void project_views(const ProjectTask &task, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i)
    (task.grid->flags & LICAG3D_HALF) ? project_chunk<Half>(task, i) : project_chunk<float>(task, i);
}

void grad_views(const ProjectTask &task, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i)
    (task.grid->flags & LICAG3D_HALF) ? grad_chunk<Half>(task, i) : grad_chunk<float>(task, i);
}

LICAG3D_CORE_END
