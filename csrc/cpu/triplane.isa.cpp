// SPDX-License-Identifier: Apache-2.0
// Rows of the tri-plane operators: which there are, and blocks of them through the packet kernels. Compiled once per
// instruction set.
#include "core/triplane.h"

#include "core/rays.h"
#include "core/triplane_cells.h"
#include "cpu/triplane_decode.h"

LICAG3D_CORE_BEGIN

namespace {

constexpr int kLanes = kTriplaneLanes;
constexpr uint32_t kSampleMask = (1u << kTriplaneSampleBits) - 1;

CellGrid grid_of(const TriplaneItem &item, const TriplaneCells &cells) {
  return {cells.distance, cells.cells, static_cast<float>(cells.cells) / static_cast<float>(item.resolution)};
}

TriplaneBox box_of(const TriplaneItem &item) {
  return make_box(item.field->box_center_mm, item.field->box_size_mm, item.resolution);
}

// Marks in mask[i], bit `lane`, the samples of a ray that lie in cells that are not empty.
void mark_samples(const CellGrid &cells, const TriplaneRay &ray, int samples, int lane, uint16_t *mask) {
  const float per_sample = 1.0f / static_cast<float>(samples);
  const float per_cell = samples_per_cell(cells, ray.delta, per_sample);
  for (int i = 0; (i = next_sample(cells, ray.start, ray.delta, per_sample, per_cell, i, samples)) < samples; ++i)
    mask[i] = static_cast<uint16_t>(mask[i] | 1u << lane);
}

// Coordinates and weights of rows [begin, begin + used); the packet is filled up with rows of no weight.
LICAG3D_HD void place(const TriplaneBox &box, const TriplaneRows &rows, int64_t begin, int used, int padded,
                      bool backward, Packet &packet) {
  for (int k = 0; k < used; ++k) {
    const uint32_t row = rows.row[begin + k];
    if (rows.rays != nullptr) {
      const TriplaneRay &ray = rows.rays[row >> kTriplaneSampleBits];
      const float fraction = (static_cast<float>(row & kSampleMask) + 0.5f) * rows.per_sample;
      for (int a = 0; a < 3; ++a) packet.coordinate[a][k] = ray.start[a] + fraction * ray.delta[a];
      packet.weight[k] = ray.weight;
    } else {
      for (int a = 0; a < 3; ++a) {
        const double x = rows.points_are_double
                             ? static_cast<const double *>(rows.points)[3 * static_cast<int64_t>(row) + a]
                             : static_cast<double>(static_cast<const float *>(rows.points)[3 * static_cast<int64_t>(row) + a]);
        packet.coordinate[a][k] = static_cast<float>(to_texel(box, a, x));
      }
      packet.weight[k] = backward ? rows.grad_points[row] : 0.0f;
    }
  }
  for (int k = used; k < padded; ++k) {
    for (int a = 0; a < 3; ++a) packet.coordinate[a][k] = 0.0f;
    packet.weight[k] = 0.0f;
  }
}

template <bool kSlopes>
void backward(const TriplaneItem &item, Packet &packet, int rows, const TriplaneRecord &record, int64_t at) {
  if (item.folded) {
    decode_folded<true, kSlopes>(item, packet, rows);
    finish<true>(item, packet, rows);
    if (kSlopes) finish_slopes<false>(packet, rows);
    if (record.want_gathered) record_folded(item, packet, rows, record, at);
  } else {
    gather_features<kSlopes>(item, packet, rows);
    decode_features<true>(item, packet, rows);
    finish<true>(item, packet, rows);
    backward_features(item, packet, rows, record);
    if (kSlopes) {
      slopes_of_features(item, packet, rows);
      finish_slopes<true>(packet, rows);
    }
    if (record.want_gathered) record_features(item, packet, rows, record, at);
  }
  if (record.want_weights) {
    float *grad_bias_2 = record.weights + 2 * item.hp;
    for (int row = 0; row < rows; ++row) grad_bias_2[row % 16] += packet.weight[row];
  }
  if (!record.want_gathered) return;
  for (int a = 0; a < 3; ++a) {
    std::memcpy(record.texel + a * record.samples + at, packet.texel[a], rows * sizeof(int32_t));
    std::memcpy(record.fraction + a * record.samples + at, packet.fraction[a], rows * sizeof(float));
  }
}

}  // namespace

