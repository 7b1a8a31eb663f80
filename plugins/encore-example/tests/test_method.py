"""The loss, worked out by hand: no model is needed."""

from types import SimpleNamespace

import pytest
import torch

from encore_example.method import Hinge


class Backend:
    """Stands for a model whose NLL of the clips is known."""

    def losses(self, batch):
        return torch.tensor([0.5, 2.0, 9.0])


@pytest.mark.parametrize(("margin", "expected"), [(0.0, [2.5, 1.0, 0.0]), (1.0, [3.5, 2.0, 0.0])])
def test_forget_is_pushed_to_the_level_and_no_further(margin, expected):
    method = Hinge(Hinge.Options(margin=margin))
    loss = method.forget_loss(SimpleNamespace(backend=Backend(), holdout_nll=3.0), None)
    assert loss.tolist() == expected


def test_retain_is_the_plain_loss():
    loss = Hinge(Hinge.Options()).retain_loss(SimpleNamespace(backend=Backend()), None)
    assert loss.tolist() == [0.5, 2.0, 9.0]
