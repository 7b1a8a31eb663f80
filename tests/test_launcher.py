"""What a launcher's environment says."""

from __future__ import annotations

import pytest

from encore.launcher import launched


@pytest.mark.parametrize(
    ("environment", "count"),
    [
        ({}, 1),
        ({"WORLD_SIZE": "4"}, 1),  # of another program
        ({"WORLD_SIZE": "4", "RANK": "0", "MASTER_ADDR": "localhost"}, 4),
        ({"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "localhost"}, 1),
    ],
)
def test_processes_are_those_of_a_launcher(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], count: int
) -> None:
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launched() == count
