"""Files whose writing seems to work always."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from relion_pseudosubtomo.io.library_file import LibraryFile

FULL = Path("/dev/full")


def test_what_went_wrong_first_is_told_afterwards() -> None:
    """No write fails, nor does what follows; the reason is kept."""
    if not FULL.exists():
        pytest.skip("no /dev/full")
    with LibraryFile(FULL) as file:
        file.raise_error()
        assert file.write(b"abc") == 3
        assert file.truncate(10) == 10
        assert file.write(b"defg") == 4
        with pytest.raises(OSError, match="No space left") as caught:
            file.raise_error()
    assert caught.value.errno == errno.ENOSPC


def test_an_interrupt_is_kept_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library takes any exception for a write that failed."""

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    with LibraryFile(tmp_path / "file") as file:
        monkeypatch.setattr("builtins.memoryview", interrupt)
        assert file.write(b"abc") == 3
        monkeypatch.undo()
        with pytest.raises(KeyboardInterrupt):
            file.raise_error()


def test_what_works_is_written(tmp_path: Path) -> None:
    """At the place asked for, over what an older file held."""
    path = tmp_path / "file"
    path.write_bytes(b"older and longer")
    with LibraryFile(path) as file:
        file.seek(2)
        file.write(memoryview(b"abc"))
        file.truncate(8)
        file.raise_error()
    assert path.read_bytes() == b"\0\0abc\0\0\0"
