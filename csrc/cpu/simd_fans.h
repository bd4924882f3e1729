// SPDX-License-Identifier: Apache-2.0
// The hot loop of the transpose for fans: 16 rays that meet a plane side by side along u, about evenly spaced. Instead of
// each ray adding to its four voxels, which meet those of its neighbour, each of 16 voxels in a row collects from the few
// rays next to it: ray numbers follow from the spacing, values come by a permutation of registers, and the weight of voxel
// w for a ray at u is max(0, 1 - |w - u|), the same as in the projection. Needs u adjacent in memory.
#pragma once

#include "cpu/bricks.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

LICAG3D_CORE_BEGIN

#if defined(__AVX512F__)

constexpr int kFanRows = 4;           // voxel rows that a fan may meet on one plane
constexpr int kMostNeighbours = 12;   // rays that one voxel may collect from
constexpr float kUnevenness = 0.25f;  // how far a ray may lie from even spacing, in spacings

inline float spacing_at(const PlanePacket &packet, float j) {
  return ((packet.u[kLanes - 1] + j * packet.du[kLanes - 1]) - (packet.u[0] + j * packet.du[0])) / (kLanes - 1);
}

inline bool is_fan(const PlanePacket &packet, const Band &v) {
  if (packet.count != kLanes || v.width > kFanRows - 2 - 2 * kBandMargin) return false;
  const float ends[2] = {static_cast<float>(packet.range.first - packet.centre),
                         static_cast<float>(packet.range.last - packet.centre)};
  // Fans know no rays that end inside the grid, and zero times infinity is not zero.
  if (!(lane_max(packet.low) + 0.5f <= ends[0] && lane_min(packet.high) - 0.5f >= ends[1])) return false;
  float bad = 0;
  for (int l = 0; l < kLanes; ++l) bad += packet.scale[l] - packet.scale[l];
  if (!(bad == 0.0f)) return false;
  // All that follows is linear in j or convex: good at both ends is good between them.
  if (spacing_at(packet, ends[0]) * spacing_at(packet, ends[1]) <= 0) return false;
  for (float j : ends) {
    const float p = spacing_at(packet, j), first = packet.u[0] + j * packet.du[0];
    if (2.0f / std::fabs(p) + 2 * kUnevenness + 1 > kMostNeighbours || std::fabs(p) > 64.0f) return false;
    alignas(64) float off[kLanes];
    for (int l = 0; l < kLanes; ++l) off[l] = std::fabs(packet.u[l] + j * packet.du[l] - (first + l * p));
    if (lane_max(off) > (kUnevenness - 0.05f) * std::fabs(p)) return false;
  }
  return true;
}

template <int kRows>
inline void add_fan_plane(const Plane &plane, float *data, __m512 u, __m512 v, __m512 scale, float first,
                          float spacing, int w0, int w1, int v0) {
  const __m512 one = _mm512_set1_ps(1.0f), nothing = _mm512_setzero_ps();
  __m512 share[kRows];
  for (int r = 0; r < kRows; ++r) {
    const __m512 away = _mm512_abs_ps(_mm512_sub_ps(v, _mm512_set1_ps(static_cast<float>(v0 + r))));
    share[r] = _mm512_mul_ps(scale, _mm512_max_ps(nothing, _mm512_sub_ps(one, away)));
  }
  const float inverse = 1.0f / spacing;
  const int candidates = static_cast<int>(2.0f * std::fabs(inverse) + 2 * kUnevenness) + 1;
  const __m512 lanes = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (int base = w0; base <= w1; base += kLanes) {
    const __m512 w = _mm512_add_ps(lanes, _mm512_set1_ps(static_cast<float>(base)));
    // The first ray with |w - u| < 1, counted from ray 0 along the spacing.
    const float edge = spacing > 0 ? -1.0f : 1.0f;
    __m512 from = _mm512_fmadd_ps(w, _mm512_set1_ps(inverse), _mm512_set1_ps((edge - first) * inverse - kUnevenness));
    from = _mm512_min_ps(_mm512_max_ps(from, _mm512_set1_ps(-16.0f)), _mm512_set1_ps(16.0f));
    __m512i ray = _mm512_cvt_roundps_epi32(from, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC);
    __m512 sum[kRows];
    for (int r = 0; r < kRows; ++r) sum[r] = nothing;
    for (int i = 0; i < candidates; ++i) {
      // Numbers outside 0...15 pick from the second table, which is zero.
      const __m512 at = _mm512_permutexvar_ps(ray, u);
      const __m512 weight = _mm512_max_ps(nothing, _mm512_sub_ps(one, _mm512_abs_ps(_mm512_sub_ps(w, at))));
      for (int r = 0; r < kRows; ++r)
        sum[r] = _mm512_fmadd_ps(weight, _mm512_permutex2var_ps(share[r], ray, nothing), sum[r]);
      ray = _mm512_add_epi32(ray, _mm512_set1_epi32(1));
    }
    const __mmask16 inside = w1 - base >= kLanes - 1 ? 0xffff : static_cast<__mmask16>((2u << (w1 - base)) - 1);
    for (int r = 0; r < kRows; ++r) {
      if (v0 + r < 0 || v0 + r >= plane.nv) continue;
      float *row = data + static_cast<int64_t>(v0 + r) * plane.sv + base;
      _mm512_mask_storeu_ps(row, inside, _mm512_add_ps(_mm512_maskz_loadu_ps(inside, row), sum[r]));
    }
  }
}

// Adds planes from...to of a fan; data is plane 0.
inline void add_fan(const Plane &plane, float *data, int64_t stride, const PlanePacket &packet, const Band &u_band,
                    const Band &v_band, int from, int to) {
  const __m512 u0 = _mm512_loadu_ps(packet.u), v0 = _mm512_loadu_ps(packet.v), scale = _mm512_loadu_ps(packet.scale);
  const __m512 du = _mm512_loadu_ps(packet.du), dv = _mm512_loadu_ps(packet.dv);
  for (int k = from; k <= to; ++k) {
    const float j = static_cast<float>(k - packet.centre);
    const __m512 u = _mm512_fmadd_ps(_mm512_set1_ps(j), du, u0), v = _mm512_fmadd_ps(_mm512_set1_ps(j), dv, v0);
    const int below = static_cast<int>(std::floor(u_band.low_at(j) - kBandMargin));
    const int above = static_cast<int>(std::floor(u_band.high_at(j) + kBandMargin)) + 1;
    const int w0 = below > 0 ? below : 0, w1 = above < plane.nu ? above : plane.nu - 1;
    const int r0 = static_cast<int>(std::floor(v_band.low_at(j) - kBandMargin));
    const int r1 = static_cast<int>(std::floor(v_band.high_at(j) + kBandMargin)) + 1;
    if (r1 < 0 || r0 >= plane.nv) continue;
    const float first = packet.u[0] + j * packet.du[0], spacing = spacing_at(packet, j);
    float *here = data + k * stride;
    if (r1 - r0 == 1)
      add_fan_plane<2>(plane, here, u, v, scale, first, spacing, w0, w1, r0);
    else if (r1 - r0 == 2)
      add_fan_plane<3>(plane, here, u, v, scale, first, spacing, w0, w1, r0);
    else
      add_fan_plane<4>(plane, here, u, v, scale, first, spacing, w0, w1, r0);
  }
}

#else

inline bool is_fan(const PlanePacket &, const Band &) { return false; }

inline void add_fan(const Plane &, float *, int64_t, const PlanePacket &, const Band &, const Band &, int, int) {}

#endif

LICAG3D_CORE_END