int64_t triplane_scratch_floats(const TriplaneItem &item) { return packet_floats(item); }

void triplane_prepare_rays(const TriplaneItem &item, const TriplaneCells &cells, const TriplaneRayTask &task,
                           const TriplaneList &list, int64_t group) {
  const TriplaneBox box = box_of(item);
  const CellGrid grid = grid_of(item, cells);
  const int64_t begin = group * kTriplaneGroup, end = list.count < begin + kTriplaneGroup ? list.count : begin + kTriplaneGroup;
  if (list.mask != nullptr)
    std::memset(list.mask + begin / kLanes * task.samples, 0,
                (end - begin + kLanes - 1) / kLanes * task.samples * sizeof(uint16_t));
  for (int64_t i = begin; i < end; ++i) {
    const int64_t index = task.hits[list.first + i];
    const RayMm source = load_ray(*task.rays, task.first_ray + index);
    const ClippedRay clipped = clip_ray(box, source.origin, source.direction);
    TriplaneRay &ray = list.rays[i];
    for (int a = 0; a < 3; ++a) ray.start[a] = clipped.start[a], ray.delta[a] = clipped.delta[a];
    ray.step_mm = static_cast<float>(step_mm(clipped, task.samples));
    ray.weight = task.grad_values != nullptr ? task.grad_values[index] * ray.step_mm : 0.0f;
    if (list.mask != nullptr)
      mark_samples(grid, ray, task.samples, static_cast<int>(i % kLanes), list.mask + i / kLanes * task.samples);
  }
}

int64_t triplane_list_rays(const TriplaneRayTask &task, const TriplaneList &list, int64_t piece, uint32_t *rows) {
  const int64_t begin = piece % list.groups * kTriplaneGroup;
  const int64_t end = list.count < begin + kTriplaneGroup ? list.count : begin + kTriplaneGroup;
  const int from = static_cast<int>(piece / list.groups) * list.slab;
  const int to = from + list.slab < task.samples ? from + list.slab : task.samples;
  uint32_t *next = rows;
  for (int64_t tile = begin; tile < end; tile += kLanes) {
    const int lanes = static_cast<int>(end - tile < kLanes ? end - tile : kLanes);
    const uint16_t *mask = list.mask != nullptr ? list.mask + tile / kLanes * task.samples : nullptr;
    // Samples of neighbours side by side: they read the same texels.
    for (int i = from; i < to; ++i) {
      const uint32_t here = mask != nullptr ? mask[i] : (1u << lanes) - 1;
      for (int lane = 0; here != 0 && lane < lanes; ++lane)
        if (here >> lane & 1)
          *next++ = static_cast<uint32_t>(tile + lane) << kTriplaneSampleBits | static_cast<uint32_t>(i);
    }
  }
  return next - rows;
}

int64_t triplane_list_points(const TriplaneItem &item, const TriplaneCells &cells, const void *points, bool is_double,
                             int64_t begin, int64_t end, uint32_t *rows) {
  const TriplaneBox box = box_of(item);
  const CellGrid grid = grid_of(item, cells);
  uint32_t *next = rows;
  for (int64_t i = begin; i < end; ++i) {
    bool inside = true;
    float coordinate[3];
    for (int a = 0; a < 3; ++a) {
      const double x = is_double ? static_cast<const double *>(points)[3 * i + a]
                                 : static_cast<double>(static_cast<const float *>(points)[3 * i + a]);
      inside = inside && x >= box.low[a] && x <= box.high[a];  // false for NaN
      coordinate[a] = inside ? static_cast<float>(to_texel(box, a, x)) : 0.0f;
    }
    if (!inside || (grid.distance != nullptr && cell_distance(grid, coordinate) != 0)) continue;
    *next++ = static_cast<uint32_t>(i);
  }
  return next - rows;
}

