"""What the user asked for, checked: the frozen options of one job."""

from __future__ import annotations

import math
from dataclasses import dataclass

from relion_pseudosubtomo.findings import Findings

#: Samples that a window needs at least where tilt images are binned for it (four times half the
#: length of the filter of `core.prebin`), and the largest factor, that of the longest filter.
_PREBIN_SAMPLES = 14
_MOST_PREBIN = 16

#: Less than this from a whole number of pixels is one.
_WHOLE_NUMBER = 1e-6

#: Unbinned pixels by which a window may differ from b s without a word: what is left of centre and
#: scale would be shown as none.
_NEGLIGIBLE = 1e-3

#: Box sizes that differ by so much at most are near.
_NEAR = 32

#: Pixels along an axis that the header of an MRC file can tell.
_LARGEST_IMAGE = 2**31 - 1

#: Dialects of `--for`, and whether each reads 2D stacks; else it reads 3D pseudo-subtomograms.
DIALECTS = {"relion4": False, "tomodrgn": True, "cryodrgn": True}

#: Everything a run writes into the output directory itself.
TOP_FILES = (
    "particles.star",
    "particles_repaired.star",
    "dropped.star",
    "optimisation_set.star",
    "motion.star",
    "renamed_particles.star",
    "particles.h5",
    "particles_for_class2d.star",
    "sum_data.mrc",
    "sum_weight.mrc",
    "sum_div.mrc",
    "average.mrc",
    "average_half1.mrc",
    "average_half2.mrc",
    "average_fsc.star",
    "note.txt",
    "run_summary.json",
    "report.html",
)

#: The dialects' folders in the output directory.
DIALECT_FOLDERS = {name: f"for_{name}" for name in DIALECTS}

#: Images that dialects have of their own, as suffixes of `particle_file`: stacks of all tilts, with
#: zeros where the particle is not visible, and stacks that are not multiplied by the CTF.
ALL_TILTS = f"{DIALECT_FOLDERS['tomodrgn']}/_alltilts.mrcs"
WITHOUT_CTF = f"{DIALECT_FOLDERS['cryodrgn']}/_noctf.mrcs"

#: Bytes that a chunk of an HDF5 file can have.
LARGEST_CHUNK = 2**32 - 1

#: Particles in hand for each thread that compresses: enough that none waits, few enough to hold in
#: memory.
COMPRESSED_IN_HAND = 2

#: Highest level of `--hdf5_compression`, that of gzip.
_HIGHEST_COMPRESSION = 9

#: Smallest box that has a shell besides the mean and the Nyquist frequency.
_LEAST_AVERAGE = 4


