// SPDX-License-Identifier: Apache-2.0
// Planes into the form that rows are gathered from, gradients of what was gathered back into planes, and the distances
// that let rays jump over empty cells. Compiled once per instruction set.
#include "cpu/triplane_matrix.h"
#include "cpu/triplane_tasks.h"

LICAG3D_CORE_BEGIN

namespace {

constexpr int kTexels = kTriplaneTexels;

// IEEE half to float: scaling by 2^112 moves the exponent and mends subnormals.
LICAG3D_HD float from_half(uint16_t h) {
  const uint32_t magnitude = (h & 0x7fffu) << 13;
  float value;
  std::memcpy(&value, &magnitude, 4);
  value *= 5.192296858534828e33f;
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  bits |= ((h & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u) | (h & 0x8000u) << 16;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Channels of texels [begin, end) side by side, cp for each; texels beyond the end are zero.
void load_texels(const TriplaneItem &item, const void *plane, int64_t source_stride, int64_t begin, int64_t end,
                 float *out) {
  const int cp = item.cp, count = static_cast<int>(end - begin);
  if (source_stride > 0) {
    const float *from = static_cast<const float *>(plane) + begin * source_stride;
    for (int t = 0; t < count; ++t) std::memcpy(out + t * cp, from + t * source_stride, cp * sizeof(float));
    std::memset(out + count * cp, 0, (kTexels - count) * cp * sizeof(float));
    return;
  }
  const int64_t texel_count = static_cast<int64_t>(item.resolution) * item.resolution;
  float rows[16 * kTexels];
  for (int c = 0; c < cp; c += 16) {
    for (int k = 0; k < 16; ++k) {
      float *row = rows + k * kTexels;
      int filled = 0;
      if (c + k < item.channels) {
        filled = count;
        const int64_t at = (c + k) * texel_count + begin;
        if (item.field->planes_are_half)
          for (int t = 0; t < count; ++t) row[t] = from_half(static_cast<const uint16_t *>(plane)[at + t]);
        else
          std::memcpy(row, static_cast<const float *>(plane) + at, count * sizeof(float));
      }
      std::memset(row + filled, 0, (kTexels - filled) * sizeof(float));
    }
    for (int t = 0; t < kTexels; t += kWidth)
      for (int k = 0; k < 16; k += kWidth) transpose(rows + k * kTexels + t, kTexels, out + t * cp + c + k, cp);
  }
}

// The way back from (texels, cp) to texels [begin, end) of a plane.
void store_texels(const TriplaneItem &item, const float *from, int64_t source_stride, int64_t begin, int64_t end,
                  float *plane) {
  const int cp = item.cp, count = static_cast<int>(end - begin);
  if (source_stride > 0) {
    for (int t = 0; t < count; ++t)
      std::memcpy(plane + (begin + t) * source_stride, from + t * cp, cp * sizeof(float));
    return;
  }
  const int64_t texel_count = static_cast<int64_t>(item.resolution) * item.resolution;
  float rows[16 * kTexels];
  for (int c = 0; c < item.channels; c += 16) {
    for (int t = 0; t < kTexels; t += kWidth)
      for (int k = 0; k < 16; k += kWidth) transpose(from + t * cp + c + k, cp, rows + k * kTexels + t, kTexels);
    for (int k = 0; k < 16 && c + k < item.channels; ++k)
      std::memcpy(plane + (c + k) * texel_count + begin, rows + k * kTexels, count * sizeof(float));
  }
}

bool all_zero(const float *values, int64_t count) {
  for (int64_t i = 0; i < count; i += 16) {
    Vi bits = Vi{};
    for (int k = 0; k < 16; k += kWidth) bits |= as_int(load(values + i + k)) & 0x7fffffff;
    for (int k = 0; k < kWidth; ++k)
      if (bits[k] != 0) return false;
  }
  return true;
}

}  // namespace

void triplane_pack(const TriplaneItem &item, const void *plane, int64_t source_stride, int64_t begin, int64_t end,
                   float *texels) {
  alignas(64) float channels[kTexels * kTriplaneMaxChannels];
  const int64_t count = end - begin;
  if (!item.folded) {
    const bool whole = count == kTexels;
    load_texels(item, plane, source_stride, begin, end, whole ? texels : channels);
    if (!whole) std::memcpy(texels, channels, count * item.cp * sizeof(float));
    return;
  }
  load_texels(item, plane, source_stride, begin, end, channels);
  const int hp = item.hp;
  // 16 texels at a time: the last ones may lie beyond the end.
  for (int64_t t = 0; t < count; t += 16) {
    const bool whole = t + 16 <= count;
    if (whole) {
      product<Start::zero>(16, hp, item.cp, channels + t * item.cp, item.cp, 1, item.weight_1t, hp, texels + t * hp, hp);
      continue;
    }
    for (; t < count; ++t)
      for (int j = 0; j < hp; j += kWidth) {
        Vf sum = Vf{};
        for (int c = 0; c < item.cp; ++c) sum += splat(channels[t * item.cp + c]) * load(item.weight_1t + c * hp + j);
        store(texels + t * hp + j, sum);
      }
  }
}

void triplane_unpack(const TriplaneItem &item, const TriplaneSlice *slices, const void *plane, int64_t source_stride,
                     int64_t begin, int64_t end, float *gradient, float *weight_1t) {
  const int width = item.width, count = static_cast<int>(end - begin), cp = item.cp;
  // Hidden units in portions of at most kTriplaneMaxChannels, so that the block fits on the stack.
  alignas(64) float gathered[kTexels * kTriplaneMaxChannels], channels[kTexels * kTriplaneMaxChannels];
  if (!item.folded) {
    for (int s = 0; s < width / 16; ++s)
      for (int t = 0; t < count; ++t)
        std::memcpy(gathered + t * cp + s * 16, slices[s].base + (begin + t) * slices[s].texel_stride, 64);
    store_texels(item, gathered, source_stride, begin, end, gradient);
    return;
  }
  alignas(64) float source[kTexels * kTriplaneMaxChannels];
  bool loaded = false, first = true;
  for (int from = 0; from < width; from += kTriplaneMaxChannels) {
    const int part = width - from < kTriplaneMaxChannels ? width - from : kTriplaneMaxChannels;
    for (int s = 0; s < part / 16; ++s) {
      const TriplaneSlice &slice = slices[from / 16 + s];
      for (int t = 0; t < count; ++t)
        std::memcpy(gathered + t * part + s * 16, slice.base + (begin + t) * slice.texel_stride, 64);
    }
    std::memset(gathered + count * part, 0, (kTexels - count) * part * sizeof(float));
    if (all_zero(gathered, static_cast<int64_t>(count) * part)) continue;
    if (weight_1t != nullptr) {
      if (!loaded) load_texels(item, plane, source_stride, begin, end, source);
      loaded = true;
      product<Start::accumulate>(cp, part, kTexels, source, 1, cp, gathered, part, weight_1t + from, item.hp);
    }
    if (gradient == nullptr) continue;
    const float *weight_1 = item.weight_1 + static_cast<int64_t>(from) * cp;
    if (first)
      product<Start::zero>(kTexels, cp, part, gathered, part, 1, weight_1, cp, channels, cp);
    else
      product<Start::accumulate>(kTexels, cp, part, gathered, part, 1, weight_1, cp, channels, cp);
    first = false;
  }
  if (gradient == nullptr) return;
  if (first) std::memset(channels, 0, kTexels * cp * sizeof(float));
  store_texels(item, channels, source_stride, begin, end, gradient);
}

void triplane_scatter(const TriplaneRecord &record, int resolution, int plane, int slice,
                      const TriplaneSlice &gradient) {
  const int column = plane == 2 ? 1 : 0, row = plane == 0 ? 1 : 2;
  const int64_t right = resolution > 1 ? gradient.texel_stride : 0, down = right * resolution;
  const int32_t *texel = record.texel + plane * record.samples;
  const float *across = record.fraction + column * record.samples, *downward = record.fraction + row * record.samples;
  const float *features = record.gathered + slice * record.samples * 16;
  const int64_t used = *record.used;
  for (int64_t i = 0; i < used; ++i) {
    if (i + 8 < used) {
      const float *ahead = gradient.base + static_cast<int64_t>(texel[i + 8]) * gradient.texel_stride;
      __builtin_prefetch(ahead, 1);
      __builtin_prefetch(ahead + right, 1);
      __builtin_prefetch(ahead + down, 1);
      __builtin_prefetch(ahead + down + right, 1);
    }
    const float x = across[i], y = downward[i];
    float *t = gradient.base + static_cast<int64_t>(texel[i]) * gradient.texel_stride;
    for (int c = 0; c < 16; c += kWidth) {
      const Vf g = load(features + i * 16 + c);
      const Vf other = g * x, left = g - other;
      const Vf left_down = left * y, other_down = other * y;
      store(t + c, load(t + c) + (left - left_down));
      store(t + right + c, load(t + right + c) + (other - other_down));
      store(t + down + c, load(t + down + c) + left_down);
      store(t + down + right + c, load(t + down + right + c) + other_down);
    }
  }
}

void triplane_reach(const uint8_t *in, uint8_t *out, int cells, int axis, int slab) {
  const int64_t row = cells, plane = row * cells;
  // Axes 0 and 1 work on the z slab, axis 2 on the rows of one y.
  for (int64_t k = 0; k < cells; ++k) {
    const int64_t at = axis == 2 ? k * plane + slab * row : slab * plane + k * row;
    const int64_t line = axis == 2 ? plane : row;
    uint8_t *to = out + at;
    std::memcpy(to, in + at, row);
    for (int reach = 1; reach < kTriplaneReach; ++reach) {
      const uint8_t far = static_cast<uint8_t>(reach);
      for (int sign = -1; sign <= 1; sign += 2) {
        if (axis == 0) {
          const int64_t first = sign < 0 ? reach : 0, last = sign < 0 ? row : row - reach;
          const uint8_t *from = in + at + sign * reach;
          for (int64_t i = first; i < last; ++i) {
            const uint8_t other = from[i] > far ? from[i] : far;
            to[i] = to[i] < other ? to[i] : other;
          }
          continue;
        }
        const int64_t neighbour = k + sign * reach;
        if (neighbour < 0 || neighbour >= cells) continue;
        const uint8_t *from = in + at + sign * reach * line;
        for (int64_t i = 0; i < row; ++i) {
          const uint8_t other = from[i] > far ? from[i] : far;
          to[i] = to[i] < other ? to[i] : other;
        }
      }
    }
  }
}

LICAG3D_CORE_END
