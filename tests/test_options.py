"""A method's settings: what is refused, and what a changed default keeps."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import Field, ValidationError

from encore.options import Options, TrainOptions


class Tuned(TrainOptions):
    lr: float = 2e-3
    stop: Literal["target", "never"] = "never"
    beta: float = Field(1.0, gt=0, description="own")


class TunedAgain(Tuned):
    steps: int = 7
    beta: float = 2.0


@pytest.mark.parametrize("options", [TrainOptions, Tuned, TunedAgain])
@pytest.mark.parametrize("wrong", [{"lr": -1}, {"lr": 0}, {"steps": 0}, {"lr": float("nan")}, {"unknown": 1}])
def test_limits_hold_whatever_the_default(options: type[TrainOptions], wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        options(**wrong)  # type: ignore[arg-type]


def test_a_changed_default_keeps_its_description() -> None:
    for name in ("lr", "steps", "stop"):
        assert TunedAgain.model_fields[name].description == TrainOptions.model_fields[name].description
    assert TunedAgain.model_fields["beta"].description == "own"
    assert (TunedAgain().lr, TunedAgain().steps, TunedAgain().beta) == (2e-3, 7, 2.0)
    assert (TrainOptions().lr, TrainOptions().steps) == (5e-4, 60)
    with pytest.raises(ValidationError):
        TunedAgain(beta=-1)


def test_a_new_declaration_of_its_own_wins() -> None:
    class Own(TrainOptions):
        lr: float = Field(1.0, ge=0.5, description="mine")

    assert Own.model_fields["lr"].description == "mine"
    with pytest.raises(ValidationError):
        Own(lr=0.1)


def test_options_are_frozen() -> None:
    with pytest.raises(ValidationError):
        TrainOptions().lr = 1.0  # type: ignore[misc]
    assert Options() == Options()
