"""Files appear under their final names whole, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from relion_pseudosubtomo.errors import OutputError
from relion_pseudosubtomo.io.atomic import atomic_path, write_text


def write_half_and_raise(path, error):
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        raise error


def test_final_name_appears_only_at_the_end(tmp_path):
    final = tmp_path / "a.star"
    with atomic_path(final) as temporary:
        temporary.write_text("half")
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".a.star.tmp-")
        assert not final.exists()
    assert final.read_text() == "half"
    assert list(tmp_path.iterdir()) == [final]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_nothing_stays_after_an_error(tmp_path, error):
    final = tmp_path / "a.star"
    final.write_text("old")
    with pytest.raises(error):
        write_half_and_raise(final, error())
    assert final.read_text() == "old"
    assert list(tmp_path.iterdir()) == [final]


def test_system_error_names_the_final_file(tmp_path):
    with pytest.raises(OutputError, match=r"absent/a\.star could not be written: No such file"):
        write_text(tmp_path / "absent" / "a.star", "text")


def test_full_disk_leaves_nothing(tmp_path):
    with pytest.raises(OutputError, match="No space left on device"):
        write_half_and_raise(tmp_path / "a", OSError(28, "No space left on device"))
    assert list(tmp_path.iterdir()) == []


def test_line_ends_are_kept(tmp_path):
    write_text(tmp_path / "a", "1\n2\r\n")
    assert Path(tmp_path / "a").read_bytes() == b"1\n2\r\n"