@dataclass(frozen=True)
class JobOptions:
    """Options of an extraction, named as on the command line (spec 5).

    Lengths: `box` and `crop` in binned pixels, `cone_sig0` in voxels, `taper` in binned pixels.
    """

    output: str
    box: int
    crop: int
    binning: float = 1.0
    optimisation_set: str | None = None
    particles: str | None = None
    tomograms: str | None = None
    trajectories: str | None = None
    stack2d: bool = False
    float16: bool = False
    max_dose: float = -1.0
    min_frames: int = 1
    common_tilts: int | None = None
    max_missing: int | None = None
    cone_weight: bool = False
    cone_angle: float = 10.0
    cone_sig0: float = 2.0
    whiten: bool = False
    no_ctf: bool = False
    no_ic: bool = False
    no_circle_crop: bool = False
    circle_precrop: bool = False
    grid_precorr: bool = False
    cutoff_fract: float = 0.01
    dont_apply_offsets: bool = False
    apply_orientations: bool = False
    ctf: bool = False
    multi: bool = False
    div: bool = False
    nrm: bool = False
    no_comb: bool = False
    snr: float = -1.0
    taper: float = 5.0
    no_center: bool = False
    sum: bool = False
    average: bool = False
    no_writing: bool = False
    dialects: tuple[str, ...] = ()
    hdf5: bool = False
    no_mrc: bool = False
    hdf5_compression: int = 0
    real_subtomo: bool = False
    report: bool = False
    positions2d: bool = False
    exact_centre: bool = False
    prebin: bool = False
    preload: bool = False
    rename_duplicates: bool = False
    threads: int | None = None
    pipeline_control: str | None = None
    only_tomogram: str | None = None
    only_do_unfinished: bool = False
    overwrite: bool = False
    allow_failures: bool = False
    no_split: bool = False
    ignore_disk_space: bool = False
    dry_run: bool = False
    debug: bool = False
    log_level: str = "info"

    @property
    def window(self) -> int:
        """Box in unbinned pixels, `s0` (spec 2)."""
        return math.floor(self.binning * self.box + 0.5)

    @property
    def is_window_possible(self) -> bool:
        """Whether an image could be as large as the window; else `window` may be no number."""
        return abs(self.box) <= _LARGEST_IMAGE and abs(self.binning * self.box) <= _LARGEST_IMAGE

    @property
    def has_fractional_window(self) -> bool:
        """Whether b s is no whole number, so that the window is a little larger or smaller."""
        return abs(self.window - self.binning * self.box) >= _WHOLE_NUMBER

    @property
    def window_reach(self) -> float:
        """Unbinned pixels by which the window of a visible particle may reach past an image edge.

        The cropped box lies within the image (spec 2.3).
        """
        return (self.window - self.binning * self.crop) / 2

    @property
    def prebin_factor(self) -> int:
        """Integer q by which `--prebin` can make tilt images smaller first; 1 where it cannot.

        The largest that divides the window, leaves a band twice as wide as is kept, and has a
        filter that is short beside the window.
        `--circle_precrop` needs the window's own pixels.
        """
        if self.real_subtomo or self.circle_precrop or self.has_fractional_window:
            return 1
        longest = self.window // _PREBIN_SAMPLES
        factors = range(min(math.floor(self.binning / 2), longest, _MOST_PREBIN), 1, -1)
        return next((q for q in factors if self.window % q == 0), 1)

    @property
    def offsets_applied(self) -> bool:
        """Whether refined offsets move the particle (spec 2.1)."""
        return self.apply_orientations or self.real_subtomo or not self.dont_apply_offsets

    @property
    def is_3d(self) -> bool:
        """Whether 3D pseudo-subtomograms are made."""
        return not (self.stack2d or self.real_subtomo)

    @property
    def is_premultiplied(self) -> bool:
        """Whether the images are called multiplied by the CTF, as RELION does (spec 3.3)."""
        return not (self.real_subtomo or (self.stack2d and self.no_ctf))

    @property
    def makes_sums(self) -> bool:
        """Whether anything is added up over all particles."""
        return self.sum or self.average

    @property
    def image_suffixes(self) -> tuple[str, ...]:
        """Suffixes of the MRC files a particle gets (spec 3.1), the image first.

        `particle_file` makes paths of them; those of dialects come last.
        """
        return () if self.no_mrc else self.unpacked_suffixes

    @property
    def unpacked_suffixes(self) -> tuple[str, ...]:
        """Suffixes of the MRC files without `--no_mrc`, or once `unpack` was used."""
        return (*self.result_suffixes, *self.dialect_suffixes)

    @property
    def dialect_suffixes(self) -> tuple[str, ...]:
        """Suffixes of the images that dialects have of their own."""
        own = {
            ALL_TILTS: "tomodrgn" in self.dialects,
            WITHOUT_CTF: "cryodrgn" in self.dialects and not self.no_ctf,
        }
        return tuple(suffix for suffix, on in own.items() if on)

    @property
    def may_split(self) -> bool:
        """Whether several ranks may share a tomogram: its container has one writer (spec 3.5)."""
        return not (self.no_split or self.hdf5)

    @property
    def result_suffixes(self) -> tuple[str, ...]:
        """What is made of a particle, by the suffixes of MRC files (spec 3.1), the image first."""
        if self.no_writing:
            return ()
        if self.stack2d:
            return ("_stack2d.mrcs",)
        if self.real_subtomo:
            return ("_data.mrc",)
        wanted = (
            ("_data.mrc", True),
            ("_weights.mrc", not self.no_comb),
            ("_CTF2.mrc", self.ctf),
            ("_multi.mrc", self.multi),
            ("_div.mrc", self.div),
            ("_data_nrm.mrc", self.nrm),
            ("_CTF2_nrm.mrc", self.nrm),
        )
        return tuple(suffix for suffix, on in wanted if on)


def particle_file(stem: str, suffix: str) -> str:
    """Return the path of a particle's file inside the output directory.

    Parameters
    ----------
    stem : str
        Path without suffix.
    suffix : str
        One of `JobOptions.image_suffixes`; a folder before it is the one that the path is in.
    """
    folder, slash, ending = suffix.rpartition("/")
    return f"{folder}{slash}{stem}{ending}"


def check_options(options: JobOptions) -> Findings:
    """Return what is wrong, or worth a warning, in the options alone (spec 1.6, 2, 2.12)."""
    findings = Findings()
    _check_numbers(options, findings)
    _check_combinations(options, findings)
    _check_dialects(options, findings)
    if options.hdf5:
        _check_chunks(options, findings)
    if options.average:
        _check_average(options, findings)
    if not findings.errors:
        _check_window(options, findings)
    return findings


