"""The fast reader of entry points says what `importlib.metadata` says."""

import importlib.metadata
import zipfile

from encore.entrypoints import EntryPoint, entry_points


def test_agrees_with_importlib_metadata():
    for group in ("encore", "console_scripts", "pytest11"):
        slow = importlib.metadata.entry_points(group=group)
        expected = {(p.name, p.value, p.dist.name, p.dist.version) for p in slow}
        assert {tuple(point) for point in entry_points(group)} == expected


def test_first_distribution_on_the_path_hides_the_later(tmp_path):
    for folder, version in (("a", "2.0"), ("b", "1.0")):
        info = tmp_path / folder / f"my_plugin-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Name: {'My.Plugin' if folder == 'a' else 'my-plugin'}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text("[other]\nx = y\n[encore]\n# a comment\none = pkg.mod:Class [extra]\n")
    points = entry_points("encore", [str(tmp_path / "a"), str(tmp_path / "b")])
    assert points == [EntryPoint("one", "pkg.mod:Class [extra]", "My.Plugin", "2.0")]
    assert (points[0].module, points[0].attribute) == ("pkg.mod", "Class")


def test_zip_files_and_missing_folders(tmp_path):
    with zipfile.ZipFile(tmp_path / "plugin.zip", "w") as archive:
        archive.writestr("zipped-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: zipped\nVersion: 1.0\n")
        archive.writestr("zipped-1.0.dist-info/entry_points.txt", "[encore]\nz = zipped\n")
    found = entry_points("encore", [str(tmp_path / "nowhere"), str(tmp_path / "plugin.zip")])
    assert found == [EntryPoint("z", "zipped", "zipped", "1.0")]


def test_broken_metadata_costs_no_other(tmp_path):
    broken = tmp_path / "broken-1.0.dist-info"
    broken.mkdir()
    (broken / "entry_points.txt").write_bytes(b"[encore]\n\xff\xfe nonsense\nb = broken\n")
    assert entry_points("encore", [str(tmp_path)]) == [EntryPoint("b", "broken", "broken-1.0", "unknown")]
