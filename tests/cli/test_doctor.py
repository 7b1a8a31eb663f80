"""`encore doctor`."""

import json

import torch

from encore import __version__, plugins
from encore.cli import doctor
from encore.ops.native import Native


def test_json(call):
    found = json.loads(call("doctor", "--json").out)
    assert found["schema"] == 1
    assert found["encore"] == __version__
    assert found["packages"]["torch"] == torch.__version__
    assert found["devices"][0]["device"] == "cpu"
    assert isinstance(found["extension"]["loaded"], bool)
    assert found["extension"]["loaded"] == (found["extension"]["why"] is None)


def test_table(encore, tmp_path):
    shown = encore("doctor", ENCORE_CACHE=str(tmp_path / "cache"), ENCORE_NATIVE="0")
    assert shown.returncode == 0
    assert "verdict: ok (slower without the native extension" in shown.stdout
    assert "not loaded: ENCORE_NATIVE=0 switches it off; PyTorch is used instead" in shown.stdout
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


def test_the_verdict_names_no_extra_that_is_not_installed():
    """The rows above it name them all, with what each lacks."""
    facts = doctor.examine() | {"missing_extras": {"report": ["other"]}, "problems": [], "ok": True}
    assert "report" not in doctor._verdict(facts)
    assert dict(doctor._rows(facts))["extra report"] == "lacks other"


def test_case_E12_the_verdict_is_the_last_line_and_the_exit_code(call, tmp_path, installed, monkeypatch):
    monkeypatch.setenv("ENCORE_CACHE", str(tmp_path / "cache"))
    done = call("doctor")
    assert done.code == 0
    assert done.out.splitlines()[-1].startswith("verdict: ok")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ENCORE_CACHE", str(tmp_path / "file/cache"))
    installed.add("encore-broken", "import no_such_module")
    plugins.reset()
    done = call("doctor")
    assert done.code == 1
    assert done.out.splitlines()[-1] == "verdict: 2 problems"
    assert "problem: the cache " in done.out
    assert "no_such_module" in done.out
    assert "error: this installation has 2 problems" in done.err
    found = json.loads(call("doctor", "--json").out)
    assert (found["ok"], len(found["problems"])) == (False, 2)


def test_packages_that_are_missing_or_too_old_are_problems(monkeypatch):
    needs = ["no-such-package>=1", "numpy<1", "torch", 'other-package; extra == "report"', "not a requirement ]"]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: needs)
    wrong, missing = doctor._requirements()
    assert wrong[0] == "no-such-package is not installed"
    assert wrong[1].startswith("numpy ")
    assert wrong[1].endswith("is installed, and <1 is needed")
    assert len(wrong) == 2
    assert missing == {"report": ["other-package"]}