def _check_numbers(options: JobOptions, findings: Findings) -> None:
    for name, size in (("--b", options.box), ("--crop", options.crop)):
        if size < 2 or size % 2:
            findings.error("bad-box", name, expected="an even number of 2 or more", found=size)
    if options.crop > options.box:
        findings.error(
            "bad-box", "--crop", expected=f"at most --b ({options.box})", found=options.crop
        )
    at_least = (
        ("--bin", options.binning, 1.0),
        ("--min_frames", options.min_frames, 1),
        ("--cutoff_fract", options.cutoff_fract, 0.0),
        ("--taper", options.taper, 0.0),
        ("--cone_sig0", options.cone_sig0, 0.0),
    )
    for name, value, lowest in at_least:
        if not (math.isfinite(value) and value >= lowest):
            findings.error(
                "bad-option", name, expected=f"a number of at least {lowest:g}", found=value
            )
    if math.isfinite(options.binning) and not options.is_window_possible:
        findings.error(
            "bad-option",
            "--b, times --bin",
            expected=f"at most {_LARGEST_IMAGE} unbinned pixels",
            found=f"{options.box} times {options.binning:g}",
        )
    if not 0 < options.cone_angle <= 180:
        findings.error(
            "bad-option", "--cone_angle", expected="degrees in (0, 180]", found=options.cone_angle
        )
    if options.cone_weight and options.cone_sig0 == 0:
        findings.error("bad-option", "--cone_sig0", expected="a number above 0", found=0)
    for name, number in (("--max_dose", options.max_dose), ("--SNR", options.snr)):
        if not math.isfinite(number):
            findings.error("bad-option", name, expected="a number", found=number)
    for name, count, least in (
        ("--common_tilts", options.common_tilts, 1),
        ("--max_missing", options.max_missing, 0),
    ):
        if count is not None and count < least:
            findings.error("bad-option", name, expected=f"{least} or more", found=count)
    if not 0 <= options.hdf5_compression <= _HIGHEST_COMPRESSION:
        findings.error(
            "bad-option",
            "--hdf5_compression",
            expected=f"a level of 0 to {_HIGHEST_COMPRESSION}",
            found=options.hdf5_compression,
        )
    if options.threads is not None and options.threads < 1:
        findings.error("bad-option", "--j", expected="1 or more threads", found=options.threads)


def _check_combinations(options: JobOptions, findings: Findings) -> None:
    only_3d = {
        "--cone_weight": options.cone_weight,
        "--ctf": options.ctf,
        "--multi": options.multi,
        "--div": options.div,
        "--nrm": options.nrm,
        "--no_comb": options.no_comb,
        "--sum": options.sum,
    }
    for mode, on in (("--stack2d", options.stack2d), ("--real_subtomo", options.real_subtomo)):
        for name, wanted in only_3d.items():
            if on and wanted:
                findings.error("option-combination", f"{mode} together with {name}, which needs 3D")
    if options.common_tilts is not None and options.common_tilts < options.min_frames:
        findings.error(
            "option-combination",
            "--common_tilts smaller than --min_frames: no particle would be left",
        )
    if options.stack2d and options.real_subtomo:
        findings.error("option-combination", "--stack2d together with --real_subtomo")
    for name, wanted, reason in (
        ("--exact_centre", options.exact_centre, "boxes are cut at whole voxels"),
        ("--prebin", options.prebin, "no tilt images are read"),
        ("--preload", options.preload, "no tilt images are read"),
    ):
        if options.real_subtomo and wanted:
            findings.error("option-combination", f"--real_subtomo together with {name}: {reason}")
    for name, wanted in (
        ("--real_subtomo", options.real_subtomo),
        ("--report", options.report),
        ("--positions2d", options.positions2d),
        ("--hdf5", options.hdf5),
    ):
        if wanted and options.no_writing:
            findings.error("option-combination", f"{name} together with --no_writing")
    if options.no_mrc and not options.hdf5:
        findings.error("option-combination", "--no_mrc without --hdf5: no image would be written")
    if options.hdf5_compression and not options.hdf5:
        findings.error(
            "option-combination",
            "--hdf5_compression without --hdf5: MRC files are not compressed",
        )
    if options.only_do_unfinished and options.overwrite:
        findings.error(
            "option-combination",
            "--only_do_unfinished together with --overwrite: the first keeps what is done, the "
            "second removes it",
        )


