// SPDX-License-Identifier: Apache-2.0
// IEEE binary16 as a storage type; arithmetic is in float.
#pragma once

#include <cstring>

#include "core/platform.h"

LICAG3D_CORE_BEGIN

struct Half {
  uint16_t bits;
};

LICAG3D_HD float to_float(float x) { return x; }

LICAG3D_HD float to_float(Half x) {
#if defined(__CUDA_ARCH__)
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x.bits));
  return value;
#else
  const uint32_t magnitude = x.bits & 0x7fffu;
  uint32_t word = magnitude << 13;
  float out;
  std::memcpy(&out, &word, 4);
  out *= 5.192296858534828e33f;  // 2^112 moves the exponent and mends subnormals
  std::memcpy(&word, &out, 4);
  if (magnitude >= 0x7c00u) word = (magnitude << 13) | 0x7f800000u;  // infinity and NaN
  word |= static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  std::memcpy(&out, &word, 4);
  return out;
#endif
}

LICAG3D_CORE_END
