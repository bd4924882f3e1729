// SPDX-License-Identifier: Apache-2.0
// The hot loop for tiles of pixels: all voxels that the 16 rays of a tile need on one plane lie in a window of 8 x 4 or
// 8 x 8 voxels. Its rows are loaded whole, and each ray picks its four neighbours by a permutation of registers, where a
// gather would need 64 loads. Needs u adjacent in memory.
#pragma once

#include "cpu/bricks.h"
#include "cpu/plane_sums.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

LICAG3D_CORE_BEGIN

constexpr int kWindowCols = 8;
constexpr int kAhead = 8;  // planes from the fetch of a window to its use

// A window of n voxels, placed at the floor of the band's lower line less a margin, holds both neighbours of every lane
// up to this width of the band: n - 2 voxels, less twice the margin.
inline bool fits(const Band &band, int n) { return band.width < static_cast<float>(n - 2) - 2 * kBandMargin; }

#if defined(__AVX512F__)

// The window rows a tile needs, 4 or 8; 0 where no window holds it.
inline int window_rows(const licag3d_grid &grid, const int axis[3], const Band &u, const Band &v) {
  if (grid.size[axis[0]] < kWindowCols || !fits(u, kWindowCols)) return 0;
  if (grid.size[axis[1]] >= 4 && fits(v, 4)) return 4;
  return grid.size[axis[1]] >= 8 && fits(v, 8) ? 8 : 0;
}

// Two rows of eight voxels.
inline __m512 load_rows(const float *row0, const float *row1) {
  return _mm512_castpd_ps(_mm512_insertf64x4(_mm512_castps_pd(_mm512_castps256_ps512(_mm256_loadu_ps(row0))),
                                             _mm256_castps_pd(_mm256_loadu_ps(row1)), 1));
}

inline __m512 load_rows(const Half *row0, const Half *row1) {
  const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i *>(row0));
  const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i *>(row1));
  return _mm512_cvtph_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1));
}

template <int kRows, class Voxel>
struct Window {
  __m512 table[kRows / 2];

  Window(const Voxel *at, int64_t sv) {
    for (int i = 0; i < kRows / 2; ++i) table[i] = load_rows(at + 2 * i * sv, at + (2 * i + 1) * sv);
  }

  // Voxels by their number in the window, 8 row + column.
  __m512 pick(__m512i index) const {
    const __m512 low = _mm512_permutex2var_ps(table[0], index, table[1]);
    if constexpr (kRows == 4) {
      return low;
    } else {
      const __m512 high = _mm512_permutex2var_ps(table[2], index, table[3]);
      return _mm512_mask_blend_ps(_mm512_test_epi32_mask(index, _mm512_set1_epi32(32)), low, high);
    }
  }
};

constexpr int kPlanesAtOnce = 64;

// Where the window of each plane lies: plane j counted from the centre, first column and row, voxel offset.
struct WindowList {
  int count = 0;
  alignas(64) int j[kPlanesAtOnce + kLanes], u[kPlanesAtOnce + kLanes], v[kPlanesAtOnce + kLanes],
      at[kPlanesAtOnce + kLanes];
};

