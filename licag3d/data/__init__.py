# SPDX-License-Identifier: Apache-2.0
"""Data for training and evaluation: phantom frames, folders of frames, label volumes."""
