"""Tomogram sets in the layouts of RELION 5 and 4 (spec 1.3)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from relion_pseudosubtomo import labels
from relion_pseudosubtomo.errors import InputError
from relion_pseudosubtomo.findings import Findings, list_first
from relion_pseudosubtomo.io.columns import numbers, texts
from relion_pseudosubtomo.io.frame_checks import check_frames
from relion_pseudosubtomo.io.mrc import MrcHeader, image_path, read_headers
from relion_pseudosubtomo.io.star import StarFile, StarTable, read_star, read_stars
from relion_pseudosubtomo.io.tilt_images import Headers, TiltSeries, check_images, list_frames
from relion_pseudosubtomo.io.tilt_series import has_matrices, read_deformation, read_projections
from relion_pseudosubtomo.io.tomogram_table import GlobalTable, read_global_table
from relion_pseudosubtomo.model import Deformation, Tomogram, TomogramSet
from relion_pseudosubtomo.options import JobOptions

Floats = NDArray[np.float64]

#: Columns of the tilt tables that are used; reading only them is faster.
_TILT_LABELS = frozenset(
    (
        labels.MICROGRAPH_NAME,
        labels.PRE_EXPOSURE,
        labels.X_TILT,
        labels.Y_TILT,
        labels.Z_ROT,
        labels.X_SHIFT,
        labels.Y_SHIFT,
        *labels.PROJECTION_ROWS,
        labels.DEFOCUS_U,
        labels.DEFOCUS_V,
        labels.DEFOCUS_ANGLE,
        labels.CTF_SCALE,
        labels.CTF_BFACTOR,
        labels.PHASE_SHIFT,
        labels.DEFORMATION_COEFFICIENTS,
        labels.NOMINAL_TILT,
    )
)

#: Differences of the reconstructions' binning that do not count (spec 2.11).
_BINNING_TOLERANCE = 0.01


def read_tomogram_set(
    path: str, findings: Findings, *, wanted: set[str] | None, options: JobOptions
) -> TomogramSet | None:
    """Read a tomogram set with the tilt tables and image headers that are needed.

    Parameters
    ----------
    path : str
        The STAR file of the set.
    findings : Findings
        Gets everything that is wrong or doubtful.
    wanted : set of str or None
        Names of the tomograms that own particles; only their values, tilt tables and images are
        read and checked. None for all.
    options : JobOptions
        The job: `real_subtomo` needs the reconstructed volumes too.

    Returns
    -------
    TomogramSet or None
        None where not even the names can be read. A tomogram that is not wanted, or cannot be
        read, has no frames and no numbers, but its names.
    """
    star = read_star(path, findings)
    if star is None:
        return None
    warn_of_odd_sizes = not options.exact_centre
    values = read_global_table(star, wanted, findings, warn_of_odd_sizes=warn_of_odd_sizes)
    if values is None:
        return None
    return _Reader(star, values, options, findings).read()


class _Reader:
    """Reads the wanted tomograms of one set."""

    def __init__(
        self, star: StarFile, values: GlobalTable, options: JobOptions, findings: Findings
    ) -> None:
        self.star = star
        self.values = values
        self.options = options
        self.findings = findings
        self.tilt_files: dict[str, StarFile | None] = {}
        self.least_size = options.window if options.is_window_possible else 0
        self.volumes: dict[int, tuple[str, ...]] = {}
        self.binning: Floats | None = None
        self.failed: dict[str, str] = {}
        self.without_ctf_scale: set[str] = set()

    def read(self) -> TomogramSet:
        """Return the whole set: all tables first, then all headers at once, then the rest."""
        rows = [int(row) for row in np.flatnonzero(self.values.is_wanted)]
        paths = (path for row in rows if (path := self.values.tilt_file[row]) is not None)
        self.tilt_files = read_stars(paths, self.findings, _TILT_LABELS)
        series = {row: s for row in rows if (s := self._read_series(row)) is not None}
        headers = read_headers(frame.path for s in series.values() for frame in s.frames)
        self._warn_of_global_rotation(series.values())
        if self.options.real_subtomo:
            self._read_volumes(rows)
        tomograms = {row: self._build(row, s, headers) for row, s in series.items()}
        return TomogramSet(
            self.star.path,
            tuple(
                tomograms.get(row) or _tomogram_without_data(name, group or name)
                for row, (name, group) in enumerate(
                    zip(self.values.names, self.values.optics_group_name, strict=True)
                )
            ),
            self.failed,
            frozenset(self.without_ctf_scale),
        )

    def _read_series(self, row: int) -> TiltSeries | None:
        table = self._find_tilt_table(row)
        if table is None:
            return None
        name, stack = self.values.names[row], self.values.stack[row]
        count = self.values.frame_count[row]
        if stack is not None and np.isfinite(count) and count != table.n_rows:
            self.findings.error(
                "frame-count",
                labels.FRAME_COUNT,
                file=self.star.path,
                tomogram=name,
                expected=f"{table.n_rows}, the rows of its tilt table",
                found=f"{count:g}",
            )
        return list_frames(name, table, stack, self.findings)

    def _find_tilt_table(self, row: int) -> StarTable | None:
        name, path = self.values.names[row], self.values.tilt_file[row]
        star = self.star if path is None else self.tilt_files[path]
        if star is None:
            return None
        table = star.tables.get(name)
        if table is None and path is not None and len(star.tables) == 1:
            table = next(iter(star.tables.values()))
            self.findings.warning(
                "table-name",
                "name of the tilt table",
                file=star.path,
                expected=f"data_{name}",
                found=f"data_{table.name}",
            )
        if table is None:
            own_file = "" if path is not None else f", or a file as {labels.TILT_SERIES_STAR_FILE}"
            self.findings.error(
                "missing-table",
                "no tilt table",
                file=star.path,
                tomogram=name,
                expected=f"a table data_{name}{own_file}",
            )
        return table

    def _warn_of_global_rotation(self, series: Iterable[TiltSeries]) -> None:
        if self.values.z_rot is None:
            return
        names = [
            s.tomogram
            for s in series
            if not has_matrices(s.table) and labels.Z_ROT not in s.table.columns
        ]
        if names:
            self.findings.warning(
                "global-rotation",
                f"{labels.Z_ROT} of the global table used",
                file=self.star.path,
                tomogram=list_first(names),
                expected=f"{labels.Z_ROT} in the tilt table",
            )

    def _read_volumes(self, rows: list[int]) -> None:
        """Check the binning and the files of the reconstructed volumes (spec 2.11)."""
        table, findings = self.values.table, self.findings
        self.binning = numbers(table, labels.TOMOGRAM_BINNING, findings, rows=self.values.is_wanted)
        known = [self.binning[row] for row in rows if np.isfinite(self.binning[row])]
        if known and max(known) - min(known) > _BINNING_TOLERANCE:
            findings.error(
                "tomogram-binning",
                labels.TOMOGRAM_BINNING,
                file=table.path,
                table=table.name,
                expected="the same for all tomograms",
                found=f"{min(known):g} to {max(known):g}",
            )
        if known and min(known) <= 0:
            findings.error(
                "bad-value",
                labels.TOMOGRAM_BINNING,
                file=table.path,
                table=table.name,
                expected="more than 0",
                found=f"{min(known):g}",
            )
        self.volumes = {row: self._list_volumes(row) for row in rows}
        headers = read_headers(path for paths in self.volumes.values() for path in paths)
        for row, paths in self.volumes.items():
            self._check_volumes(self.values.names[row], [headers[path] for path in paths])

    def _list_volumes(self, row: int) -> tuple[str, ...]:
        table = self.values.table
        whole, half1, half2 = (
            texts(table, label)[row]
            for label in (labels.RECONSTRUCTED_TOMOGRAM, *labels.RECONSTRUCTED_HALVES)
        )
        if whole is not None:
            return (image_path(whole),)
        if half1 is not None and half2 is not None:
            return image_path(half1), image_path(half2)
        self.findings.error(
            "missing-value",
            "no reconstructed volume",
            file=table.path,
            table=table.name,
            row=row + 1,
            expected=f"{labels.RECONSTRUCTED_TOMOGRAM}, "
            f"or {' and '.join(labels.RECONSTRUCTED_HALVES)}",
        )
        return ()

    def _check_volumes(self, name: str, headers: list[MrcHeader | InputError]) -> None:
        for header in headers:
            if isinstance(header, InputError):
                self.findings.error(
                    "volume-unreadable",
                    f"reconstructed volume not readable ({header})",
                    file=self.star.path,
                    tomogram=name,
                )
        good = [header for header in headers if isinstance(header, MrcHeader)]
        sizes = [f"{header.nx} x {header.ny} x {header.nz}" for header in good]
        if len(set(sizes)) > 1:
            self.findings.error(
                "image-size",
                f"size of reconstructed volume {good[1].path}",
                file=self.star.path,
                tomogram=name,
                expected=f"{sizes[0]} as {good[0].path}",
                found=sizes[1],
            )

    def _build(self, row: int, series: TiltSeries, headers: Headers) -> Tomogram | None:
        """Return a tomogram, or None where its images cannot be used."""
        values, table, findings = self.values, series.table, self.findings
        pixel_size = float(values.pixel_size[row])
        image_size = self._check_images(series, headers, pixel_size)
        projections = read_projections(
            table,
            None if values.z_rot is None else float(values.z_rot[row]),
            pixel_size,
            image_size or (0, 0),
            values.size_xyz[row],
            findings,
            real_halves=self.options.exact_centre,
        )
        if image_size is None and not has_matrices(table):
            projections[:, :2, 3] = np.nan  # shifts are from the centres of the images
        if labels.CTF_SCALE not in table.columns:
            self.without_ctf_scale.add(values.names[row])
        tomogram = Tomogram(
            name=values.names[row],
            size_xyz=values.size_xyz[row],
            pixel_size=pixel_size,
            hand=float(values.hand[row]),
            voltage=float(values.voltage[row]),
            spherical_aberration=float(values.spherical_aberration[row]),
            amplitude_contrast=float(values.amplitude_contrast[row]),
            optics_group_name=values.optics_group_name[row] or values.names[row],
            defocus_slope=float(values.defocus_slope[row]),
            bfactor_per_dose=float(values.bfactor_per_dose[row]),
            projections=projections,
            pre_exposure=numbers(table, labels.PRE_EXPOSURE, findings),
            defocus_u=numbers(table, labels.DEFOCUS_U, findings),
            defocus_v=numbers(table, labels.DEFOCUS_V, findings),
            defocus_angle=numbers(table, labels.DEFOCUS_ANGLE, findings),
            ctf_scale=numbers(table, labels.CTF_SCALE, findings, default=1.0),
            ctf_bfactor=numbers(table, labels.CTF_BFACTOR, findings, default=0.0),
            phase_shift=numbers(table, labels.PHASE_SHIFT, findings, default=0.0),
            frames=series.frames,
            image_size_xy=image_size or (0, 0),
            deformation=self._read_deformation(row, table),
            nominal_tilt=self._read_nominal_tilt(table),
            reconstructions=self.volumes.get(row, ()),
            tomogram_binning=None if self.binning is None else float(self.binning[row]),
        )
        check_frames(tomogram, table, findings)
        return tomogram if image_size or tomogram.name in self.failed else None

    def _check_images(
        self, series: TiltSeries, headers: Headers, pixel_size: float
    ) -> tuple[int, int] | None:
        """Return the image size; with `--allow_failures` bad images fail the tomogram alone."""
        found = Findings()
        size = check_images(series, headers, pixel_size, self.least_size, found)
        if self.options.allow_failures and found.errors:
            self.failed[series.tomogram] = "; ".join(error.message for error in found.errors)
            found = found.as_warnings()
        self.findings.extend(found)
        return size

    def _read_deformation(self, row: int, table: StarTable) -> Deformation | None:
        kind = self.values.deformation_kind[row]
        if kind is None:
            if labels.DEFORMATION_COEFFICIENTS in table.columns:
                self.findings.warning(
                    "deformation-ignored",
                    f"{labels.DEFORMATION_COEFFICIENTS} not used",
                    file=table.path,
                    table=table.name,
                    expected=f"{labels.DEFORMATION_TYPE} in the global table",
                )
            return None
        grid_x, grid_y = self.values.deformation_grid_xy[row]
        return read_deformation(table, kind, (int(grid_x), int(grid_y)), self.findings)

    def _read_nominal_tilt(self, table: StarTable) -> Floats | None:
        """Return the stage tilts, which only true subtomograms need."""
        if not self.options.real_subtomo:
            return None
        return numbers(table, labels.NOMINAL_TILT, self.findings)


def _tomogram_without_data(name: str, optics_group_name: str) -> Tomogram:
    nothing = np.empty(0)
    return Tomogram(
        name=name,
        size_xyz=np.full(3, np.nan),
        pixel_size=np.nan,
        hand=np.nan,
        voltage=np.nan,
        spherical_aberration=np.nan,
        amplitude_contrast=np.nan,
        optics_group_name=optics_group_name,
        defocus_slope=np.nan,
        bfactor_per_dose=np.nan,
        projections=np.empty((0, 4, 4)),
        pre_exposure=nothing,
        defocus_u=nothing,
        defocus_v=nothing,
        defocus_angle=nothing,
        ctf_scale=nothing,
        ctf_bfactor=nothing,
        phase_shift=nothing,
        frames=(),
        image_size_xy=(0, 0),
    )