void triplane_decode(const TriplaneItem &item, const TriplaneRows &rows, int64_t begin, int64_t end, float *scratch) {
  Packet &packet = make_packet(item, scratch);
  packet.scattered = rows.scattered;
  const TriplaneBox box = box_of(item);
  const Tiles tiles(item.tiles);
  for (int64_t at = begin; at < end; at += kPacket) {
    const int used = static_cast<int>(end - at < kPacket ? end - at : kPacket), padded = (used + 15) / 16 * 16;
    place(box, rows, at, used, padded, false, packet);
    locate(item, packet, padded);
    if (item.folded) {
      decode_folded<false, false>(item, packet, padded);
    } else {
      gather_features<false>(item, packet, padded);
      decode_features<false>(item, packet, padded);
    }
    finish<false>(item, packet, padded);
    std::memcpy(rows.field + at, packet.field, used * sizeof(float));
  }
}

void triplane_decode_backward(const TriplaneItem &item, const TriplaneRows &rows, int64_t begin, int64_t end,
                              float *scratch, const TriplaneRecord &record) {
  Packet &packet = make_packet(item, scratch);
  packet.scattered = rows.scattered;
  const TriplaneBox box = box_of(item);
  const Tiles tiles(item.tiles);
  if (record.want_weights)
    std::memset(record.weights, 0, (2 * item.hp + 16 + (item.folded ? 0 : item.cp * item.hp)) * sizeof(float));
  for (int64_t at = begin; at < end; at += kPacket) {
    const int used = static_cast<int>(end - at < kPacket ? end - at : kPacket), padded = (used + 15) / 16 * 16;
    place(box, rows, at, used, padded, true, packet);
    locate(item, packet, padded);
    if (rows.slope != nullptr)
      backward<true>(item, packet, padded, record, at - begin);
    else
      backward<false>(item, packet, padded, record, at - begin);
    std::memcpy(rows.field + at, packet.field, used * sizeof(float));
    for (int a = 0; rows.slope != nullptr && a < 3; ++a)
      std::memcpy(rows.slope + a * rows.slope_stride + at, packet.slope[a], used * sizeof(float));
  }
  *record.used = end - begin;
}

void triplane_ray_gradients(const TriplaneItem &item, const TriplaneRayTask &task, const TriplaneList &list,
                            int64_t group, const TriplaneRows &rows, const int64_t *piece_begin, float *grad_origin,
                            float *grad_direction) {
  const TriplaneBox box = box_of(item);
  double sum[kTriplaneGroup] = {}, slope[3][kTriplaneGroup] = {}, moment[3][kTriplaneGroup] = {};
  const int64_t from = group * kTriplaneGroup;
  for (int64_t piece = group; piece < list.slabs * list.groups; piece += list.groups)
    for (int64_t k = piece_begin[piece]; k < piece_begin[piece + 1]; ++k) {
      const int ray = static_cast<int>((rows.row[k] >> kTriplaneSampleBits) - from);
      const double fraction = (static_cast<double>(rows.row[k] & kSampleMask) + 0.5) / task.samples;
      sum[ray] += rows.field[k];
      for (int a = 0; a < 3; ++a) {
        const double s = rows.slope[a * rows.slope_stride + k];
        slope[a][ray] += s;
        moment[a][ray] += fraction * s;
      }
    }
  for (int i = 0; i < kTriplaneGroup && from + i < list.count; ++i) {
    const int64_t index = task.hits[list.first + from + i];
    const RayMm source = load_ray(*task.rays, task.first_ray + index);
    const ClippedRay ray = clip_ray(box, source.origin, source.direction);
    double s[3], m[3], d_origin[3], d_direction[3];
    for (int a = 0; a < 3; ++a) s[a] = slope[a][i], m[a] = moment[a][i];
    ray_gradient(box, ray, source.direction, task.samples, task.grad_values[index], sum[i], s, m, d_origin,
                 d_direction);
    const int64_t at = 3 * (task.first_ray + index);
    for (int a = 0; a < 3; ++a) {
      grad_origin[at + a] += static_cast<float>(d_origin[a]);
      grad_direction[at + a] += static_cast<float>(d_direction[a]);
    }
  }
}

LICAG3D_CORE_END
