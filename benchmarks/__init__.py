# SPDX-License-Identifier: Apache-2.0
"""The reconstruction benchmark: protocol, rivals, leaderboard. Not part of the installed package; docs/benchmark.md."""
