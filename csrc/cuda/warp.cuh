// SPDX-License-Identifier: Apache-2.0
// A warp of a device for the functions of core/triplane_warp.h and core/triplane_tensor.h: every thread runs the body for
// its own lane. tests/host_warp.h is the same on the host.
#pragma once

#include "core/platform.h"

LICAG3D_CORE_BEGIN

constexpr uint32_t kAllLanes = 0xffffffffu;

// Host and device, as the functions that use it; on the host it is never run.
struct DeviceWarp {
  int lane;

  template <class T, int kCount>
  struct Regs {
    T v[kCount];
    LICAG3D_HD T *at(int) { return v; }
    LICAG3D_HD const T *at(int) const { return v; }
  };

  template <class Body>
  LICAG3D_HD void each(Body &&body) {
    body(lane);
  }

  LICAG3D_HD void sync() {
#if defined(__CUDA_ARCH__)
    __syncwarp();
#endif
  }

  template <class Test>
  LICAG3D_HD uint32_t ballot(Test &&test) {
#if defined(__CUDA_ARCH__)
    return __ballot_sync(kAllLanes, test(lane));
#else
    return test(lane);
#endif
  }

  template <int kGroup, class T, int kCount>
  LICAG3D_HD void add_groups(Regs<T, kCount> &r) {
#if defined(__CUDA_ARCH__)
#pragma unroll
    for (int step = 1; step < kGroup; step *= 2)
#pragma unroll
      for (int i = 0; i < kCount; ++i) r.v[i] += __shfl_xor_sync(kAllLanes, r.v[i], step);
#endif
  }

  template <class T, int kCount>
  LICAG3D_HD void add_columns(Regs<T, kCount> &r) {
#if defined(__CUDA_ARCH__)
#pragma unroll
    for (int step = 4; step < 32; step *= 2)
#pragma unroll
      for (int i = 0; i < kCount; ++i) r.v[i] += __shfl_xor_sync(kAllLanes, r.v[i], step);
#endif
  }

  template <int kC, int kA, int kB>
  LICAG3D_HD void mma(Regs<float, kC> &c, int c0, const Regs<uint32_t, kA> &a, int a0, const Regs<uint32_t, kB> &b, int b0) {
#if defined(__CUDA_ARCH__)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c.v[c0]), "+f"(c.v[c0 + 1]), "+f"(c.v[c0 + 2]), "+f"(c.v[c0 + 3])
        : "r"(a.v[a0]), "r"(a.v[a0 + 1]), "r"(a.v[a0 + 2]), "r"(a.v[a0 + 3]), "r"(b.v[b0]), "r"(b.v[b0 + 1]));
#endif
  }

  template <int kTo, int kFrom>
  LICAG3D_HD void transpose(Regs<uint32_t, kTo> &to, int to0, const Regs<uint32_t, kFrom> &from, int from0) {
#if defined(__CUDA_ARCH__)
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(to.v[to0]) : "r"(from.v[from0]));
#endif
  }
};

LICAG3D_CORE_END
