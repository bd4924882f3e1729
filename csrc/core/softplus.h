// SPDX-License-Identifier: Apache-2.0
// The decoder's nonlinearity, for one number or a vector of them: softplus(x) = max(x, 0) + log(1 + exp(-|x|)).
#pragma once

#include "core/platform.h"

LICAG3D_CORE_BEGIN

// log(1 + e) for e in 0..1, relative error 2e-7 in float: e times a minimax polynomial, no division.
template <class Number>
LICAG3D_HD Number log1p_unit(Number e) {
  Number p = e * 0.005232691299f + -0.029505226761f;
  p = p * e + 0.078225933015f;
  p = p * e + -0.136632442474f;
  p = p * e + 0.191060066223f;
  p = p * e + -0.248429819942f;
  p = p * e + 0.333190977573f;
  p = p * e + -0.499994933605f;
  p = p * e + 0.999999940395f;
  return p * e;
}

LICAG3D_HD float softplus_one(float x) { return (x > 0.0f ? x : 0.0f) + log1p_unit(expf(-fabsf(x))); }

// The same with its derivative, the logistic function.
LICAG3D_HD float softplus_slope_one(float x, float &slope) {
  const float e = expf(-fabsf(x));
  const float r = 1.0f / (1.0f + e);
  slope = x < 0.0f ? e * r : r;
  return (x > 0.0f ? x : 0.0f) + log1p_unit(e);
}

LICAG3D_CORE_END
