// SPDX-License-Identifier: Apache-2.0
// What the 32 lanes of a CUDA warp do together for 32 samples of a tri-plane field, one sample a lane: texels gathered by
// groups of lanes that read a texel's channels side by side, gradients summed over the lanes that share a cell before
// anything is added to memory.
//
// A Warp runs a body for its lanes (each) and exchanges between them: cuda/warp.cuh does it on a device, where a body
// runs once per thread, and tests/host_warp.h on the host, lane after lane. Both compile what stands here.
#pragma once

#include "core/half.h"
#include "core/triplane_point.h"

LICAG3D_CORE_BEGIN

constexpr int kLanes32 = 32;

// Where the sample of each lane lies; in shared memory.
struct WarpCells {
  int32_t texel[3][kLanes32];
  float fraction[3][kLanes32];
  float inside[3][kLanes32];
};

// Number of the lowest bit that is set.
LICAG3D_HD int lowest_lane(uint32_t lanes) {
#if defined(__CUDA_ARCH__)
  return __ffs(static_cast<int>(lanes)) - 1;
#else
  return __builtin_ctz(lanes);
#endif
}

// A lane without a sample stands at texel 0 and adds nothing.
LICAG3D_HD void place_lane(WarpCells &cells, int lane, int resolution, bool active, const float *coordinate) {
  const float nowhere[3] = {0.0f, 0.0f, 0.0f};
  const PointCell cell = locate_point(resolution, active ? coordinate : nowhere);
  for (int a = 0; a < 3; ++a) {
    cells.texel[a][lane] = static_cast<int32_t>(cell.texel[a]);
    cells.fraction[a][lane] = cell.fraction[a];
    cells.inside[a][lane] = cell.inside[a];
  }
}

// The weights of the four texels of a cell, itself, right, down, both; their third makes the mean over three planes.
LICAG3D_HD void corner_weights(const WarpCells &cells, int plane, int lane, float *weight) {
  const float x = cells.fraction[plane_column(plane)][lane], y = cells.fraction[plane_row(plane)][lane];
  weight[3] = x * y * (1.0f / 3.0f);
  weight[1] = x * (1.0f / 3.0f) - weight[3];
  weight[2] = y * (1.0f / 3.0f) - weight[3];
  weight[0] = (1.0f / 3.0f) - x * (1.0f / 3.0f) - weight[2];
}

// 16 bytes of a texel: four floats, or eight halves.
struct alignas(16) Half8 {
  Half v[8];
};
LICAG3D_HD void load_item(const float *p, float *out) {
  const Float4 item = load4(p);
  LICAG3D_UNROLL
  for (int i = 0; i < 4; ++i) out[i] = item.v[i];
}
LICAG3D_HD void load_item(const Half *p, float *out) {
  const Half8 item = *reinterpret_cast<const Half8 *>(p);
  LICAG3D_UNROLL
  for (int i = 0; i < 8; ++i) out[i] = to_float(item.v[i]);
}
template <class Texel>
struct ItemOf {
  static constexpr int size = 16 / sizeof(Texel);  // channels of an item
};

template <int kChannels, class Texel>
LICAG3D_HD const Texel *warp_texel(const Texel *texels, int resolution, const WarpCells &cells, int plane, int lane) {
  return texels + (static_cast<int64_t>(plane) * resolution * resolution + cells.texel[plane][lane]) * kChannels;
}

// store(lane, channel, values) gets the features of every lane's sample, ItemOf<Texel>::size channels at a time.
template <int kChannels, class Texel, class Warp, class Store>
LICAG3D_HD void warp_gather(Warp &warp, const Texel *texels, int resolution, const WarpCells &cells, uint32_t active,
                            Store &&store) {
  constexpr int kSize = ItemOf<Texel>::size, kItems = kChannels / kSize;
  const int64_t right = step_right<kChannels>(resolution), down = step_down<kChannels>(resolution);
  for (int step = 0; step < kItems; ++step)
    warp.each([&](int lane) {
      const int sample = (step * kLanes32 + lane) / kItems, channel = (step * kLanes32 + lane) % kItems * kSize;
      float sum[kSize];
      LICAG3D_UNROLL
      for (int i = 0; i < kSize; ++i) sum[i] = 0.0f;
      // A lane without a sample gets zeros: what memory held before may be NaN.
      LICAG3D_UNROLL
      for (int p = 0; p < 3 && (active >> sample & 1); ++p) {
        const Texel *t = warp_texel<kChannels>(texels, resolution, cells, p, sample) + channel;
        float weight[4], t00[kSize], t01[kSize], t10[kSize], t11[kSize];
        corner_weights(cells, p, sample, weight);
        load_item(t, t00), load_item(t + right, t01), load_item(t + down, t10), load_item(t + down + right, t11);
        LICAG3D_UNROLL
        for (int i = 0; i < kSize; ++i)
          sum[i] += weight[0] * t00[i] + weight[1] * t01[i] + (weight[2] * t10[i] + weight[3] * t11[i]);
      }
      store(sample, channel, sum);
    });
}

