"""A file is its old self or its new one, whatever happens in between."""

import pytest

from encore.files import STAGING, atomic_write


def test_a_file_takes_its_place_when_it_is_whole(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with atomic_write(path) as staging:
        staging.write_text("new")
        assert path.read_text() == "old"
        assert staging.name.startswith(STAGING)
        assert staging.parent == tmp_path
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_after_an_error_the_old_file_stands_and_nothing_lies_beside_it(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as staging:  # noqa: PT012
        staging.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_use_two_names(tmp_path):
    with atomic_write(tmp_path / "file") as one, atomic_write(tmp_path / "file") as other:
        assert one != other
        one.write_text("1")
        other.write_text("2")
    assert (tmp_path / "file").read_text() == "1", "the last to end wins"
