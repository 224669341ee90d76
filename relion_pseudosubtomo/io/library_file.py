"""Files that a library fills which cannot bear that writing fails."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any


class LibraryFile(io.FileIO):
    """A new file in which writing seems to work always; what went wrong is told afterwards.

    HDF5 keeps much of a file until it closes it. Where that cannot be written then, as on a full
    disk, the library brings the process down, or leaves no trace of the reason.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self._error: BaseException | None = None

    def write(self, values: Any) -> int:
        """Write bytes at the present place, all of them, unless something went wrong before."""
        try:
            pending = memoryview(values)
            while self._error is None and pending:
                pending = pending[super().write(pending) or 0 :]
        except BaseException as error:  # an interrupt, too, would be a failure to the library
            self._error = error
        return len(values)

    def truncate(self, size: int | None = None) -> int:
        """Give the file a size, unless something went wrong before."""
        try:
            if self._error is None:
                super().truncate(size)
        except BaseException as error:
            self._error = error
        return self.tell() if size is None else size

    def raise_error(self) -> None:
        """Raise what went wrong first, if anything did."""
        if self._error is not None:
            raise self._error
