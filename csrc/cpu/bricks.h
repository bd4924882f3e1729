// SPDX-License-Identifier: Apache-2.0
// Which planes of a packet can hold anything: bricks of kBrick^3 voxels in which every voxel is zero are left out.
// A sample there is exactly zero and adding it changes no bit, so the result is the same with and without.
#pragma once

#include "cpu/packets.h"
#include "cpu/volume_tasks.h"

LICAG3D_CORE_BEGIN

// Lines below and above one transverse coordinate of all lanes, over the planes of the packet's range. The least of
// several lines is concave and the greatest convex, so the chords between the two ends of the range bound them.
struct Band {
  float low, low_step, high, high_step;  // at plane j counted from the centre: low + j low_step
  float width;                           // the greatest distance between the two

  float low_at(float j) const { return low + j * low_step; }
  float high_at(float j) const { return high + j * high_step; }
};

inline Band band(const float *at, const float *step, const PacketHead &head) {
  const float first = static_cast<float>(head.range.first - head.centre);
  const float last = static_cast<float>(head.range.last - head.centre);
  alignas(64) float begin[kLanes], end[kLanes];
  for (int l = 0; l < kLanes; ++l) begin[l] = at[l] + first * step[l], end[l] = at[l] + last * step[l];
  const float low0 = lane_min(begin), low1 = lane_min(end), high0 = lane_max(begin), high1 = lane_max(end);
  const float inverse = last > first ? 1.0f / (last - first) : 0.0f;
  Band out;
  out.low_step = (low1 - low0) * inverse;
  out.high_step = (high1 - high0) * inverse;
  out.low = low0 - first * out.low_step;
  out.high = high0 - first * out.high_step;
  const float width0 = high0 - low0, width1 = high1 - low1;
  out.width = width0 > width1 ? width0 : width1;
  return out;
}

// Rounding of float positions, in voxels; ten times what 2^14 planes can bring.
constexpr float kBandMargin = 0.02f;

// The bricks from the voxel below `low` to the one above `high`; none where that lies outside [0, n).
inline void brick_range(float low, float high, int n, int &from, int &to) {
  const float first = low - kBandMargin, last = high + (1.0f + kBandMargin);
  from = first > 0.0f ? (first < static_cast<float>(n) ? static_cast<int>(first) / kBrick : n) : 0;
  to = last < 0.0f ? -1 : (last < static_cast<float>(n - 1) ? static_cast<int>(last) : n - 1) / kBrick;
}

// use(begin, end) for every run of planes that can hold anything; one run of all planes where bricks is NULL.
template <class Use>
inline void for_runs(const licag3d_grid &grid, const PacketHead &head, const Band &u, const Band &v, const Bricks *bricks,
                     Use &&use) {
  const Range &range = head.range;
  if (bricks == nullptr) return use(range.first, range.last + 1);
  const int64_t strides[3] = {1, bricks->size[0], static_cast<int64_t>(bricks->size[0]) * bricks->size[1]};
  const int64_t su = strides[head.axis[0]], sv = strides[head.axis[1]], sk = strides[head.axis[2]];
  const int nu = grid.size[head.axis[0]], nv = grid.size[head.axis[1]];
  int begin = -1;
  for (int k = range.first; k <= range.last;) {
    const int next = (k | (kBrick - 1)) + 1 <= range.last ? (k | (kBrick - 1)) + 1 : range.last + 1;
    const float j0 = static_cast<float>(k - head.centre), j1 = static_cast<float>(next - 1 - head.centre);
    int u0, u1, v0, v1;
    brick_range(u.low_step > 0 ? u.low_at(j0) : u.low_at(j1), u.high_step > 0 ? u.high_at(j1) : u.high_at(j0), nu, u0, u1);
    brick_range(v.low_step > 0 ? v.low_at(j0) : v.low_at(j1), v.high_step > 0 ? v.high_at(j1) : v.high_at(j0), nv, v0, v1);
    const uint8_t *layer = bricks->full + sk * (k / kBrick);
    unsigned any = 0;
    for (int b = v0; b <= v1; ++b)
      for (int a = u0; a <= u1; ++a) any |= layer[b * sv + a * su];
    if (any != 0 && begin < 0) begin = k;
    if (any == 0 && begin >= 0) {
      use(begin, k);
      begin = -1;
    }
    k = next;
  }
  if (begin >= 0) use(begin, range.last + 1);
}

LICAG3D_CORE_END
