# SPDX-License-Identifier: Apache-2.0
"""Vessels: surface, voxels, centreline graph, radius, stenosis, foreshortening."""
