"""Completion records: what is done, so that a killed job can continue (spec 4.5).

A record covers a range of a tomogram's kept particles. It is written last, whole or not at all, and
holds nothing that varies from run to run. Partial sums lie beside it.
"""

from __future__ import annotations

import contextlib
import json
import os
import zipfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np

from relion_pseudosubtomo.errors import OutputError
from relion_pseudosubtomo.io.atomic import atomic_path, write_text
from relion_pseudosubtomo.io.names import leads_outside
from relion_pseudosubtomo.model import Sums
from relion_pseudosubtomo.options import particle_file

FOLDER = ".completed"
JOB_FILE = "job.json"

#: Changes when the layout of records does: old ones are not understood then.
RECORD_VERSION = 1

#: What `np.load` raises, depending on where an archive is damaged.
_DAMAGE = (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Record:
    """A finished range of particles of one tomogram.

    Attributes
    ----------
    tomogram : str
        Name of the tomogram.
    first, stop : int
        Range among the tomogram's kept particles.
    fingerprint : str
        Of everything the result depends on.
    stems : tuple of str
        Output paths without suffix, inside the output directory.
    suffixes : tuple of str
        Of the files each particle has.
    sizes : tuple of int
        Bytes of all files, particle by particle.
    n_clipped, n_not_finite : int
        Values clipped to float16's range; pixels that were NaN or infinite.
    """

    tomogram: str
    first: int
    stop: int
    fingerprint: str
    stems: tuple[str, ...]
    suffixes: tuple[str, ...]
    sizes: tuple[int, ...]
    n_clipped: int
    n_not_finite: int

    def files(self) -> list[str]:
        """Return the paths of all files, inside the output directory."""
        return [particle_file(stem, suffix) for stem in self.stems for suffix in self.suffixes]


class RecordStore:
    """The records of an output directory.

    Parameters
    ----------
    output : str
        The output directory.
    """

    def __init__(self, output: str) -> None:
        self._output = Path(output)
        self._folder = self._output / FOLDER

    @property
    def job_path(self) -> Path:
        """The file of `write_job`."""
        return self._folder / JOB_FILE

    def _path(self, record: Record) -> Path:
        name = quote(record.tomogram, safe="")
        return self._folder / name / f"{record.first}-{record.stop}.json"

    def write(self, record: Record, sums: Sums) -> None:
        """Write a record, its sums, where there are any, first."""
        path = self._path(record)
        path.parent.mkdir(parents=True, exist_ok=True)
        if sums:
            with atomic_path(path.with_suffix(".npz")) as temporary, open(temporary, "wb") as file:
                np.savez(file, **sums)  # type: ignore[arg-type]
        write_text(path, json.dumps({"version": RECORD_VERSION, **asdict(record)}) + "\n")

    def read_all(self) -> list[Record]:
        """Return all records that can be read; damaged ones are as good as none.

        So are those that name files outside the output directory: what they name may be removed.
        """
        return self._read(sorted(self._folder.glob("*/*.json")))

    def tomograms(self) -> set[str]:
        """Return the names of the tomograms that have records, readable or not."""
        return {unquote(path.parent.name) for path in self._folder.glob("*/*.json")}

    def read_tomogram(self, tomogram: str) -> list[Record]:
        """Return the records of one tomogram."""
        return self._read(sorted((self._folder / quote(tomogram, safe="")).glob("*.json")))

    def _read(self, paths: list[Path]) -> list[Record]:
        records = []
        for path in paths:
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
                fields = json.loads(path.read_text(encoding="utf-8"))
                if fields.pop("version") == RECORD_VERSION:
                    lists = {k: tuple(v) for k, v in fields.items() if isinstance(v, list)}
                    record = Record(**{**fields, **lists})
                    if not any(map(leads_outside, (*record.stems, *record.suffixes))):
                        records.append(record)
        return records

    def read_sums(self, record: Record) -> Sums:
        """Return the sums beside a record.

        Raises
        ------
        OutputError
            Where they cannot be read.
        """
        path = self._path(record).with_suffix(".npz")
        try:
            with np.load(path) as arrays:
                return dict(arrays)
        except _DAMAGE as error:
            reason = getattr(error, "strerror", None) or error
            raise OutputError(
                f"Partial sums in {path} cannot be read: {reason}. Remove the file and start again "
                "with --only_do_unfinished, which makes it anew"
            ) from error

    def sums_size(self, record: Record) -> int:
        """Return the bytes of the sums beside a record; 0 where there are none."""
        with contextlib.suppress(OSError):
            return self._path(record).with_suffix(".npz").stat().st_size
        return 0

    def remove(self, record: Record) -> None:
        """Remove a record and its sums; the files it names stay."""
        path = self._path(record)
        path.unlink(missing_ok=True)
        path.with_suffix(".npz").unlink(missing_ok=True)

    def is_intact(self, record: Record, *, with_sums: bool) -> bool:
        """Return whether every file of a record is there, of its size, and not newer than it.

        Sums are looked at no further than that they end as they should.
        """
        path = self._path(record)
        try:
            written = path.stat().st_mtime_ns
            if with_sums and not zipfile.is_zipfile(path.with_suffix(".npz")):
                return False
            for name, size in zip(record.files(), record.sizes, strict=True):
                status = os.stat(self._output / name)
                if status.st_size != size or status.st_mtime_ns > written:
                    return False
        except (OSError, ValueError):
            return False
        return True

    def write_job(self, description: dict[str, str]) -> None:
        """Note the options that the results of this directory are made with."""
        self._folder.mkdir(parents=True, exist_ok=True)
        write_text(self.job_path, json.dumps(description, indent=1) + "\n")

    def read_job(self) -> dict[str, str] | None:
        """Return the options noted by `write_job`; None where there are none."""
        try:
            description = json.loads(self.job_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return description if isinstance(description, dict) else None


def add_up(parts: Iterable[Sums]) -> Sums:
    """Return the sums of several records, added in this order in double precision."""
    total: Sums = {}
    for part in parts:
        for name, values in part.items():
            if name not in total:
                total[name] = np.zeros(values.shape, np.result_type(values, np.float64))
            total[name] += values
    return total
