// SPDX-License-Identifier: Apache-2.0
// Tiles of 16 rays (or rows of 16 points) through the packet kernels; compiled once per instruction set.
#include "core/triplane.h"

#include "core/rays.h"
#include "cpu/triplane_packet.h"

LICAG3D_CORE_BEGIN

namespace {

constexpr int kLanes = kTriplaneLanes;

// 16 rays of a tile, transposed; an unused lane has no extent and no weight.
struct RayLanes {
  ClippedRay ray[kLanes];
  RayMm source[kLanes];
  int64_t index[kLanes];
  float start[3][kLanes], delta[3][kLanes], step[kLanes];
  int used;
};

TriplaneBox box_of(const TriplaneItem &item) {
  return make_box(item.field->box_center_mm, item.field->box_size_mm, item.resolution);
}

void load_lanes(const TriplaneBox &box, const TriplaneRayTask &task, int64_t tile, RayLanes &lanes) {
  std::memset(&lanes, 0, sizeof(lanes));
  const int64_t begin = tile * kLanes;
  lanes.used = static_cast<int>(task.hit_count - begin < kLanes ? task.hit_count - begin : kLanes);
  for (int lane = 0; lane < lanes.used; ++lane) {
    lanes.index[lane] = task.hits[begin + lane];
    lanes.source[lane] = load_ray(*task.rays, task.first_ray + lanes.index[lane]);
    const ClippedRay ray = clip_ray(box, lanes.source[lane].origin, lanes.source[lane].direction);
    lanes.ray[lane] = ray;
    lanes.step[lane] = static_cast<float>(step_mm(ray, task.samples));
    for (int a = 0; a < 3; ++a) {
      lanes.start[a][lane] = ray.start[a];
      lanes.delta[a][lane] = ray.delta[a];
    }
  }
}

// Coordinates of samples first .. first + count - 1 of the 16 rays.
LICAG3D_HD void place(const RayLanes &lanes, int first, int count, float per_sample, Packet &packet) {
  for (int g = 0; g < count; ++g) {
    const float fraction = (static_cast<float>(first + g) + 0.5f) * per_sample;
    for (int a = 0; a < 3; ++a)
      for (int lane = 0; lane < kLanes; lane += kWidth)
        store(packet.coordinate[a] + g * kLanes + lane,
              load(lanes.start[a] + lane) + fraction * load(lanes.delta[a] + lane));
  }
}

// Keeps for the second phase where the rows lie and the gradient of their features.
void keep(const TriplaneItem &item, const Packet &packet, int rows, int64_t at, const TriplaneRecord &record) {
  for (int a = 0; a < 3; ++a) {
    std::memcpy(record.texel + a * record.samples + at, packet.texel[a], rows * sizeof(int32_t));
    std::memcpy(record.fraction + a * record.samples + at, packet.fraction[a], rows * sizeof(float));
  }
  for (int slice = 0; slice < item.cp / 16; ++slice) {
    float *out = record.features + (slice * record.samples + at) * 16;
    for (int row = 0; row < rows; ++row)
      for (int c = 0; c < 16; c += kWidth)
        store(out + row * 16 + c, load(packet.features_grad + row * item.cp + slice * 16 + c));
  }
}

void backward(const TriplaneItem &item, Packet &packet, int rows, bool slopes, const TriplaneRecord &record,
              int64_t at) {
  locate(item, packet, rows);
  if (slopes)
    gather<true>(item, packet, rows);
  else
    gather<false>(item, packet, rows);
  decode<true>(item, packet, rows);
  if (record.want_weights)
    decode_backward<true>(item, packet, rows, record.weights);
  else
    decode_backward<false>(item, packet, rows, record.weights);
  if (slopes) coordinate_slopes(item, packet, rows);
  if (record.want_planes) keep(item, packet, rows, at, record);
}

void clear_weights(const TriplaneItem &item, const TriplaneRecord &record) {
  if (record.want_weights) std::memset(record.weights, 0, (item.cp * item.hp + 2 * item.hp + 16) * sizeof(float));
}

// Up to 48 points; an outside point keeps coordinate 0 and inside[i] = 0. Returns whether any is inside.
bool place_points(const TriplaneBox &box, const void *points, bool is_double, int64_t begin, int rows, int64_t count,
                  Packet &packet, float *inside) {
  bool any = false;
  for (int row = 0; row < rows; ++row) {
    const int64_t i = begin + row;
    bool within = i < count;
    double u[3] = {0, 0, 0};
    for (int a = 0; a < 3 && i < count; ++a) {
      const double x = is_double ? static_cast<const double *>(points)[3 * i + a]
                                 : static_cast<double>(static_cast<const float *>(points)[3 * i + a]);
      within = within && x >= box.low[a] && x <= box.high[a];
      u[a] = to_texel(box, a, x);
    }
    for (int a = 0; a < 3; ++a) packet.coordinate[a][row] = within ? static_cast<float>(u[a]) : 0.0f;
    inside[row] = within ? 1.0f : 0.0f;
    any = any || within;
  }
  return any;
}

}  // namespace