template <bool kGradient, int kRows, class Voxel>
inline void add_windows(const licag3d_grid &grid, const Field<Voxel> &field, const PlanePacket &packet,
                        const WindowList &list, LaneSums &sums) {
  const int64_t sv = field.stride[packet.axis[1]];
  const __m512 u0 = _mm512_loadu_ps(packet.u), v0 = _mm512_loadu_ps(packet.v);
  const __m512 du = _mm512_loadu_ps(packet.du), dv = _mm512_loadu_ps(packet.dv);
  const __m512i nu = _mm512_set1_epi32(grid.size[packet.axis[0]]), nv = _mm512_set1_epi32(grid.size[packet.axis[1]]);
  // On other planes some lanes have neighbours outside the grid.
  const int inner_first = packet.range.inner_first - packet.centre, inner_last = packet.range.inner_last - packet.centre;
  const __m512i one = _mm512_set1_epi32(1), eight = _mm512_set1_epi32(8), nine = _mm512_set1_epi32(9);
  __m512 value = _mm512_load_ps(sums.value), gu, gv, hu, hv;
  if constexpr (kGradient) {
    gu = _mm512_load_ps(sums.gu), gv = _mm512_load_ps(sums.gv);
    hu = _mm512_load_ps(sums.hu), hv = _mm512_load_ps(sums.hv);
  }
  for (int i = 0; i < list.count; ++i) {
    // Planes lie a power of two apart as often as not: rows then share a few places of the first cache and are gone
    // before the next tile wants them.
    const Voxel *soon = field.data + list.at[i + kAhead < list.count ? i + kAhead : i];
    for (int row = 0; row < kRows; ++row) _mm_prefetch(reinterpret_cast<const char *>(soon + row * sv), _MM_HINT_T0);
    const Window<kRows, Voxel> window(field.data + list.at[i], sv);
    const __m512 j = _mm512_cvtepi32_ps(_mm512_set1_epi32(list.j[i]));
    const __m512i u_base = _mm512_set1_epi32(list.u[i]), v_base = _mm512_set1_epi32(list.v[i]);
    const __m512 u = _mm512_sub_ps(_mm512_fmadd_ps(j, du, u0), _mm512_cvtepi32_ps(u_base));
    const __m512 v = _mm512_sub_ps(_mm512_fmadd_ps(j, dv, v0), _mm512_cvtepi32_ps(v_base));
    const __m512i iu = _mm512_cvt_roundps_epi32(u, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    const __m512i iv = _mm512_cvt_roundps_epi32(v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    const __m512 fu = _mm512_sub_ps(u, _mm512_cvtepi32_ps(iu)), fv = _mm512_sub_ps(v, _mm512_cvtepi32_ps(iv));
    const __m512i index = _mm512_add_epi32(_mm512_slli_epi32(iv, 3), iu);
    __m512 a00 = window.pick(index), a10 = window.pick(_mm512_add_epi32(index, one));
    __m512 a01 = window.pick(_mm512_add_epi32(index, eight)), a11 = window.pick(_mm512_add_epi32(index, nine));
    if (list.j[i] < inner_first || list.j[i] > inner_last) {
      const __m512i au = _mm512_add_epi32(iu, u_base), av = _mm512_add_epi32(iv, v_base);
      const __mmask16 has_u0 = _mm512_cmplt_epu32_mask(au, nu), has_v0 = _mm512_cmplt_epu32_mask(av, nv);
      const __mmask16 has_u1 = _mm512_cmplt_epu32_mask(_mm512_add_epi32(au, one), nu);
      const __mmask16 has_v1 = _mm512_cmplt_epu32_mask(_mm512_add_epi32(av, one), nv);
      a00 = _mm512_maskz_mov_ps(has_u0 & has_v0, a00), a10 = _mm512_maskz_mov_ps(has_u1 & has_v0, a10);
      a01 = _mm512_maskz_mov_ps(has_u0 & has_v1, a01), a11 = _mm512_maskz_mov_ps(has_u1 & has_v1, a11);
    }
    const __m512 d0 = _mm512_sub_ps(a10, a00), d1 = _mm512_sub_ps(a11, a01);
    const __m512 r0 = _mm512_fmadd_ps(fu, d0, a00), r1 = _mm512_fmadd_ps(fu, d1, a01);
    const __m512 by_v = _mm512_sub_ps(r1, r0);
    value = _mm512_add_ps(value, _mm512_fmadd_ps(fv, by_v, r0));
    if constexpr (kGradient) {
      const __m512 by_u = _mm512_fmadd_ps(fv, _mm512_sub_ps(d1, d0), d0);
      gu = _mm512_add_ps(gu, by_u), gv = _mm512_add_ps(gv, by_v);
      hu = _mm512_fmadd_ps(j, by_u, hu), hv = _mm512_fmadd_ps(j, by_v, hv);
    }
  }
  _mm512_store_ps(sums.value, value);
  if constexpr (kGradient) {
    _mm512_store_ps(sums.gu, gu), _mm512_store_ps(sums.gv, gv);
    _mm512_store_ps(sums.hu, hu), _mm512_store_ps(sums.hv, hv);
  }
}

// Lists the windows of planes [begin, end) and calls flush() when the list is full.
template <class Voxel, class Flush>
inline void list_windows(const licag3d_grid &grid, const Field<Voxel> &field, const PlanePacket &packet, const Band &u,
                         const Band &v, int rows, int begin, int end, WindowList &list, Flush &&flush) {
  const __m512 top_u = _mm512_set1_ps(static_cast<float>(grid.size[packet.axis[0]] - kWindowCols));
  const __m512 top_v = _mm512_set1_ps(static_cast<float>(grid.size[packet.axis[1]] - rows));
  const __m512 nothing = _mm512_setzero_ps(), margin = _mm512_set1_ps(kBandMargin);
  const __m512i sv = _mm512_set1_epi32(static_cast<int>(field.stride[packet.axis[1]]));
  const __m512i sk = _mm512_set1_epi32(static_cast<int>(field.stride[packet.axis[2]]));
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const auto place = [&](const Band &band, __m512 j, __m512 top) {
    const __m512 low = _mm512_fmadd_ps(j, _mm512_set1_ps(band.low_step), _mm512_sub_ps(_mm512_set1_ps(band.low), margin));
    return _mm512_cvttps_epi32(_mm512_min_ps(_mm512_max_ps(low, nothing), top));
  };
  while (begin < end) {
    const int here = end - begin < kPlanesAtOnce - list.count ? end - begin : kPlanesAtOnce - list.count;
    for (int i = 0; i < here; i += kLanes) {
      const __m512i k = _mm512_add_epi32(_mm512_set1_epi32(begin + i), lanes);
      const __m512i from_centre = _mm512_sub_epi32(k, _mm512_set1_epi32(packet.centre));
      const __m512 j = _mm512_cvtepi32_ps(from_centre);
      const __m512i iu = place(u, j, top_u), iv = place(v, j, top_v);
      // What is stored beyond `here` is written over or never read.
      _mm512_storeu_si512(list.j + list.count + i, from_centre);
      _mm512_storeu_si512(list.u + list.count + i, iu);
      _mm512_storeu_si512(list.v + list.count + i, iv);
      _mm512_storeu_si512(list.at + list.count + i,
                          _mm512_add_epi32(_mm512_add_epi32(_mm512_mullo_epi32(k, sk), _mm512_mullo_epi32(iv, sv)), iu));
    }
    list.count += here;
    begin += here;
    if (list.count == kPlanesAtOnce) {
      flush();
      list.count = 0;
    }
  }
}

// Adds all planes of a tile that can hold anything.
template <bool kGradient, int kRows, class Voxel>
inline void sum_windows(const licag3d_grid &grid, const Field<Voxel> &field, const PlanePacket &packet, const Band &u,
                        const Band &v, const Bricks *bricks, LaneSums &sums) {
  WindowList list;
  const auto flush = [&] { add_windows<kGradient, kRows>(grid, field, packet, list, sums); };
  for_runs(grid, packet, u, v, bricks, [&](int begin, int end) {
    list_windows(grid, field, packet, u, v, kRows, begin, end, list, flush);
  });
  if (list.count > 0) flush();
}

#else

inline int window_rows(const licag3d_grid &, const int[3], const Band &, const Band &) { return 0; }

template <bool kGradient, int kRows, class Voxel>
inline void sum_windows(const licag3d_grid &, const Field<Voxel> &, const PlanePacket &, const Band &, const Band &,
                        const Bricks *, LaneSums &) {}

#endif

LICAG3D_CORE_END
