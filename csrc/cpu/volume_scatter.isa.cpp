// SPDX-License-Identifier: Apache-2.0
// The transpose of the projection. Rays side by side are turned round in registers (simd_fans.h); for any others the
// weights are worked out in SIMD and added one lane after another, because neighbouring rays meet in the same voxels.
#include "cpu/simd_fans.h"
#include "cpu/tiles.h"
#include "cpu/volume_tasks.h"

LICAG3D_CORE_BEGIN
namespace {

struct ScatterPacket : PlanePacket {
  Band u_band, v_band;
  bool fan;

  // Once the scales hold the projections.
  void prepare() {
    u_band = band(u, du, *this), v_band = band(v, dv, *this);
    fan = is_fan(*this, v_band);
  }
};

struct MarchScatterPacket : MarchPacket {
  void prepare() {}
};

// load(i), value(i): the ray and its projection.
template <class Packet, class Base, class Ray, class Load, class Value>
int32_t pack_list(const licag3d_grid &grid, int64_t begin, int64_t end, Load &&load, Value &&value, Packet *slots,
                  int32_t used) {
  for_packets<Base, Ray>(
      grid, begin, end, load, [&](int64_t i) { return value(i) == 0.0f; },
      [&](const Builder<Base, Ray> &builder) {
        Packet &packet = slots[used++];
        static_cast<Base &>(packet) = builder.packet;
        for (int l = 0; l < kLanes; ++l) packet.scale[l] *= l < packet.count ? value(packet.ray[l]) : 0.0f;
        packet.prepare();
      },
      // A ray without samples gives nothing to the volume, one that is not finite too: it has no place to give it.
      [](int64_t, int) {});
  return used;
}

template <class Packet, class Base, class Ray>
void pack_chunk(const ScatterTask &task, int64_t begin, int64_t end) {
  const int64_t chunk = begin / kChunkRays - task.first_chunk;
  task.counts[chunk] = pack_list<Packet, Base, Ray>(
      *task.grid, begin, end, [&](int64_t i) { return load_ray(*task.rays, i); },
      [&](int64_t i) { return task.projections[i]; }, reinterpret_cast<Packet *>(task.packets) + chunk * task.slots, 0);
}

// Rows or columns of pixels, whichever run along u, so that a tile is a fan.
TileShape fan_shape(const licag3d_grid &grid, const ViewFrame &frame, const Chunk &chunk) {
  const PixelPitch pitch = pixel_pitch(grid, frame, 0.5 * (chunk.col0 + chunk.col1), 0.5 * (chunk.row0 + chunk.row1));
  return pitch.col_u >= pitch.row_u ? TileShape{kLanes, 1} : TileShape{1, kLanes};
}

void pack_view_chunk(const ScatterTask &task, int64_t index) {
  const licag3d_grid &grid = *task.grid;
  const licag3d_views &views = *task.views;
  const Chunk chunk = chunk_of(views, index);
  const ViewFrame mm = view_mm(views, chunk.view), frame = view_in_grid(grid, mm);
  const TileShape shape = fan_shape(grid, frame, chunk);
  ScatterPacket *slots = reinterpret_cast<ScatterPacket *>(task.packets) + (index - task.first_chunk) * task.slots;
  int32_t used = 0, odd = 0;
  double cols[kChunkRows * kChunkCols], rows[kChunkRows * kChunkCols];  // of pixels in odd tiles
  float values[kChunkRows * kChunkCols];
  Tile tile;
  for (int row = chunk.row0; row < chunk.row1; row += shape.rows)
    for (int col = chunk.col0; col < chunk.col1; col += shape.cols) {
      const TileKind kind = make_tile(grid, frame, shape, row, col, views.rows, views.cols, chunk.first_ray, tile);
      if (kind == TileKind::empty) continue;
      bool any = false;
      for (int l = 0; l < kLanes; ++l) {
        const float value = tile.active >> l & 1 ? task.projections[tile.ray[l]] : 0.0f;
        any |= value != 0.0f;
        if (kind == TileKind::ready) {
          tile.scale[l] = value == 0.0f ? 0.0f : tile.scale[l] * value;
        } else if (value != 0.0f) {
          cols[odd] = tile.col[l], rows[odd] = tile.row[l], values[odd++] = value;
        }
      }
      if (kind == TileKind::odd || !any) continue;
      ScatterPacket &packet = slots[used++];
      static_cast<PlanePacket &>(packet) = tile;
      packet.prepare();
    }
  task.counts[index - task.first_chunk] = pack_list<ScatterPacket, PlanePacket, PlaneRay>(
      grid, 0, odd, [&](int64_t i) { return pixel_ray(mm, cols[i], rows[i]); }, [&](int64_t i) { return values[i]; },
      slots, used);
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

void scatter_packet(const Plane &plane, float *data, int64_t stride, const PlanePacket &packet, int from, int to) {
  const Range &range = packet.range;
  Spread4 spread;
  for (int k = from; k <= to; ++k) {
    float *here = data + k * stride;
    const float j = static_cast<float>(k - packet.centre);
    if (k >= range.inner_first && k <= range.inner_last) {
      spread_inner(plane, packet, j, spread);
      for (int l = 0; l < packet.count; ++l) {
        float *at = here + spread.at00[l];
        at[0] += spread.w00[l];
        at[plane.su] += spread.w10[l];
        at[plane.sv] += spread.w01[l];
        at[plane.sv + plane.su] += spread.w11[l];
      }
    } else {
      spread_edge(plane, packet, j, spread);
      for (int l = 0; l < packet.count; ++l) {
        here[spread.at00[l]] += spread.w00[l];
        here[spread.at10[l]] += spread.w10[l];
        here[spread.at01[l]] += spread.w01[l];
        here[spread.at11[l]] += spread.w11[l];
      }
    }
  }
}

}  // namespace

int64_t packet_bytes(bool march) { return march ? sizeof(MarchScatterPacket) : sizeof(ScatterPacket); }

void pack_rays(const ScatterTask &task, int64_t begin, int64_t end) {
  if (task.grid->step_mm > 0)
    pack_chunk<MarchScatterPacket, MarchPacket, MarchRay>(task, begin, end);
  else
    pack_chunk<ScatterPacket, PlanePacket, PlaneRay>(task, begin, end);
}

void pack_views(const ScatterTask &task, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) pack_view_chunk(task, i);
}

