"""`encore doctor`."""

import json

import torch

from encore import __version__
from encore.cli import doctor
from encore.ops.native import Native


def test_json(encore):
    found = json.loads(encore("doctor", "--json").stdout)
    assert found["schema"] == 1
    assert found["encore"] == __version__
    assert found["packages"]["torch"] == torch.__version__
    assert found["devices"][0]["device"] == "cpu"
    assert isinstance(found["extension"]["loaded"], bool)
    assert found["extension"]["loaded"] == (found["extension"]["why"] is None)


def test_table(encore, tmp_path):
    shown = encore("doctor", ENCORE_CACHE=str(tmp_path / "cache"), ENCORE_NATIVE="0")
    assert shown.returncode == 0
    assert "not loaded: ENCORE_NATIVE=0 switches it off; pure torch serves" in shown.stdout
    assert str(tmp_path / "cache") in shown.stdout
    assert not (tmp_path / "cache").exists(), "looking writes nothing"


class Built:
    """A library as it might be found."""

    @staticmethod
    def build_info():
        return {"torch": "2.13.0", "compiler": "gcc 12"}

    @staticmethod
    def cpu_isa():
        return "avx2"


def test_a_loaded_extension_is_described(monkeypatch):
    monkeypatch.setattr("encore.ops.native.find", lambda build: Native(Built, "", "on first use"))
    rows = dict(doctor._rows(doctor.examine()))
    assert rows["native extension"] == "loaded, built on first use with torch 2.13.0 and gcc 12; CPU: avx2"


def test_an_instruction_set_that_is_not_there_is_told(monkeypatch):
    def cpu_isa():
        raise ValueError("ENCORE_CPU_ISA=mmx: amx, avx512, avx2 or portable is needed")

    monkeypatch.setattr(Built, "cpu_isa", cpu_isa)
    monkeypatch.setattr("encore.ops.native.find", lambda build: Native(Built, "", "on first use"))
    assert dict(doctor._rows(doctor.examine()))["native extension"].endswith("amx, avx512, avx2 or portable is needed")
