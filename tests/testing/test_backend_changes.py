"""What the checks of a saved model tell apart; the checks themselves are tried in test_backends.py."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from safetensors.torch import save_file

from encore.testing.backend_changes import is_pickle


def test_pickles_are_known_by_what_is_in_them(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "new.bin")
    torch.save({}, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    (tmp_path / "plain").write_bytes(pickle.dumps([1]))
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "empty").write_bytes(b"")
    assert {path.name for path in tmp_path.iterdir() if is_pickle(path)} == {"new.bin", "old.bin", "plain"}
