"""Files that appear under their final name only when they are whole, and folders (spec 3)."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from relion_pseudosubtomo.errors import OutputError

#: Matches every temporary name.
TEMPORARY_PATTERN = ".*.tmp-*-*"


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it becomes `path`, else it goes.

    Parameters
    ----------
    path : str or path-like
        The final name. Its folder has to exist; an older file of that name is replaced.

    Yields
    ------
    Path
        `.<name>.tmp-<process>-<thread>` in the same folder, which the caller writes and closes.

    Raises
    ------
    OutputError
        For every OSError inside the block; the message names the final file.
    """
    final = Path(path)
    temporary = final.with_name(f".{final.name}.tmp-{os.getpid()}-{threading.get_ident()}")
    try:
        yield temporary
        os.replace(temporary, final)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OutputError(f"{final} could not be written: {error.strerror or error}") from error
        raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` (UTF-8, line ends as given) to `path`, whole or not at all.

    Bytes of file names for which the locale has no letters are written as they are.

    Raises
    ------
    OutputError
        Where the file cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")


def make_folder(path: Path) -> None:
    """Make a folder and those above it.

    Raises
    ------
    OutputError
        Where it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path} could not be made: {error.strerror}") from error
