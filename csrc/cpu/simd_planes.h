// SPDX-License-Identifier: Apache-2.0
// The hot loop of the planes rule: bilinear samples whose neighbours along u are adjacent in memory, so that one 64-bit
// load fetches both. Adds the inner planes [begin, end) of a packet to value[]; `plane` is plane 0 of the main axis.
#pragma once

#include "cpu/packets.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

LICAG3D_CORE_BEGIN

#if defined(__AVX512F__)

inline void sum_inner_pairs(const Plane &plane, int64_t stride, const PlanePacket &packet, int begin, int end,
                            float *value) {
  const __m512 u0 = _mm512_loadu_ps(packet.u), v0 = _mm512_loadu_ps(packet.v);
  const __m512 du = _mm512_loadu_ps(packet.du), dv = _mm512_loadu_ps(packet.dv);
  const __m512i sv = _mm512_set1_epi32(plane.sv);
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  __m512 sum = _mm512_loadu_ps(value);
  for (int k = begin; k < end; ++k) {
    const float *row0 = plane.data + k * stride, *row1 = row0 + plane.sv;
    const __m512 j = _mm512_set1_ps(static_cast<float>(k - packet.centre));
    const __m512 u = _mm512_fmadd_ps(j, du, u0), v = _mm512_fmadd_ps(j, dv, v0);
    const __m512i iu = _mm512_cvttps_epi32(u), iv = _mm512_cvttps_epi32(v);
    const __m512 fu = _mm512_sub_ps(u, _mm512_cvtepi32_ps(iu)), fv = _mm512_sub_ps(v, _mm512_cvtepi32_ps(iv));
    const __m512i at = _mm512_add_epi32(_mm512_mullo_epi32(iv, sv), iu);
    const __m256i at_low = _mm512_castsi512_si256(at), at_high = _mm512_extracti64x4_epi64(at, 1);
    const __m512 low0 = _mm512_castpd_ps(_mm512_i32gather_pd(at_low, row0, 4));
    const __m512 high0 = _mm512_castpd_ps(_mm512_i32gather_pd(at_high, row0, 4));
    const __m512 low1 = _mm512_castpd_ps(_mm512_i32gather_pd(at_low, row1, 4));
    const __m512 high1 = _mm512_castpd_ps(_mm512_i32gather_pd(at_high, row1, 4));
    const __m512 a00 = _mm512_permutex2var_ps(low0, even, high0), a10 = _mm512_permutex2var_ps(low0, odd, high0);
    const __m512 a01 = _mm512_permutex2var_ps(low1, even, high1), a11 = _mm512_permutex2var_ps(low1, odd, high1);
    const __m512 r0 = _mm512_fmadd_ps(fu, _mm512_sub_ps(a10, a00), a00);
    const __m512 r1 = _mm512_fmadd_ps(fu, _mm512_sub_ps(a11, a01), a01);
    sum = _mm512_add_ps(sum, _mm512_fmadd_ps(fv, _mm512_sub_ps(r1, r0), r0));
  }
  _mm512_storeu_ps(value, sum);
}

#elif defined(__AVX2__)

inline void sum_inner_pairs(const Plane &plane, int64_t stride, const PlanePacket &packet, int begin, int end,
                            float *value) {
  const __m256i sv = _mm256_set1_epi32(plane.sv);
  for (int half = 0; half < kLanes; half += 8) {
    const __m256 u0 = _mm256_loadu_ps(packet.u + half), v0 = _mm256_loadu_ps(packet.v + half);
    const __m256 du = _mm256_loadu_ps(packet.du + half), dv = _mm256_loadu_ps(packet.dv + half);
    __m256 sum = _mm256_loadu_ps(value + half);
    for (int k = begin; k < end; ++k) {
      const float *row0 = plane.data + k * stride, *row1 = row0 + plane.sv;
      const __m256 j = _mm256_set1_ps(static_cast<float>(k - packet.centre));
      const __m256 u = _mm256_fmadd_ps(j, du, u0), v = _mm256_fmadd_ps(j, dv, v0);
      const __m256i iu = _mm256_cvttps_epi32(u), iv = _mm256_cvttps_epi32(v);
      const __m256 fu = _mm256_sub_ps(u, _mm256_cvtepi32_ps(iu)), fv = _mm256_sub_ps(v, _mm256_cvtepi32_ps(iv));
      const __m256i at = _mm256_add_epi32(_mm256_mullo_epi32(iv, sv), iu);
      const __m128i at_low = _mm256_castsi256_si128(at), at_high = _mm256_extracti128_si256(at, 1);
      const double *wide0 = reinterpret_cast<const double *>(row0), *wide1 = reinterpret_cast<const double *>(row1);
      const __m256 low0 = _mm256_castpd_ps(_mm256_i32gather_pd(wide0, at_low, 4));
      const __m256 high0 = _mm256_castpd_ps(_mm256_i32gather_pd(wide0, at_high, 4));
      const __m256 low1 = _mm256_castpd_ps(_mm256_i32gather_pd(wide1, at_low, 4));
      const __m256 high1 = _mm256_castpd_ps(_mm256_i32gather_pd(wide1, at_high, 4));
      // shuffle works within 128-bit halves and leaves lanes in the order 0 1 4 5 2 3 6 7; the permute restores it.
      const auto order = [](__m256 x) {
        return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(x), _MM_SHUFFLE(3, 1, 2, 0)));
      };
      const __m256 a00 = order(_mm256_shuffle_ps(low0, high0, _MM_SHUFFLE(2, 0, 2, 0)));
      const __m256 a10 = order(_mm256_shuffle_ps(low0, high0, _MM_SHUFFLE(3, 1, 3, 1)));
      const __m256 a01 = order(_mm256_shuffle_ps(low1, high1, _MM_SHUFFLE(2, 0, 2, 0)));
      const __m256 a11 = order(_mm256_shuffle_ps(low1, high1, _MM_SHUFFLE(3, 1, 3, 1)));
      const __m256 r0 = _mm256_fmadd_ps(fu, _mm256_sub_ps(a10, a00), a00);
      const __m256 r1 = _mm256_fmadd_ps(fu, _mm256_sub_ps(a11, a01), a01);
      sum = _mm256_add_ps(sum, _mm256_fmadd_ps(fv, _mm256_sub_ps(r1, r0), r0));
    }
    _mm256_storeu_ps(value + half, sum);
  }
}

#else

inline void sum_inner_pairs(const Plane &plane, int64_t stride, const PlanePacket &packet, int begin, int end,
                            float *value) {
  for (int k = begin; k < end; ++k) {
    const Plane here = {plane.data + k * stride, 1, plane.sv, plane.nu, plane.nv};
    for (int l = 0; l < kLanes; ++l) {
      PlaneSums s = {value[l], 0, 0, 0, 0, 0, 0};
      add_plane_inner<false>(here, packet.lane(l), static_cast<float>(k - packet.centre), s);
      value[l] = s.value;
    }
  }
}

#endif

LICAG3D_CORE_END
