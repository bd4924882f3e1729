// SPDX-License-Identifier: Apache-2.0
#include "cpu/isa.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

#if defined(LICAG3D_X86) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "cpu/error.h"
#include "include/licag3d.h"

namespace licag3d {
namespace {

const char *const kNames[] = {"plain", "avx2", "avx512"};

Isa best_isa() {
#if defined(LICAG3D_X86)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma"))
    return Isa::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) return Isa::avx2;
#endif
  return Isa::plain;
}

// -1: not decided yet.
std::atomic<int> g_isa{-1};

int parse(const char *name) {
  if (name == nullptr || name[0] == '\0') return static_cast<int>(best_isa());
  for (int i = 0; i < 3; ++i)
    if (std::strcmp(name, kNames[i]) == 0 && i <= static_cast<int>(best_isa())) return i;
  return -1;
}

bool ask_for_tiles() {
#if defined(LICAG3D_X86) && defined(__linux__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & 1) || !(d >> 24 & 1)) return false;  // AMX-BF16, AMX-TILE
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a >> 5 & 1)) return false;                     // AVX512-BF16
  constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA of the kernel
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace

bool tiles_ready() {
  static const bool granted = best_isa() == Isa::avx512 && ask_for_tiles();
  return granted && active_isa() == Isa::avx512;
}

Isa active_isa() {
  int isa = g_isa.load(std::memory_order_relaxed);
  if (isa < 0) {
    // An environment variable that names a missing instruction set must not stop the program: Python reports it.
    isa = parse(std::getenv("LICAG3D_ISA"));
    if (isa < 0) isa = static_cast<int>(best_isa());
    g_isa.store(isa, std::memory_order_relaxed);
  }
  return static_cast<Isa>(isa);
}

}  // namespace licag3d

extern "C" {

int32_t licag3d_abi_version(void) { return LICAG3D_ABI_VERSION; }

const char *licag3d_version(void) { return LICAG3D_VERSION_STRING; }

const char *licag3d_isa(void) { return licag3d::kNames[static_cast<int>(licag3d::active_isa())]; }

int32_t licag3d_set_isa(const char *name) {
  const int isa = licag3d::parse(name);
  if (isa < 0) return licag3d::fail(LICAG3D_BAD_ARGUMENT, "this processor or build has no such instruction set");
  licag3d::g_isa.store(isa);
  return LICAG3D_OK;
}

const char *licag3d_last_error(void) { return licag3d::last_error(); }

}  // extern "C"
