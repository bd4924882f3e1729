// SPDX-License-Identifier: Apache-2.0
// Errors of the C ABI: a status code, and a text kept per thread.
#pragma once

#include <cstdint>

namespace licag3d {

// Remembers the text for licag3d_last_error() and returns status.
int32_t fail(int32_t status, const char *text);
const char *last_error();

}  // namespace licag3d
