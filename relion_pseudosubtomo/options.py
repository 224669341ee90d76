"""What the user asked for, checked: the frozen options of one job."""

from __future__ import annotations

import math
from dataclasses import dataclass

from relion_pseudosubtomo.findings import Findings

#: Less than this from a whole number of pixels is one.
_WHOLE_NUMBER = 1e-6


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
    no_writing: bool = False
    real_subtomo: bool = False
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
    def has_fractional_window(self) -> bool:
        """Whether b s is no whole number, so that the window is a little larger or smaller."""
        return abs(self.window - self.binning * self.box) >= _WHOLE_NUMBER

    @property
    def prebin_factor(self) -> int:
        """Integer q by which `--prebin` can make tilt images smaller first; 1 where it cannot.

        The largest that divides the window evenly and leaves a band twice as wide as is kept.
        """
        if self.real_subtomo or self.circle_precrop or self.has_fractional_window:
            return 1
        factors = range(math.floor(self.binning / 2), 1, -1)
        return next((q for q in factors if self.window % (2 * q) == 0), 1)

    @property
    def offsets_applied(self) -> bool:
        """Whether refined offsets move the particle (spec 2.1)."""
        return self.apply_orientations or self.real_subtomo or not self.dont_apply_offsets

    @property
    def is_3d(self) -> bool:
        """Whether 3D pseudo-subtomograms are made."""
        return not (self.stack2d or self.real_subtomo)

    @property
    def image_suffixes(self) -> tuple[str, ...]:
        """Suffixes of the files a particle gets (spec 3.1), the image first."""
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


def check_options(options: JobOptions) -> Findings:
    """Return what is wrong, or worth a warning, in the options alone (spec 1.6, 2, 2.12)."""
    findings = Findings()
    _check_numbers(options, findings)
    _check_combinations(options, findings)
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
    if not 0 < options.cone_angle <= 180:
        findings.error(
            "bad-option", "--cone_angle", expected="degrees in (0, 180]", found=options.cone_angle
        )
    if options.cone_weight and options.cone_sig0 == 0:
        findings.error("bad-option", "--cone_sig0", expected="a number above 0", found=0)
    for name, number in (("--max_dose", options.max_dose), ("--SNR", options.snr)):
        if not math.isfinite(number):
            findings.error("bad-option", name, expected="a number", found=number)
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
    if options.stack2d and options.real_subtomo:
        findings.error("option-combination", "--stack2d together with --real_subtomo")
    if options.real_subtomo and options.exact_centre:
        findings.error(
            "option-combination",
            "--real_subtomo together with --exact_centre: boxes are cut at whole voxels",
        )
    if options.real_subtomo and options.prebin:
        findings.error(
            "option-combination", "--real_subtomo together with --prebin: no tilt images are read"
        )
    if options.real_subtomo and options.preload:
        findings.error(
            "option-combination", "--real_subtomo together with --preload: no tilt images are read"
        )
    if options.real_subtomo and options.no_writing:
        findings.error("option-combination", "--real_subtomo together with --no_writing")


def _check_window(options: JobOptions, findings: Findings) -> None:
    if options.real_subtomo or options.exact_centre:
        return
    exact = options.binning * options.box
    if options.window % 2:
        findings.warning(
            "odd-window",
            f"--b {options.box} at --bin {options.binning:g} is a window of {options.window} "
            "unbinned pixels, an odd number: RELION's own images are displaced and distorted "
            "there, these are not, so the two differ",
        )
        return
    if not options.has_fractional_window:
        return
    good = [str(box) for box in nearest_whole_boxes(options.box, options.binning)]
    findings.warning(
        "fractional-window",
        f"--b {options.box} at --bin {options.binning:g} is {exact:g} unbinned pixels, cut as "
        f"{options.window}: as in RELION particles appear at {exact / options.window:.4f} of their "
        "size "
        f"and {abs(options.window / (2 * options.binning) - options.box / 2):.3f} binned pixels "
        "off centre" + (f"; box sizes without this: {', '.join(good)}" if good else ""),
    )


def nearest_whole_boxes(box: int, binning: float, reach: int = 200) -> list[int]:
    """Return the even box sizes next to `box`, one below and one above, with b s an even number."""

    def fits(size: int) -> bool:
        exact = size * binning
        return abs(exact - 2 * round(exact / 2)) < _WHOLE_NUMBER

    below = next((s for s in range(box - 2, max(0, box - reach), -2) if fits(s)), None)
    above = next((s for s in range(box + 2, box + reach, 2) if fits(s)), None)
    return [size for size in (below, above) if size is not None]


def real_box_size(crop: int, binning: float, tomogram_binning: float) -> int:
    """Return d: the cropped box in voxels of the reconstructed volume, made even (spec 2.11)."""
    exact = crop * binning / tomogram_binning
    size = math.floor(exact + 0.5)
    if size % 2:
        size += 1 if exact >= size else -1
    return size
