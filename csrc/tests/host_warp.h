// SPDX-License-Identifier: Apache-2.0
// The 32 lanes of a CUDA warp on the host, one after another, with the exchanges that cuda/warp.cuh does by instructions.
// Matrix fragments are laid out as PTX ISA 9.7.14 (mma.m16n8k16, .bf16) and 9.7.14.6 (movmatrix) say.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

namespace check {

struct HostWarp {
  template <class T, int kCount>
  struct Regs {
    T v[32][kCount];
    T *at(int lane) { return v[lane]; }
    const T *at(int lane) const { return v[lane]; }
  };

  template <class Body>
  void each(Body &&body) {
    for (int lane = 0; lane < 32; ++lane) body(lane);
  }
  void sync() {}

  template <class Test>
  uint32_t ballot(Test &&test) {
    uint32_t out = 0;
    for (int lane = 0; lane < 32; ++lane) out |= static_cast<uint32_t>(test(lane) ? 1 : 0) << lane;
    return out;
  }

  // Sums over neighbours in groups of kGroup lanes; each lane of the group gets them.
  template <int kGroup, class T, int kCount>
  void add_groups(Regs<T, kCount> &r) {
    for (int step = 1; step < kGroup; step *= 2) add_across(r, step);
  }
  // Sums over the lanes with the same lane % 4.
  template <class T, int kCount>
  void add_columns(Regs<T, kCount> &r) {
    for (int step = 4; step < 32; step *= 2) add_across(r, step);
  }

  // c[c0 ..] += a[a0 ..] b[b0 ..]
  template <int kC, int kA, int kB>
  void mma(Regs<float, kC> &c, int c0, const Regs<uint32_t, kA> &a, int a0, const Regs<uint32_t, kB> &b, int b0) {
    float left[16][16], right[16][8];
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, t = lane % 4;
      for (int i = 0; i < 2; ++i) {
        for (int q = 0; q < 4; ++q) left[g + q % 2 * 8][2 * t + q / 2 * 8 + i] = half_of(a.v[lane][a0 + q], i);
        for (int q = 0; q < 2; ++q) right[2 * t + q * 8 + i][g] = half_of(b.v[lane][b0 + q], i);
      }
    }
    for (int lane = 0; lane < 32; ++lane)
      for (int q = 0; q < 4; ++q) {
        const int row = lane / 4 + q / 2 * 8, column = lane % 4 * 2 + q % 2;
        float sum = c.v[lane][c0 + q];
        for (int k = 0; k < 16; ++k) sum += left[row][k] * right[k][column];
        c.v[lane][c0 + q] = sum;
      }
  }

  // The 8 x 8 block of 16-bit numbers that word from[from0] of all lanes makes up, transposed.
  template <int kTo, int kFrom>
  void transpose(Regs<uint32_t, kTo> &to, int to0, const Regs<uint32_t, kFrom> &from, int from0) {
    uint16_t block[8][8];
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < 2; ++i) block[lane / 4][lane % 4 * 2 + i] = static_cast<uint16_t>(from.v[lane][from0] >> 16 * i);
    for (int lane = 0; lane < 32; ++lane)
      to.v[lane][to0] = block[lane % 4 * 2][lane / 4] | static_cast<uint32_t>(block[lane % 4 * 2 + 1][lane / 4]) << 16;
  }

 private:
  static float half_of(uint32_t word, int i) {
    const uint32_t bits = (word >> 16 * i & 0xffffu) << 16;
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
  }
  template <class T, int kCount>
  void add_across(Regs<T, kCount> &r, int step) {
    const Regs<T, kCount> before = r;
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < kCount; ++i) r.v[lane][i] = before.v[lane][i] + before.v[lane ^ step][i];
  }
};

}  // namespace check
