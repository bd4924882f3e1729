// SPDX-License-Identifier: Apache-2.0
// Choice of the instruction set at run time. A file named *.isa.cpp is compiled once per instruction set and defines its
// functions in namespace licag3d::LICAG3D_ISA; a plain *.cpp file declares them with LICAG3D_DECLARE_ISA and calls the
// right one with LICAG3D_SELECT_ISA.
#pragma once

namespace licag3d {

enum class Isa { plain = 0, avx2 = 1, avx512 = 2 };

Isa active_isa();

// Whether the AVX-512 copy may use the tile registers (AMX) for products in bfloat16: the processor has them and the
// system lets this process use them.
bool tiles_ready();

}  // namespace licag3d

#if defined(LICAG3D_X86)
#define LICAG3D_DECLARE_ISA(declaration) \
  namespace licag3d {                    \
  namespace plain {                      \
  declaration;                           \
  }                                      \
  namespace avx2 {                       \
  declaration;                           \
  }                                      \
  namespace avx512 {                     \
  declaration;                           \
  }                                      \
  }
#define LICAG3D_SELECT_ISA(function)                                             \
  (::licag3d::active_isa() == ::licag3d::Isa::avx512 ? ::licag3d::avx512::function \
   : ::licag3d::active_isa() == ::licag3d::Isa::avx2 ? ::licag3d::avx2::function   \
                                                     : ::licag3d::plain::function)
#else
#define LICAG3D_DECLARE_ISA(declaration) \
  namespace licag3d {                    \
  namespace plain {                      \
  declaration;                           \
  }                                      \
  }
#define LICAG3D_SELECT_ISA(function) (::licag3d::plain::function)
#endif
