"""`encore plugins`: what is installed, from where, and what failed."""

import json


def test_table(site, encore):
    site.add("bad", "1 / 0", version="3.1")
    shown = encore("plugins", path=[site.folder])
    assert shown.returncode == 0
    assert shown.stderr == "", "the command shows problems itself"
    assert "problem: plugin 'bad' of bad 3.1, import: it could not be imported: ZeroDivisionError" in shown.stdout
    assert any(line.split()[:3] == ["builtins", "encore-music", "0.1.0"] for line in shown.stdout.splitlines())


def test_json(site, encore):
    site.add("bad", "1 / 0", version="3.1")
    listed = json.loads(encore("plugins", "--json", path=[site.folder]).stdout)
    assert listed["schema"] == 1
    own, bad = listed["plugins"]
    assert (own["name"], own["distribution"], own["problems"]) == ("builtins", "encore-music", [])
    assert "npo" in own["provides"]["methods"]
    assert (bad["version"], bad["module"], bad["hooks"]) == ("3.1", "bad", [])
    assert bad["problems"] == [
        {"where": "import", "message": "it could not be imported: ZeroDivisionError: division by zero"}
    ]


def test_new(tmp_path, encore):
    written = encore("plugins", "new", "acme-tools")
    assert (written.returncode, written.stdout) == (0, "encore-acme-tools\n")
    assert "pip install -e encore-acme-tools" in written.stderr
    assert (tmp_path / "encore-acme-tools" / "pyproject.toml").is_file()
    again = encore("plugins", "new", "acme-tools")
    assert again.returncode == 2
    assert "exists and is not empty" in again.stderr
