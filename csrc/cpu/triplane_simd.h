// SPDX-License-Identifier: Apache-2.0
// Vectors of floats as wide as the instruction set this copy is compiled for, by the vector extension of g++ and
// clang++, with the few functions the decoder needs.
#pragma once

#include <cstring>

#include "core/platform.h"
#include "core/softplus.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

LICAG3D_CORE_BEGIN

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

typedef float Vf __attribute__((vector_size(4 * kWidth)));
typedef int32_t Vi __attribute__((vector_size(4 * kWidth)));
typedef float VfLoose __attribute__((vector_size(4 * kWidth), aligned(4), may_alias));

LICAG3D_HD Vf load(const float *p) { return *reinterpret_cast<const VfLoose *>(p); }
LICAG3D_HD void store(float *p, Vf v) { *reinterpret_cast<VfLoose *>(p) = v; }
LICAG3D_HD Vf splat(float s) { return s - Vf{}; }
LICAG3D_HD Vi splat_int(int32_t s) { return s - Vi{}; }
LICAG3D_HD Vf as_float(Vi v) { return (Vf)v; }
LICAG3D_HD Vi as_int(Vf v) { return (Vi)v; }
LICAG3D_HD Vf lesser(Vf a, Vf b) { return a < b ? a : b; }
LICAG3D_HD Vf greater(Vf a, Vf b) { return a > b ? a : b; }
LICAG3D_HD Vf absolute(Vf a) { return as_float(as_int(a) & 0x7fffffff); }

LICAG3D_HD Vf reciprocal(Vf a) {
  // A rough hardware estimate and one Newton step: about 1e-7 relative, several times cheaper than a division.
#if defined(__AVX512F__)
  const Vf r = (Vf)_mm512_maskz_rcp14_ps(0xffff, (__m512)a);
  return r * (2.0f - a * r);
#elif defined(__AVX2__)
  const Vf r = (Vf)_mm256_rcp_ps((__m256)a);
  return r * (2.0f - a * r);
#else
  return 1.0f / a;
#endif
}

// exp(x) for x <= 0, relative error 2e-7; below -87 it stays at exp(-87).
LICAG3D_HD Vf exp_negative(Vf x) {
  x = greater(x, splat(-87.0f));
  const float kShift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number in the low bits
  const Vf shifted = x * 1.44269504f + kShift;
  const Vf n = shifted - kShift;
  const Vf r = (x - n * 0.693145751953125f) - n * 1.42860677e-6f;
  // exp(r) = 1 + r + r^2 q(r), minimax on +-ln(2)/2
  Vf q = splat(0.008312520571f);
  q = q * r + 0.041890155524f;
  q = q * r + 0.166671141982f;
  q = q * r + 0.499992311001f;
  const Vf p = q * (r * r) + (r + 1.0f);
  return as_float(as_int(p) + ((as_int(shifted) - as_int(splat(kShift))) << 23));
}

// softplus(x) = max(x, 0) + log(1 + exp(-|x|)); the order in max lets NaN through.
LICAG3D_HD Vf softplus(Vf x) { return greater(Vf{}, x) + log1p_unit(exp_negative(-absolute(x))); }

// The same with its derivative, the logistic function.
LICAG3D_HD Vf softplus_slope(Vf x, Vf &slope) {
  const Vf e = exp_negative(-absolute(x));
  const Vf r = reciprocal(1.0f + e);
  slope = x < 0.0f ? e * r : r;
  return greater(Vf{}, x) + log1p_unit(e);
}

// exp(x) for x <= 0 in base two: shorter than exp_negative, its relative error grows with |x| (1e-7 + 6e-8 |x|).
LICAG3D_HD Vf exp_fast(Vf x) {
  const float kShift = 12582912.0f;
#if !defined(__AVX512F__)
  x = greater(x, splat(-87.0f));
#endif
  const Vf t = x * 1.44269504f, shifted = t + kShift;
  const Vf n = shifted - kShift, r = t - n;
  // 2^r, minimax on +-1/2
  Vf p = splat(0.00132647f);
  p = p * r + 0.00967151f;
  p = p * r + 0.05550734f;
  p = p * r + 0.24022242f;
  p = p * r + 0.69314698f;
  p = p * r + 1.0f;
#if defined(__AVX512F__)
  return (Vf)_mm512_maskz_scalef_ps(0xffff, (__m512)p, (__m512)n);
#else
  return as_float(as_int(p) + ((as_int(shifted) - as_int(splat(kShift))) << 23));
#endif
}

