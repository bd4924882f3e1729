# SPDX-License-Identifier: Apache-2.0
"""The encoder's code as one more start of the prior's fit."""

from __future__ import annotations

import numpy as np
import torch

from licag3d.inversion.adam import Adam
from licag3d.inversion.prior_tree import Codes
from licag3d.models.generator import Generator, labels_of

#: Steps and rate of the search for the z that maps to the code.
STEPS, RATE = 120, 0.05


def encoder_start(encoding, generator: Generator, views: int) -> Codes:
    """The start ``Codes`` of one row whose w is the mean structure style of an ``Encoding``.

    z is sought by Adam on |map(z) - w|^2 + 1e-3 |z|^2; what the styles differ by is left to the fit, and the place is
    that of the matched points, as for every start.

    Args:
        encoding: of :func:`licag3d.models.encode_views.encode_views`. views: number of views of the fit.
    """
    both = encoding.label_probability[2] > 0.5
    label = labels_of([encoding.artery], [bool(both)], len(generator.config.labels))
    wanted = torch.from_numpy(np.asarray(encoding.w_plus[: generator.config.structure], np.float32)).mean(
        0, keepdim=True
    )
    z = torch.zeros(1, generator.config.z_dim, requires_grad=True)
    optimizer = Adam([{"params": [z], "lr": RATE}])
    for _ in range(STEPS):
        loss = (generator.map(z, label) - wanted).square().sum() + 1e-3 * z.square().sum()
        (gradient,) = torch.autograd.grad(loss, z)
        z.grad = gradient
        optimizer.step()
    codes = Codes.start(generator, label, np.zeros(3), views)
    codes.z.copy_(z.detach())
    return codes