void scatter_planes(const ScatterTask &task, int axis, int slab_begin, int slab_end) {
  const licag3d_grid &grid = *task.grid;
  const int ua = axis == 0 ? 1 : 0, va = axis == 2 ? 1 : 2;
  const bool turned = axis == 0 && task.turned != nullptr;
  float *data = turned ? task.turned : task.volume;
  const int64_t stride = turned ? grid.size[1] : grid.stride[axis];
  const Plane plane = {nullptr, turned ? 1 : static_cast<int>(grid.stride[ua]),
                       turned ? grid.size[0] * grid.size[1] : static_cast<int>(grid.stride[va]), grid.size[ua],
                       grid.size[va]};
  const ScatterPacket *packets = reinterpret_cast<const ScatterPacket *>(task.packets);
  for (int64_t chunk = 0; chunk < task.chunks; ++chunk)
    for (int32_t p = 0; p < task.counts[chunk]; ++p) {
      const ScatterPacket &packet = packets[chunk * task.slots + p];
      if (packet.axis[2] != axis) continue;
      const int from = packet.range.first > slab_begin ? packet.range.first : slab_begin;
      const int to = packet.range.last < slab_end - 1 ? packet.range.last : slab_end - 1;
      if (packet.fan && plane.su == 1)
        add_fan(plane, data, stride, packet, packet.u_band, packet.v_band, from, to);
      else
        scatter_packet(plane, data, stride, packet, from, to);
    }
}

void scatter_march(const ScatterTask &task, int slab_begin, int slab_end) {
  const licag3d_grid &grid = *task.grid;
  const int sx = static_cast<int>(grid.stride[0]), sy = static_cast<int>(grid.stride[1]);
  const int64_t sz = grid.stride[2];
  const MarchScatterPacket *packets = reinterpret_cast<const MarchScatterPacket *>(task.packets);
  alignas(64) int at[4][kLanes], z0[kLanes], z1[kLanes];
  alignas(64) float w0[4][kLanes], w1[4][kLanes];
  for (int64_t chunk = 0; chunk < task.chunks; ++chunk)
    for (int32_t p = 0; p < task.counts[chunk]; ++p) {
      const MarchPacket &packet = packets[chunk * task.slots + p];
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
