// SPDX-License-Identifier: Apache-2.0
// The smallest test harness that serves: CHECK counts failures, report() ends main().
#pragma once

#include <cmath>
#include <cstdio>

namespace check {
inline int &failures() {
  static int count = 0;
  return count;
}
inline int &total() {
  static int count = 0;
  return count;
}
inline void that(bool ok, const char *text, const char *file, int line) {
  ++total();
  if (!ok) {
    ++failures();
    std::printf("%s:%d: failed: %s\n", file, line, text);
  }
}
inline void near(double value, double expected, double tolerance, const char *text, const char *file, int line) {
  ++total();
  if (!(std::fabs(value - expected) <= tolerance)) {
    ++failures();
    std::printf("%s:%d: failed: %s is %.9g, expected %.9g within %.3g\n", file, line, text, value, expected, tolerance);
  }
}
inline int report() {
  std::printf("%d checks, %d failed\n", total(), failures());
  return failures() == 0 && total() > 0 ? 0 : 1;
}
}  // namespace check

#define CHECK(condition) check::that((condition), #condition, __FILE__, __LINE__)
#define CHECK_NEAR(value, expected, tolerance) \
  check::near((value), (expected), (tolerance), #value, __FILE__, __LINE__)
