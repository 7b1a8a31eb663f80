"""The estimate against what a run then takes, and its words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from encore.plugins import methods
from encore.runs.estimate import Estimate
from encore.runs.forget import Request, prepare

EncoreCommand = Callable[..., object]


def asked(studio: Path, name: str, **options: object):
    chosen = methods().resolve(name)
    request = Request(studio / "music" / "list.txt", Path("run"), model=str(studio / "model"), device="cpu")
    return prepare(request, chosen(chosen.Options(**options)))


@pytest.mark.parametrize(
    ("seconds", "peak", "disk", "words"),
    [
        (322.2, 139_460_608, 85_983_232, "about 5 min, 133 MiB of memory, 82 MiB of disk"),
        (42.4, 3 << 30, 12 << 30, "about 42 s, 3.0 GiB of memory, 12.0 GiB of disk"),
        (9000, 1, 1, "about 2.5 h, 0 MiB of memory, 0 MiB of disk"),
    ],
)
def test_case_E9_an_estimate_reads_as_a_person_would_say_it(seconds, peak, disk, words):
    assert str(Estimate(seconds, peak, disk)) == words