int64_t triplane_scratch_floats(const TriplaneItem &item) { return packet_floats(item); }

void triplane_repack(const licag3d_triplane &field, const void *plane, int cp, float *texels, int64_t begin,
                     int64_t end) {
  const int64_t texel_count = static_cast<int64_t>(field.resolution) * field.resolution;
  for (int64_t block = begin; block < end; block += 64) {
    const int64_t stop = block + 64 < end ? block + 64 : end;
    for (int c = 0; c < cp; ++c) {
      float values[64] = {};
      if (c < field.channels && field.planes_are_half) {
        const uint16_t *from = static_cast<const uint16_t *>(plane) + c * texel_count;
        for (int64_t i = block; i < stop; ++i) {
          // IEEE half to float: scaling by 2^112 moves the exponent and mends subnormals.
          const uint32_t h = from[i], magnitude = (h & 0x7fffu) << 13;
          float value;
          std::memcpy(&value, &magnitude, 4);
          value *= 5.192296858534828e33f;
          uint32_t bits;
          std::memcpy(&bits, &value, 4);
          bits |= ((h & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u) | (h & 0x8000u) << 16;
          std::memcpy(&values[i - block], &bits, 4);
        }
      } else if (c < field.channels) {
        std::memcpy(values, static_cast<const float *>(plane) + c * texel_count + block,
                    (stop - block) * sizeof(float));
      }
      for (int64_t i = block; i < stop; ++i) texels[i * cp + c] = values[i - block];
    }
  }
}

void triplane_render_tile(const TriplaneItem &item, const TriplaneRayTask &task, int64_t tile, float *scratch,
                          float *values) {
  Packet &packet = make_packet(item, scratch);
  RayLanes lanes;
  load_lanes(box_of(item), task, tile, lanes);
  float sum[kLanes] = {};
  const float per_sample = 1.0f / static_cast<float>(task.samples);
  constexpr int kGroups = kPacket / kLanes;
  for (int i = 0; i < task.samples; i += kGroups) {
    const int groups = task.samples - i < kGroups ? task.samples - i : kGroups;
    place(lanes, i, groups, per_sample, packet);
    locate(item, packet, groups * kLanes);
    gather<false>(item, packet, groups * kLanes);
    decode<false>(item, packet, groups * kLanes);
    for (int g = 0; g < groups; ++g)
      for (int lane = 0; lane < kLanes; ++lane) sum[lane] += packet.field[g * kLanes + lane];
  }
  for (int lane = 0; lane < lanes.used; ++lane) values[lanes.index[lane]] = sum[lane] * lanes.step[lane];
}

void triplane_render_tile_backward(const TriplaneItem &item, const TriplaneRayTask &task, int64_t tile,
                                   const float *grad_values, float *scratch, const TriplaneRecord &record,
                                   float *grad_origin, float *grad_direction) {
  Packet &packet = make_packet(item, scratch);
  const TriplaneBox box = box_of(item);
  RayLanes lanes;
  load_lanes(box, task, tile, lanes);
  clear_weights(item, record);
  const bool slopes = grad_origin != nullptr;
  float sum[kLanes] = {}, slope[3][kLanes] = {}, moment[3][kLanes] = {}, weight[kLanes] = {};
  for (int lane = 0; lane < lanes.used; ++lane) weight[lane] = grad_values[lanes.index[lane]] * lanes.step[lane];
  const float per_sample = 1.0f / static_cast<float>(task.samples);
  constexpr int kGroups = kPacket / kLanes;
  for (int i = 0; i < task.samples; i += kGroups) {
    const int groups = task.samples - i < kGroups ? task.samples - i : kGroups;
    place(lanes, i, groups, per_sample, packet);
    for (int g = 0; g < groups; ++g) std::memcpy(packet.weight + g * kLanes, weight, sizeof(weight));
    backward(item, packet, groups * kLanes, slopes, record, static_cast<int64_t>(i) * kLanes);
    if (!slopes) continue;
    for (int g = 0; g < groups; ++g) {
      const float fraction = (static_cast<float>(i + g) + 0.5f) * per_sample;
      for (int lane = 0; lane < kLanes; ++lane) sum[lane] += packet.field[g * kLanes + lane];
      for (int a = 0; a < 3; ++a)
        for (int lane = 0; lane < kLanes; ++lane) {
          const float s = packet.slope[a][g * kLanes + lane];
          slope[a][lane] += s;
          moment[a][lane] += fraction * s;
        }
    }
  }
  if (!slopes) return;
  for (int lane = 0; lane < lanes.used; ++lane) {
    double s[3], m[3], d_origin[3], d_direction[3];
    for (int a = 0; a < 3; ++a) s[a] = slope[a][lane], m[a] = moment[a][lane];
    ray_gradient(box, lanes.ray[lane], lanes.source[lane].direction, task.samples, grad_values[lanes.index[lane]],
                 sum[lane], s, m, d_origin, d_direction);
    const int64_t at = 3 * (task.first_ray + lanes.index[lane]);
    for (int a = 0; a < 3; ++a) {
      grad_origin[at + a] += static_cast<float>(d_origin[a]);
      grad_direction[at + a] += static_cast<float>(d_direction[a]);
    }
  }
}

void triplane_query_tile(const TriplaneItem &item, const void *points, bool is_double, int64_t count, int64_t tile,
                         float *scratch, float *values) {
  Packet &packet = make_packet(item, scratch);
  const TriplaneBox box = box_of(item);
  const int64_t size = kTriplaneQueryDepth * kLanes;
  const int64_t end = (tile + 1) * size < count ? (tile + 1) * size : count;
  for (int64_t begin = tile * size; begin < end; begin += kPacket) {
    float inside[kPacket];
    const int used = static_cast<int>(end - begin < kPacket ? end - begin : kPacket);
    const int rows = (used + kLanes - 1) / kLanes * kLanes;
    const bool any = place_points(box, points, is_double, begin, rows, end, packet, inside);
    if (any) {
      locate(item, packet, rows);
      gather<false>(item, packet, rows);
      decode<false>(item, packet, rows);
    }
    for (int row = 0; row < used; ++row) values[begin + row] = inside[row] != 0.0f ? packet.field[row] : 0.0f;
  }
}

void triplane_query_tile_backward(const TriplaneItem &item, const void *points, bool is_double, int64_t count,
                                  int64_t tile, const float *grad_values, float *scratch, const TriplaneRecord &record,
                                  float *grad_points) {
  Packet &packet = make_packet(item, scratch);
  const TriplaneBox box = box_of(item);
  clear_weights(item, record);
  const int64_t size = kTriplaneQueryDepth * kLanes, first = tile * size;
  const int64_t end = first + size < count ? first + size : count;
  for (int64_t begin = first; begin < first + size; begin += kPacket) {
    float inside[kPacket];
    const int64_t left = end - begin;
    const int used = static_cast<int>(left < 0 ? 0 : left < kPacket ? left : kPacket);
    // The whole tile is recorded, so that the second phase need not know which points exist.
    place_points(box, points, is_double, begin, kPacket, end, packet, inside);
    for (int row = 0; row < kPacket; ++row)
      packet.weight[row] = row < used && inside[row] != 0.0f ? grad_values[begin + row] : 0.0f;
    backward(item, packet, kPacket, grad_points != nullptr, record, begin - first);
    for (int row = 0; grad_points != nullptr && row < used; ++row)
      for (int a = 0; a < 3; ++a)
        grad_points[3 * (begin + row) + a] += static_cast<float>(packet.slope[a][row] * box.texels_per_mm);
  }
}

void triplane_scatter(const TriplaneRecord &record, int resolution, int plane, int slice, float *gradient) {
  const int column = plane == 2 ? 1 : 0, row = plane == 0 ? 1 : 2;
  const int64_t right = resolution > 1 ? 16 : 0, down = resolution > 1 ? 16 * static_cast<int64_t>(resolution) : 0;
  const int32_t *texel = record.texel + plane * record.samples;
  const float *across = record.fraction + column * record.samples, *downward = record.fraction + row * record.samples;
  const float *features = record.features + slice * record.samples * 16;
  for (int64_t i = 0; i < record.samples; ++i) {
    const float x = across[i] * (1.0f / 3.0f), x0 = (1.0f / 3.0f) - x, y = downward[i];
    float *t = gradient + static_cast<int64_t>(texel[i]) * 16;
    for (int c = 0; c < 16; c += kWidth) {
      const Vf g = load(features + i * 16 + c);
      const Vf left = g * x0, other = g * x;
      const Vf left_down = left * y, other_down = other * y;
      store(t + c, load(t + c) + (left - left_down));
      store(t + right + c, load(t + right + c) + (other - other_down));
      store(t + down + c, load(t + down + c) + left_down);
      store(t + down + right + c, load(t + down + right + c) + other_down);
    }
  }
}

LICAG3D_CORE_END
