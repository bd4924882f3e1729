# SPDX-License-Identifier: Apache-2.0
"""The multi-stage inversion engine, imported as ``licag3d.inversion``: views in, vessel tree out."""