def _check_dialects(options: JobOptions, findings: Findings) -> None:
    for name in options.dialects:
        reasons = []
        if DIALECTS[name] and not options.stack2d:
            reasons.append(f"without --stack2d: {name} reads 2D stacks")
        elif not DIALECTS[name] and not options.is_3d:
            mode = "--stack2d" if options.stack2d else "--real_subtomo"
            reasons.append(f"together with {mode}: {name} reads 3D pseudo-subtomograms")
        if options.no_writing or options.no_mrc:
            mode = "--no_mrc" if options.no_mrc else "--no_writing"
            reasons.append(f"together with {mode}: {name} reads MRC files")
        for reason in reasons:
            findings.error("option-combination", f"--for {name} {reason}")


def _check_chunks(options: JobOptions, findings: Findings) -> None:
    n, item = options.crop, 2 if options.float16 else 4
    if options.is_3d and 2 * n * n * (n // 2 + 1) * item > LARGEST_CHUNK:
        findings.error(
            "bad-box", "--crop", expected="volumes of less than 4 GiB with --hdf5", found=n
        )


def _check_average(options: JobOptions, findings: Findings) -> None:
    for name, wanted, reason in (
        ("--real_subtomo", options.real_subtomo, "no tilt images are read"),
        ("--no_ctf", options.no_ctf, "an average needs the CTF"),
        ("--no_circle_crop", options.no_circle_crop, "the background would hide the particle"),
        ("--grid_precorr", options.grid_precorr, "the average makes that correction itself"),
        ("--dont_apply_offsets", not options.offsets_applied, "the offsets would blur it"),
    ):
        if wanted:
            findings.error("option-combination", f"--average together with {name}: {reason}")
    if options.crop < _LEAST_AVERAGE:
        findings.error(
            "bad-box",
            "--crop",
            expected=f"{_LEAST_AVERAGE} or more with --average",
            found=options.crop,
        )


def _check_window(options: JobOptions, findings: Findings) -> None:
    if options.real_subtomo or options.exact_centre:
        return
    exact, window = options.binning * options.box, options.window
    what = f"--b {options.box} at --bin {options.binning:g} is"
    is_odd, is_whole = window % 2 == 1, abs(window - exact) < _NEGLIGIBLE
    if is_odd:
        findings.warning(
            "odd-window",
            f"{what} a window of {window} unbinned pixels, an odd number: RELION's own images are "
            "displaced and distorted there, these are not, so the two differ"
            + (_suggest_boxes(options) if is_whole else ""),
        )
    if is_whole:
        return
    size = f"particles appear at {exact / window:.4f} of their size"
    off_centre = abs(window / (2 * options.binning) - options.box / 2)
    findings.warning(
        "fractional-window",
        f"{what} {exact:.7g} unbinned pixels, cut as {window}: "
        + (size if is_odd else f"as in RELION {size} and {off_centre:.3f} binned pixels off centre")
        + _suggest_boxes(options),
    )


def _suggest_boxes(options: JobOptions) -> str:
    """Return the end of a message that names box sizes with a whole and even window."""
    box, binning, least = options.box, options.binning, options.crop
    good = _nearest_whole_boxes(box, binning, least)
    text = f"; box sizes without this: {', '.join(map(str, good))}" if good else ""
    if any(abs(size - box) <= _NEAR for size in good):
        return text
    best = _best_near_box(box, binning, least)
    if best == box:
        return f"{text}; no box size near it does better"
    rest = _distance_from_even(best * binning)
    return f"{text}; the best near it is {best}, {rest:.3f} unbinned pixels from an even window"


def _nearest_whole_boxes(box: int, binning: float, least: int, reach: int = 200) -> list[int]:
    """Return the even box sizes next to `box`, one below and one above, with b s an even number."""

    def fits(size: int) -> bool:
        return _distance_from_even(size * binning) < _NEGLIGIBLE

    below = next((s for s in range(box - 2, max(least - 1, box - reach), -2) if fits(s)), None)
    above = next((s for s in range(box + 2, box + reach, 2) if fits(s)), None)
    return [size for size in (below, above) if size is not None]


def _best_near_box(box: int, binning: float, least: int) -> int:
    """Return the even box size near `box` whose b s is closest to an even number."""

    def judge(size: int) -> tuple[float, int]:
        return round(_distance_from_even(size * binning), 3), abs(size - box)

    return min(range(max(least, box - _NEAR), box + _NEAR + 1, 2), key=judge)


def _distance_from_even(number: float) -> float:
    return abs(number - 2 * round(number / 2))


def real_box_size(crop: int, binning: float, tomogram_binning: float) -> int:
    """Return d: the cropped box in voxels of the reconstructed volume, made even (spec 2.11)."""
    exact = crop * binning / tomogram_binning
    size = math.floor(exact + 0.5)
    if size % 2:
        size += 1 if exact >= size else -1
    return size
