// SPDX-License-Identifier: Apache-2.0
#include "cpu/error.h"

#include <cstdio>

namespace licag3d {
namespace {
thread_local char g_text[256] = "";
}

int32_t fail(int32_t status, const char *text) {
  std::snprintf(g_text, sizeof(g_text), "%s", text);
  return status;
}

const char *last_error() { return g_text; }

}  // namespace licag3d