// Gradient of the coordinates from that of the features (rows of `row` floats, one a lane): store(lane, slope[3]).
template <int kChannels, class Texel, class Warp, class Store>
LICAG3D_HD void warp_slopes(Warp &warp, const Texel *texels, int resolution, const WarpCells &cells, uint32_t active,
                            const float *gradient, int row, Store &&store) {
  constexpr int kSize = ItemOf<Texel>::size, kItems = kChannels / kSize;
  const int64_t right = step_right<kChannels>(resolution), down = step_down<kChannels>(resolution);
  for (int step = 0; step < kItems; ++step) {
    typename Warp::template Regs<float, 3> part;
    warp.each([&](int lane) {
      const int sample = (step * kLanes32 + lane) / kItems, channel = (step * kLanes32 + lane) % kItems * kSize;
      float *slope = part.at(lane);
      slope[0] = slope[1] = slope[2] = 0.0f;
      if (!(active >> sample & 1)) return;
      float g[kSize];
      LICAG3D_UNROLL
      for (int i = 0; i < kSize; i += 4) load_item(gradient + sample * row + channel + i, g + i);
      LICAG3D_UNROLL
      for (int p = 0; p < 3; ++p) {
        const Texel *t = warp_texel<kChannels>(texels, resolution, cells, p, sample) + channel;
        float s00 = 0.0f, s01 = 0.0f, s10 = 0.0f, s11 = 0.0f, t00[kSize], t01[kSize], t10[kSize], t11[kSize];
        load_item(t, t00), load_item(t + right, t01), load_item(t + down, t10), load_item(t + down + right, t11);
        LICAG3D_UNROLL
        for (int i = 0; i < kSize; ++i)
          s00 += g[i] * t00[i], s01 += g[i] * t01[i], s10 += g[i] * t10[i], s11 += g[i] * t11[i];
        const float x = cells.fraction[plane_column(p)][sample], y = cells.fraction[plane_row(p)][sample];
        slope[plane_column(p)] += (1.0f / 3.0f) * ((s01 - s00) * (1.0f - y) + (s11 - s10) * y);
        slope[plane_row(p)] += (1.0f / 3.0f) * ((s10 - s00) * (1.0f - x) + (s11 - s01) * x);
      }
    });
    warp.template add_groups<kItems>(part);
    warp.each([&](int lane) {
      const int sample = (step * kLanes32 + lane) / kItems;
      if ((step * kLanes32 + lane) % kItems != 0) return;
      float *slope = part.at(lane);
      LICAG3D_UNROLL
      for (int a = 0; a < 3; ++a) slope[a] *= cells.inside[a][sample];
      store(sample, slope);
    });
  }
}

// Adds the gradient of the features to that of the planes: add(offset, Float4) once for each corner of each cell that
// lanes stand in, however many do. The order of every sum is fixed.
template <int kChannels, class Warp, class Add>
LICAG3D_HD void warp_scatter(Warp &warp, int resolution, const WarpCells &cells, uint32_t active, const float *gradient,
                             int row, Add &&add) {
  constexpr int kQuads = kChannels / 4;
  const int64_t right = resolution > 1 ? 1 : 0, down = resolution > 1 ? resolution : 0;
  for (int p = 0; p < 3; ++p) {
    const int64_t plane = static_cast<int64_t>(p) * resolution * resolution;
    for (uint32_t rest = active; rest != 0;) {
      const int leader = lowest_lane(rest);
      const int32_t texel = cells.texel[p][leader];
      const uint32_t members = warp.ballot([&](int lane) { return cells.texel[p][lane] == texel; }) & rest;
      rest &= ~members;
      warp.each([&](int lane) {
        for (int item = lane; item < 4 * kQuads; item += kLanes32) {
          const int corner = item / kQuads, channel = item % kQuads * 4;
          Float4 sum = {{0.0f, 0.0f, 0.0f, 0.0f}};
          for (uint32_t left = members; left != 0; left &= left - 1) {
            const int m = lowest_lane(left);
            const float x = cells.fraction[plane_column(p)][m], y = cells.fraction[plane_row(p)][m];
            const float weight = (corner & 1 ? x : 1.0f - x) * (corner & 2 ? y : 1.0f - y) * (1.0f / 3.0f);
            const Float4 g = load4(gradient + m * row + channel);
            LICAG3D_UNROLL
            for (int i = 0; i < 4; ++i) sum.v[i] += weight * g.v[i];
          }
          const int64_t at = plane + texel + (corner & 1 ? right : 0) + (corner & 2 ? down : 0);
          add(at * kChannels + channel, sum);
        }
      });
    }
  }
}

LICAG3D_CORE_END
