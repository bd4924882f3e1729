// SPDX-License-Identifier: Apache-2.0
// Small matrix products for packets of samples, held in registers: C = A B with A read element by element (any strides)
// and B, C in rows of vectors. Sizes are multiples of 16, padded by the caller.
#pragma once

#include "cpu/triplane_simd.h"

LICAG3D_CORE_BEGIN

enum class Start { zero, row, accumulate };

// kRows x kVectors accumulators; C[m][n] (+)= sum_k A[m * a_row + k * a_step] * B[k][n]. Start::row begins with
// bias[n].
template <int kRows, int kVectors, Start kStart>
LICAG3D_HD void product_block(int depth, const float *a, int a_row, int a_step, const float *b, int b_row, float *c,
                              int c_row, const float *bias) {
  Vf sum[kRows][kVectors];
  for (int m = 0; m < kRows; ++m)
    for (int n = 0; n < kVectors; ++n) {
      if (kStart == Start::zero) sum[m][n] = Vf{};
      if (kStart == Start::row) sum[m][n] = load(bias + n * kWidth);
      if (kStart == Start::accumulate) sum[m][n] = load(c + m * c_row + n * kWidth);
    }
  for (int k = 0; k < depth; ++k) {
    Vf row[kVectors];
    for (int n = 0; n < kVectors; ++n) row[n] = load(b + k * b_row + n * kWidth);
    for (int m = 0; m < kRows; ++m) {
      const Vf factor = splat(a[m * a_row + k * a_step]);
      for (int n = 0; n < kVectors; ++n) sum[m][n] += factor * row[n];
    }
  }
  for (int m = 0; m < kRows; ++m)
    for (int n = 0; n < kVectors; ++n) store(c + m * c_row + n * kWidth, sum[m][n]);
}

// rows must be a multiple of 16, columns of 16.
template <Start kStart>
LICAG3D_HD void product(int rows, int columns, int depth, const float *a, int a_row, int a_step, const float *b,
                        int b_row, float *c, int c_row, const float *bias = nullptr) {
  int n = 0;
  // Twice the registers of AVX-512 carry twice the block; the shapes keep both multiply units busy.
  constexpr int kWide = kWidth == 16 ? 4 : 2;
  for (; n + kWide * kWidth <= columns; n += kWide * kWidth)
    for (int m = 0; m < rows; m += 4)
      product_block<4, kWide, kStart>(depth, a + m * a_row, a_row, a_step, b + n, b_row, c + m * c_row + n, c_row,
                                      bias + n);
  if (kWidth == 16)
    for (; n + 2 * kWidth <= columns; n += 2 * kWidth)
      for (int m = 0; m < rows; m += 8)
        product_block<8, 2, kStart>(depth, a + m * a_row, a_row, a_step, b + n, b_row, c + m * c_row + n, c_row,
                                    bias + n);
  for (; n < columns; n += kWidth)
    for (int m = 0; m < rows; m += 8)
      product_block<8, 1, kStart>(depth, a + m * a_row, a_row, a_step, b + n, b_row, c + m * c_row + n, c_row,
                                  bias + n);
}

LICAG3D_CORE_END
