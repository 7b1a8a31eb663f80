"""What is shown of tracks before a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from encore.cli.tracks import note_sets
from encore.data.encoded_tracks import EncodedTrack
from encore.data.file_info import Decoding
from encore.data.tracks import Track


def test_a_set_of_one_track_is_called_so(capsys: pytest.CaptureFixture[str]) -> None:
    facts = Decoding("0" * 64, 16_000, 1, 80_000, "wav")
    one, two = (
        EncodedTrack(Track(name, Path(name), "x", "0" * 64, caption_source=source), (), facts)
        for name, source in (("a", "side-car (read as UTF-16)"), ("b", "an archive"))
    )
    note_sets({"forget": [one], "retain": [one, two], "holdout": []})
    assert capsys.readouterr().err.splitlines() == [
        "forget: 5.0 s read of 1 track; captions: 1 from side-car files (read as UTF-16)",
        "retain: 10.0 s read of 2 tracks; captions: 1 from side-car files (read as UTF-16), 1 from an archive",
    ]