// log(1 + e) for e in 0..1, absolute error 3e-8.
LICAG3D_HD Vf log1p_fast(Vf e) {
  Vf p = splat(-0.00645262f);
  p = p * e + 0.03608453f;
  p = p * e + -0.09532251f;
  p = p * e + 0.16764787f;
  p = p * e + -0.24073076f;
  p = p * e + 0.33179825f;
  p = p * e + -0.49987404f;
  p = p * e + 0.99999642f;
  return p * e;
}

// Softplus of a hidden unit, which is summed with others: an absolute error of 1e-7 is enough there.
LICAG3D_HD Vf softplus_fast(Vf x) { return greater(Vf{}, x) + log1p_fast(exp_fast(-absolute(x))); }

LICAG3D_HD Vf softplus_slope_fast(Vf x, Vf &slope) {
  const Vf e = exp_fast(-absolute(x));
  const Vf r = reciprocal(1.0f + e);
  slope = x < 0.0f ? e * r : r;
  return greater(Vf{}, x) + log1p_fast(e);
}

// One step of transpose: rows i and i + kHalf exchange the lanes that lie on the wrong side.
template <int kHalf>
LICAG3D_HD void exchange(Vf &a, Vf &b) {
  Vi upper, lower;
  for (int lane = 0; lane < kWidth; ++lane) {
    upper[lane] = (lane & kHalf) ? kWidth + (lane ^ kHalf) : lane;
    lower[lane] = (lane & kHalf) ? kWidth + lane : lane ^ kHalf;
  }
  const Vf first = __builtin_shuffle(a, b, upper), second = __builtin_shuffle(a, b, lower);
  a = first;
  b = second;
}

template <int kHalf>
LICAG3D_HD void exchange_all(Vf *v) {
  for (int i = 0; i < kWidth; ++i)
    if (!(i & kHalf)) exchange<kHalf>(v[i], v[(i + kHalf) % kWidth]);
}

// kWidth x kWidth floats from rows `from_row` apart to rows `to_row` apart, transposed.
LICAG3D_HD void transpose(const float *from, int64_t from_row, float *to, int64_t to_row) {
  Vf v[kWidth];
  for (int i = 0; i < kWidth; ++i) v[i] = load(from + i * from_row);
  if (kWidth >= 16) exchange_all<8 % kWidth>(v);
  if (kWidth >= 8) exchange_all<4 % kWidth>(v);
  exchange_all<2>(v);
  exchange_all<1>(v);
  for (int i = 0; i < kWidth; ++i) store(to + i * to_row, v[i]);
}

// One step of sum_rows: lanes with bit kHalf clear get a's pair sums, the others b's.
template <int kHalf>
LICAG3D_HD Vf fold(Vf a, Vf b) {
  Vi same, other;
  for (int lane = 0; lane < kWidth; ++lane) {
    const int from = (lane & kHalf) ? kWidth : 0;  // __builtin_shuffle counts b's lanes after a's
    same[lane] = from + lane;
    other[lane] = from + (lane ^ kHalf);
  }
  return __builtin_shuffle(a, b, same) + __builtin_shuffle(a, b, other);
}

// Lane i is the sum of the kWidth floats at rows + i * kWidth.
LICAG3D_HD Vf sum_rows(const float *rows) {
  Vf v[kWidth];
  for (int i = 0; i < kWidth; ++i) v[i] = load(rows + i * kWidth);
  if (kWidth >= 16)
    for (int i = 0; i < 8; ++i) v[i] = fold<8 % kWidth>(v[i], v[(i + 8) % kWidth]);
  if (kWidth >= 8)
    for (int i = 0; i < 4; ++i) v[i] = fold<4 % kWidth>(v[i], v[(i + 4) % kWidth]);
  for (int i = 0; i < 2; ++i) v[i] = fold<2>(v[i], v[i + 2]);
  return fold<1>(v[0], v[1]);
}

LICAG3D_CORE_END
