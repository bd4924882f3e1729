# SPDX-License-Identifier: Apache-2.0
"""The tuple loss: what it asks for, and that its published form collapses where the contrastive one does not."""

from __future__ import annotations

import math

import pytest
import torch

from licag3d.losses.tuple import tuple_loss


def random_codes(seed: int, count: int = 6, size: int = 5) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_equal_codes_of_all_cost_the_logarithm_of_their_number():
    same = torch.ones(7, 3)
    assert float(tuple_loss(same, same)) == pytest.approx(math.log(7), abs=1e-5)


def test_views_are_exchangeable_and_lengths_do_not_count():
    a, b = random_codes(0), random_codes(1)
    loss = tuple_loss(a, b)
    assert float(tuple_loss(b, a)) == pytest.approx(float(loss))
    assert float(tuple_loss(3 * a, 0.2 * b)) == pytest.approx(float(loss))


def test_only_patients_of_one_group_are_negatives():
    a, b = random_codes(0), random_codes(1)
    group = torch.tensor([0, 0, 0, 1, 1, 1])
    apart = 0.5 * (tuple_loss(a[:3], b[:3]) + tuple_loss(a[3:], b[3:]))
    assert float(tuple_loss(a, b, group)) == pytest.approx(float(apart), abs=1e-6)


def test_a_patient_drawn_twice_is_no_negative_of_itself():
    a, b = random_codes(0, 3), random_codes(1, 3)
    twice = torch.tensor([[False, True, False], [True, False, False], [False, False, False]])
    alike = torch.nn.functional.normalize(a) @ torch.nn.functional.normalize(b).T / 0.1
    first_row = -torch.log_softmax(alike[0, [0, 2]], 0)[0]
    rows = [first_row, -torch.log_softmax(alike[1, [1, 2]], 0)[0], -torch.log_softmax(alike[2], 0)[2]]
    columns = [
        -torch.log_softmax(alike[[0, 2], 0], 0)[0],
        -torch.log_softmax(alike[[1, 2], 1], 0)[0],
        -torch.log_softmax(alike[:, 2], 0)[2],
    ]
    wanted = 0.5 * (sum(rows) / 3 + sum(columns) / 3)
    assert float(tuple_loss(a, b, other=twice)) == pytest.approx(float(wanted), abs=1e-6)


@pytest.mark.parametrize("form", ["contrastive", "cosine"])
def test_gradient(form):
    a, b = random_codes(0, 4, 3).requires_grad_(), random_codes(1, 4, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: tuple_loss(x, y, form=form), (a, b))


def trained(form: str) -> tuple[float, float]:
    """Codes of a linear encoder of two noisy views after training with one form alone: mean cosine of views of one
    patient, and of two patients.
    """
    random = torch.Generator().manual_seed(0)
    patients = torch.randn(64, 8, generator=random)
    layer = torch.nn.Linear(8, 4)
    with torch.no_grad():
        layer.weight.normal_(0, 0.3, generator=random)
        layer.bias.fill_(0.3)
    optimizer = torch.optim.Adam(layer.parameters(), 0.02)

    def view() -> torch.Tensor:  # what is the view's own cannot be told from the patient
        return patients + 0.5 * torch.randn(64, 8, generator=random)

    for _ in range(250):
        optimizer.zero_grad()
        tuple_loss(layer(view()), layer(view()), form=form).backward()
        optimizer.step()
    with torch.no_grad():
        a, b = (torch.nn.functional.normalize(layer(view())) for _ in range(2))
    alike = a @ b.T
    return float(alike.diagonal().mean()), float(alike[~torch.eye(64, dtype=torch.bool)].mean())


def test_the_cosine_form_collapses_and_the_contrastive_form_does_not():
    same, other = trained("cosine")
    assert same > 0.99 and other > 0.95  # all patients have one code
    same, other = trained("contrastive")
    assert same > 0.7 and other < 0.2


def test_none_is_zero_with_a_gradient_of_zero():
    a = random_codes(0).requires_grad_()
    loss = tuple_loss(a, a, form="none")
    loss.backward()
    assert float(loss.detach()) == 0 and float(a.grad.abs().sum()) == 0


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        tuple_loss(torch.ones(3, 2), torch.ones(2, 2))
    with pytest.raises(ValueError, match="form is 'other'"):
        tuple_loss(torch.ones(3, 2), torch.ones(3, 2), form="other")
