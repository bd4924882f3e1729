// SPDX-License-Identifier: Apache-2.0
// The decoder's matrix products in bfloat16 on the tile registers of a processor that has them (AMX, Intel Architecture
// Instruction Set Extensions, chapter "Intel AMX"): inputs are rounded to bfloat16, sums are float32. One tile product
// is 16 x 16 sums of 32 terms. Compiled into the AVX-512 copy only and called where tiles_ready() (cpu/isa.h) says so.
#pragma once

#include "cpu/triplane_packet.h"

#if defined(__AVX512F__) && (defined(__x86_64__) || defined(_M_X64)) && !defined(LICAG3D_NO_AMX)
#define LICAG3D_TILES 1
#define LICAG3D_TILE_CODE __attribute__((target("amx-tile,amx-bf16,avx512bf16"), noinline))
#endif

LICAG3D_CORE_BEGIN

#if defined(LICAG3D_TILES)

// All eight tiles 16 rows of 64 bytes. Held by a thread for the length of a block.
class Tiles {
 public:
  LICAG3D_TILE_CODE explicit Tiles(bool wanted) : held_(wanted) {
    // Constant data: g++ 12 tells its optimiser of the first 8 bytes only, and drops stores to the others.
    alignas(64) static const uint8_t kConfig[64] = {1,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,
                                                    64, 0,  64, 0,  64, 0,  64, 0,  64, 0,  64, 0,  64, 0,  64, 0,
                                                    0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,
                                                    16, 16, 16, 16, 16, 16, 16, 16, 0,  0,  0,  0,  0,  0,  0,  0};
    if (held_) _tile_loadconfig(kConfig);
  }
  LICAG3D_TILE_CODE ~Tiles() {
    if (held_) _tile_release();
  }
  Tiles(const Tiles &) = delete;
  Tiles &operator=(const Tiles &) = delete;

 private:
  bool held_;
};

// C (m, n) = A (m, k) B, added to what C holds where `accumulate`. A: rows of bfloat16; B: pairs of rows side by side,
// (k / 2, n, 2); strides in bytes. m is a multiple of 16, n and k are multiples of 32.
LICAG3D_TILE_CODE inline void tile_product(int m, int n, int k, const uint16_t *a, int64_t a_row, const uint16_t *b,
                                           int64_t b_row, float *c, int64_t c_row, bool accumulate) {
  const char *const a_bytes = reinterpret_cast<const char *>(a), *const b_bytes = reinterpret_cast<const char *>(b);
  char *const c_bytes = reinterpret_cast<char *>(c);
  for (int i = 0; i < m; i += 32) {
    const bool two = i + 16 < m;
    for (int j = 0; j < n; j += 32) {
      char *const c0 = c_bytes + i * c_row + j * 4, *const c2 = c0 + 16 * c_row;
      if (accumulate) {
        _tile_loadd(0, c0, c_row);
        _tile_loadd(1, c0 + 64, c_row);
        if (two) {
          _tile_loadd(2, c2, c_row);
          _tile_loadd(3, c2 + 64, c_row);
        }
      } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
      }
      for (int t = 0; t < k; t += 32) {
        const char *const b0 = b_bytes + t / 2 * b_row + j * 4, *const a0 = a_bytes + i * a_row + t * 2;
        _tile_loadd(6, b0, b_row);
        _tile_loadd(7, b0 + 64, b_row);
        _tile_loadd(4, a0, a_row);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if (two) {
          _tile_loadd(5, a0 + 16 * a_row, a_row);
          _tile_dpbf16ps(2, 5, 6);
          _tile_dpbf16ps(3, 5, 7);
        }
      }
      _tile_stored(0, c0, c_row);
      _tile_stored(1, c0 + 64, c_row);
      if (two) {
        _tile_stored(2, c2, c_row);
        _tile_stored(3, c2 + 64, c_row);
      }
    }
  }
}

// Rows of floats to rows of bfloat16; columns a multiple of 32.
LICAG3D_TILE_CODE inline void narrow_rows(const float *from, int64_t count, uint16_t *to) {
  for (int64_t i = 0; i < count; i += 32) {
    const __m512bh both = _mm512_cvtne2ps_pbh((__m512)load(from + i + 16), (__m512)load(from + i));
    std::memcpy(to + i, &both, sizeof(both));
  }
}

// Row pairs (rows / 2, columns, 2) of bfloat16 from rows of floats; rows missing in the last tile are zero.
LICAG3D_TILE_CODE inline void narrow_pairs(const float *from, int rows, int columns, uint16_t *to) {
  const int padded = (rows + 31) / 32 * 32;
  for (int r = 0; r < padded; r += 2)
    for (int c = 0; c < columns; c += 16) {
      __m512i pair = _mm512_setzero_si512();
      if (r < rows) {
        const __m256i first = (__m256i)_mm512_cvtneps_pbh((__m512)load(from + r * columns + c));
        const __m256i second = (__m256i)_mm512_cvtneps_pbh((__m512)load(from + (r + 1) * columns + c));
        pair = _mm512_or_si512(_mm512_cvtepu16_epi32(first), _mm512_slli_epi32(_mm512_cvtepu16_epi32(second), 16));
      }
      std::memcpy(to + (static_cast<int64_t>(r / 2) * columns + c) * 2, &pair, sizeof(pair));
    }
}

// hidden = features weight_1t + bias_1.
inline void tile_hidden(const TriplaneItem &item, Packet &packet, int rows) {
  const int cp = item.cp, hp = item.hp;
  narrow_rows(packet.features, static_cast<int64_t>(rows) * cp, packet.narrow_features);
  for (int row = 0; row < rows; ++row) std::memcpy(packet.hidden + row * hp, item.bias_1, hp * sizeof(float));
  tile_product(rows, hp, cp, packet.narrow_features, cp * 2, item.narrow_1t, hp * 4, packet.hidden, hp * 4, true);
}

// features_grad = hidden_slope weight_1; with weight_1t also its gradient, features' hidden_slope, added there.
inline void tile_gradients(const TriplaneItem &item, Packet &packet, int rows, float *weight_1t) {
  const int cp = item.cp, hp = item.hp, padded = (rows + 31) / 32 * 32;
  narrow_rows(packet.hidden_slope, static_cast<int64_t>(rows) * hp, packet.narrow_slope);
  tile_product(rows, cp, hp, packet.narrow_slope, hp * 2, item.narrow_1, cp * 4, packet.features_grad, cp * 4, false);
  if (weight_1t == nullptr) return;
  // A pair of rows is as wide as a float: turning pairs against channels gives rows of channels.
  narrow_pairs(packet.features, rows, cp, packet.narrow_pair);
  for (int pair = 0; pair < padded / 2; pair += 16)
    for (int c = 0; c < cp; c += 16)
      transpose(reinterpret_cast<const float *>(packet.narrow_pair) + pair * cp + c, cp,
                reinterpret_cast<float *>(packet.narrow_turned) + c * (padded / 2) + pair, padded / 2);
  narrow_pairs(packet.hidden_slope, rows, hp, packet.narrow_pair);
  tile_product(cp, hp, padded, packet.narrow_turned, padded * 2, packet.narrow_pair, hp * 4, weight_1t, hp * 4, true);
}

#else

struct Tiles {
  explicit Tiles(bool) {}
};
inline void tile_hidden(const TriplaneItem &, Packet &, int) {}
inline void tile_gradients(const TriplaneItem &, Packet &, int, float *) {}

#endif

LICAG3D_CORE_END
