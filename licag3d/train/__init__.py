# SPDX-License-Identifier: Apache-2.0
"""Training: one loop for all models (:mod:`licag3d.train.loop`) and one module per model. See docs/training.md."""
