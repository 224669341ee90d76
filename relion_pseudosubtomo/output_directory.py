"""The output directory over time: what earlier runs left in it, and what of that can be trusted."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from relion_pseudosubtomo.errors import InputError, OutputError
from relion_pseudosubtomo.findings import bytes_text
from relion_pseudosubtomo.io.atomic import TEMPORARY_PATTERN
from relion_pseudosubtomo.io.containers import ContainerStore
from relion_pseudosubtomo.io.fingerprint import describe_job
from relion_pseudosubtomo.io.records import FOLDER, Record, RecordStore, add_up
from relion_pseudosubtomo.model import Task, TomogramSet
from relion_pseudosubtomo.options import DIALECT_FOLDERS, TOP_FILES, JobOptions, particle_file
from relion_pseudosubtomo.positions import FOLDER as POSITIONS_FOLDER
from relion_pseudosubtomo.report.store import FOLDER as REPORT_FOLDER
from relion_pseudosubtomo.report.store import ReportStore
from relion_pseudosubtomo.task_work import writes_records

logger = logging.getLogger("relion_pseudosubtomo")

#: Seconds that records of other nodes may take to show.
RECORDS_APPEAR = 10.0

#: Threads that look at the files of earlier runs: parallel file systems answer slowly, but many at
#: a time.
_LOOKING_THREADS = 8


@dataclass
class Completed:
    """What is done of each task.

    Attributes
    ----------
    ranges : dict of int to list of (int, int)
        Ranges [first, stop) of done particles by task number.
    """

    ranges: dict[int, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))

    def add(self, task: int, first: int, stop: int) -> None:
        """Note a range as done."""
        self.ranges[task].append((first, stop))

    def overlaps(self, task: int, first: int, stop: int) -> bool:
        """Return whether any part of a range is done."""
        return any(first < b and a < stop for a, b in self.ranges[task])

    def missing(self, task: Task) -> tuple[tuple[int, int], ...]:
        """Return the ranges of a whole task that are not done."""
        missing, place = [], 0
        for first, stop in [*sorted(self.ranges[task.number]), (len(task), len(task))]:
            if first > place:
                missing.append((place, first))
            place = max(place, stop)
        return tuple(missing)


class OutputDirectory:
    """The directory of a run that holds its lock.

    Parameters
    ----------
    options : JobOptions
    """

    def __init__(self, options: JobOptions) -> None:
        self._options = options
        self._path = Path(options.output)
        self.records = RecordStore(options.output)
        self.containers = ContainerStore(options.output)
        self._obsolete: list[Record] = []
        self._staying: list[Record] = []  # of tomograms that are not done now
        self._tasks: tuple[Task, ...] = ()

    def examine(
        self, tomogram_set: TomogramSet, tasks: tuple[Task, ...], fingerprints: dict[int, str]
    ) -> tuple[Completed, list[Record]]:
        """Return what is done already, and the records that say so; nothing is changed yet.

        Parameters
        ----------
        tomogram_set : TomogramSet
        tasks : tuple of Task
            Whole tasks of this run.
        fingerprints : dict of int to str
            By task number.
        """
        by_name = {tomogram_set.tomograms[task.tomogram].name: task for task in tasks}
        self._tasks = tasks
        records = sorted(self.records.read_all(), key=_whole_first)
        if self._options.overwrite:
            for record in records:
                is_chosen = self._is_chosen(record.tomogram)
                (self._obsolete if is_chosen else self._staying).append(record)
            return Completed(), []
        completed, kept, n_stale = Completed(), [], 0
        trusted = self._find_trusted(records, by_name, fingerprints)
        for record, is_trusted in zip(records, trusted, strict=True):
            task = by_name.get(record.tomogram)
            if task is None:  # left out of this run: what was done of it stays good
                self._staying.append(record)
            elif not is_trusted:
                self._obsolete.append(record)
                n_stale += 1
            elif completed.overlaps(task.number, record.first, record.stop):
                self._obsolete.append(record)  # a kill fell between joining and removing
            else:
                completed.add(task.number, record.first, record.stop)
                kept.append(record)
        if self._options.hdf5_compression:
            kept = self._leave_out_packed(by_name, completed, kept)
        if n_stale:
            logger.warning(
                "%d completion records do not fit the files or the input any more: their "
                "particles are extracted again",
                n_stale,
            )
        return completed, kept

    def _is_chosen(self, tomogram: str) -> bool:
        """Return whether a tomogram is one that this run may do; results of others stay."""
        return self._options.only_tomogram in (None, tomogram)

    def _unwanted_containers(self) -> list[str]:
        """Return the tomograms whose containers go before this run begins."""
        if self._options.hdf5 and not self._options.overwrite:
            return []
        return [name for name in self.containers.tomograms() if self._is_chosen(name)]

    def _leave_out_packed(
        self, by_name: dict[str, Task], completed: Completed, kept: list[Record]
    ) -> list[Record]:
        """Return the records without those of tomograms that are done again as a whole.

        Particles are missing there, and nothing can be written to a container once it is
        compressed.
        """
        again = {
            name
            for name, task in by_name.items()
            if completed.missing(task) and not self.containers.can_continue(name)
        }
        for name in again:
            completed.ranges.pop(by_name[name].number)
        self._obsolete += [record for record in kept if record.tomogram in again]
        return [record for record in kept if record.tomogram not in again]

    def begin(self) -> None:
        """Remove what is obsolete; note first what the new results are made with.

        Tables go before the images that they name: a kill leaves no table of images that are gone.
        """
        if writes_records(self._options):
            self.records.write_job(describe_job(self._options))
        self._remove_tables()
        self._remove_obsolete()
        for tomogram in self._unwanted_containers():
            self.containers.remove(tomogram)
        if self._options.overwrite:
            ReportStore(self._path).remove(self._options.only_tomogram)
        self.remove_temporary_files()

    def _remove_tables(self) -> None:
        """Remove the tables of all particles, which are stale until everything is done again."""
        has_others = not all(map(self._is_chosen, self.records.tomograms()))
        if has_others and (self._path / "particles.star").exists():
            logger.warning(
                "particles.star will hold %s alone; a run with --only_do_unfinished and without "
                "--only_tomogram merges all tomograms again",
                self._options.only_tomogram,
            )
        for name in TOP_FILES:
            if name != "note.txt" or self._options.pipeline_control is None:  # else RELION's own
                (self._path / name).unlink(missing_ok=True)
        for path in (self._path / POSITIONS_FOLDER).rglob("*.star"):
            path.unlink()
        for name in DIALECT_FOLDERS.values():
            for pattern in ("*.star", "tilt_series/**/*.star"):
                for path in list((self._path / name).glob(pattern)):
                    path.unlink()

    def _remove_obsolete(self) -> None:
        """Remove obsolete records behind those of their files that nothing else has.

        Without `--overwrite` what this run makes again stays until then: all is replaced at once.
        Records of `--no_mrc` name no files: of their particles what `unpack` has made goes.
        """
        if not self._obsolete:
            return
        again = () if self._options.overwrite else self._options.image_suffixes
        planned = {stem for task in self._tasks for stem in task.stems} if again else set()
        elsewhere = {stem for record in self._staying for stem in record.stems}
        for record in self._obsolete:
            stems = [stem for stem in record.stems if stem not in elsewhere]
            for stem in stems:
                for suffix in record.suffixes:
                    if suffix not in again or stem not in planned:
                        (self._path / particle_file(stem, suffix)).unlink(missing_ok=True)
            if not record.suffixes:
                self.containers.remove_unpacked(stems, self.containers.suffixes(record.tomogram))
            self.records.remove(record)

    def settle_containers(
        self,
        tomogram_set: TomogramSet,
        tasks: tuple[Task, ...],
        completed: Completed,
        threads: int,
        stopped: Callable[[], bool],
    ) -> bool:
        """Bring each container where its completion records say that it belongs.

        What `unpack` has made of one that is filled again goes: it would be taken for the new one.

        Parameters
        ----------
        tomogram_set : TomogramSet
        tasks : tuple of Task
            Whole tasks.
        completed : Completed
        threads : int
            That compress containers, where they are to be compressed.
        stopped : callable
            True once there is no time left for that.

        Returns
        -------
        bool
            False where it was stopped.
        """
        all_there = True
        for task in tasks:
            name, missing = tomogram_set.tomograms[task.tomogram].name, completed.missing(task)
            if missing and self._options.no_mrc:
                self.containers.remove_unpacked(task.stems, self._options.unpacked_suffixes)
            if missing == ((0, len(task)),):
                self.containers.remove(name)
            elif missing:
                self.containers.reopen(name)
            else:
                all_there &= self.containers.finish(name, threads, stopped)
        return all_there

    def _find_trusted(
        self, records: list[Record], by_name: dict[str, Task], fingerprints: dict[int, str]
    ) -> list[bool]:
        """Return whether each record can be trusted; those of no task cannot."""

        def is_trusted(record: Record) -> bool:
            task = by_name.get(record.tomogram)
            return task is not None and self._trusted(record, task, fingerprints[task.number])

        with ThreadPoolExecutor(_LOOKING_THREADS) as pool:
            return list(pool.map(is_trusted, records))

    def _trusted(self, record: Record, task: Task, fingerprint: str) -> bool:
        return (
            record.fingerprint == fingerprint
            and 0 <= record.first < record.stop <= len(task)
            and record.stems == task.stems[record.first : record.stop]
            and record.suffixes == self._options.image_suffixes
            and self.records.is_intact(record, with_sums=self._options.makes_sums)
            and (
                not self._options.hdf5
                or self.containers.is_intact(record.tomogram, record.fingerprint)
            )
        )

    def remove_temporary_files(self) -> None:
        """Remove what a killed run or rank left half-written; nobody else may be writing."""
        dialects = DIALECT_FOLDERS.values()
        for name in ("Subtomograms", FOLDER, REPORT_FOLDER, POSITIONS_FOLDER, *dialects):
            for path in (self._path / name).rglob(TEMPORARY_PATTERN):
                path.unlink(missing_ok=True)
        for path in self._path.glob(TEMPORARY_PATTERN):
            path.unlink(missing_ok=True)

    def check_space(self, n_bytes: int) -> None:
        """Refuse to start where the file system has less free than will be written.

        Raises
        ------
        InputError
        """
        free = shutil.disk_usage(self._path).free
        free += sum(self.records.sums_size(record) for record in self._obsolete)
        if self._options.overwrite:
            free += sum(size for record in self._obsolete for size in record.sizes)
            free += self.containers.disk_bytes(self._unwanted_containers())
        elif n_bytes > free:  # else it does not matter, and there may be many files
            free += self._bytes_replaced()
        if n_bytes > free and not self._options.ignore_disk_space:
            raise InputError(
                f"Disk space in {self._options.output}: expected {bytes_text(n_bytes)} free, "
                f"found {bytes_text(free)}. Make room, use --float16 or --stack2d, or start with "
                "--ignore_disk_space."
            )

    def _bytes_replaced(self) -> int:
        """Return the bytes of images that are made again, or go, one after the other."""
        n_bytes = 0
        for record in self._obsolete:
            for stem in record.stems:
                for suffix in record.suffixes:
                    with contextlib.suppress(OSError):  # gone already: that is why it is made again
                        n_bytes += (self._path / particle_file(stem, suffix)).stat().st_size
        return n_bytes

    def join_records(self, tomogram_set: TomogramSet, tasks: tuple[Task, ...]) -> list[Record]:
        """Replace the records of each finished tomogram by one, the same for any number of ranks.

        Returns
        -------
        list of Record
            One a task, in order.
        """
        joined = []
        for task in tasks:
            parts = self._await_records(tomogram_set.tomograms[task.tomogram].name, len(task))
            joined.append(parts[0] if len(parts) == 1 else self._join(parts))
        return joined

    def _await_records(self, tomogram: str, n_particles: int) -> list[Record]:
        """Return the records of a finished tomogram, which together cover each particle once.

        What another node wrote may take a moment to show on a network file system.
        """
        deadline = time.monotonic() + RECORDS_APPEAR
        while True:
            parts = sorted(self.records.read_tomogram(tomogram), key=lambda part: part.first)
            edges = [0, *(part.stop for part in parts)]
            if edges[-1] == n_particles and [p.first for p in parts] == edges[:-1]:
                return parts
            if time.monotonic() > deadline:
                raise OutputError(
                    f"Completion records of {tomogram} in {self._path / FOLDER}: expected all of "
                    f"particles 0 to {n_particles}, found "
                    f"{', '.join(f'{p.first} to {p.stop}' for p in parts) or 'none'}. Start again "
                    "with --only_do_unfinished"
                )
            time.sleep(0.5)

    def _join(self, parts: list[Record]) -> Record:
        whole = dataclasses.replace(
            parts[0],
            stop=parts[-1].stop,
            stems=tuple(stem for part in parts for stem in part.stems),
            sizes=tuple(size for part in parts for size in part.sizes),
            n_clipped=sum(part.n_clipped for part in parts),
            n_not_finite=sum(part.n_not_finite for part in parts),
        )
        sums = {}
        if self._options.makes_sums:
            sums = add_up(self.records.read_sums(part) for part in parts)
        self.records.write(whole, sums)
        for part in parts:
            self.records.remove(part)
        return whole

    def forget_range(self, tomogram: str, first: int, stop: int) -> None:
        """Remove the records inside a range that will be done again."""
        for record in self.records.read_tomogram(tomogram):
            if first <= record.first and record.stop <= stop:
                self.records.remove(record)


def _whole_first(record: Record) -> tuple[str, int]:
    """Sort key: the records of a tomogram, the longest first."""
    return record.tomogram, record.first - record.stop
