# SPDX-License-Identifier: Apache-2.0
"""Training losses, one family per file."""
