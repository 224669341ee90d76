"""All frames of a particle in one call: what the kernels make of them one by one, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from relion_pseudosubtomo.core import kernels, scratch
from relion_pseudosubtomo.core.average import SliceTarget
from relion_pseudosubtomo.core.frame_loop import FrameLoop, Targets
from relion_pseudosubtomo.core.frames import FrameTables, make_frame_tables
from relion_pseudosubtomo.core.inputs import (
    Aberrations,
    ExtractionSettings,
    ParticleView,
    TiltImages,
)
from relion_pseudosubtomo.core.packed import make_packed_volume
from relion_pseudosubtomo.core.prebin import bin_images

if not kernels.IS_COMPILED:
    pytest.skip(
        "no compiled kernels: no C compiler, or their build failed", allow_module_level=True
    )

HEIGHT, WIDTH, N_FRAMES = 150, 140, 11
VISIBLE = np.array([1, 1, 0, 1, 1, 1, 1, 0, 1, 1, 1], dtype=bool)
#: (box, crop, binning, q): even and odd windows, cut at once and in blocks of rows.
SIZES = [
    (24, 16, 2.0, 1),
    (24, 24, 2.0, 1),
    (26, 18, 1.5, 1),
    (96, 40, 4.0, 1),
    (36, 24, 8.0, 2),
    (54, 20, 6.5, 3),
]
SWITCHES: list[dict[str, Any]] = [
    {},
    {"circle_crop": False},
    {"grid_precorr": True, "invert_contrast": False},
    {"apply_ctf": False},
]


@dataclass
class Given:
    """What a loop is given of a tomogram and a particle."""

    images: TiltImages
    tables: FrameTables
    view: ParticleView
    aberrations: Aberrations

    def run(self, loop: FrameLoop, scale: float, targets: Targets) -> int:
        """Run a loop."""
        return loop.run(self.images, self.tables, self.view, self.aberrations, scale, targets)


def make_settings(
    box: int = 24, crop: int = 16, binning: float = 2.0, prebin: int = 1, **changes: Any
) -> ExtractionSettings:
    """Return settings with the window that belongs to box and binning."""
    window = int(np.floor(binning * box + 0.5))
    return ExtractionSettings(box, crop, window, binning, prebin=prebin, **changes)


def make_given(settings: ExtractionSettings, *, all_weights: bool = True, seed: int = 3) -> Given:
    """Return a particle near the middle, and everything that a slice may be multiplied with."""
    rng, ones = np.random.default_rng(seed), np.ones(N_FRAMES)
    s, shape = settings.box, (settings.box // 2 + 1, settings.box)
    pixels = [rng.normal(30, 5, (HEIGHT, WIDTH)).astype(np.float32) for _ in range(N_FRAMES)]
    pixels[4][HEIGHT // 2, WIDTH // 2] = np.nan if settings.prebin == 1 else 0
    images = TiltImages.from_arrays([*pixels[:5], *(p.astype(np.int16) for p in pixels[5:])])
    if settings.prebin > 1:
        made = bin_images(
            images.image_bytes,
            images.modes,
            VISIBLE,
            settings.prebin,
            settings.binning,
            settings.window,
            1,
        )
        images = replace(images, binned=made)
    tables = make_frame_tables(
        box=s,
        binned_pixel_size=1.4 * settings.binning,
        used=VISIBLE,
        dose=3.0 * np.arange(N_FRAMES),
        bfactor_per_dose=0.0,
        ctf_phase=np.tile([0.1, -190.0, 12.0, -210.0, 7e3], (N_FRAMES, 1)),
        wavelength=0.0197,
        ctf_scale=ones,
        ctf_bfactor=20 * ones,
        cutoff=0.01,
        noise=rng.uniform(0.5, 1, (N_FRAMES, *shape)).astype(np.float32) if all_weights else None,
    )
    view = ParticleView(
        VISIBLE,
        rng.uniform(-8, 8, (N_FRAMES, 2)) + np.array([WIDTH, HEIGHT]) / 2,
        rng.uniform(-300, 300, N_FRAMES),
        np.linalg.qr(rng.normal(size=(N_FRAMES, 3, 3)))[0][:, :2],
        np.eye(3),
    )
    odd = np.exp(1j * rng.normal(size=shape)).astype(np.complex64)
    aberrations = Aberrations(rng.normal(size=shape), odd) if all_weights else Aberrations()
    return Given(images, tables, view, aberrations)


def make_targets(settings: ExtractionSettings) -> Targets:
    """Return all targets that the settings allow."""
    n = settings.crop
    average = volume = stack = without_ctf = None
    if settings.average:
        axes = np.linalg.qr(np.random.default_rng(7).normal(size=(N_FRAMES, 3, 3)))[0][:, :2]
        average = SliceTarget(make_packed_volume(n), axes)
    if settings.stack2d:
        stack, without_ctf = np.full((2, VISIBLE.sum(), n, n), np.nan, np.float32)
    else:
        volume = make_packed_volume(n)
    return Targets(volume, average, stack, without_ctf)


def arrays_of(targets: Targets) -> dict[str, NDArray[np.float32]]:
    """Return what there is in the targets."""
    average = None if targets.average is None else targets.average.volume
    found = {
        "volume": targets.volume,
        "average": average,
        "stack": targets.stack,
        "without_ctf": targets.without_ctf,
    }
    return {name: array for name, array in found.items() if array is not None}


def assert_same_targets(
    settings: ExtractionSettings, given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run twice in one call, and once kernel by kernel; compare everything."""
    loop, expected = FrameLoop(settings), make_targets(settings)
    with monkeypatch.context() as patched:
        patched.setattr(kernels, "FrameRunner", None)
        n_bad = given.run(FrameLoop(settings), 0.25, expected)
    for _ in range(2):
        found = make_targets(settings)
        assert given.run(loop, 0.25, found) == n_bad
        for name, array in arrays_of(expected).items():
            np.testing.assert_array_equal(arrays_of(found)[name], array)
            assert array.any()
    assert n_bad == (settings.prebin == 1)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("changes", SWITCHES, ids=str)
@pytest.mark.parametrize("stack2d", [False, True])
def test_one_call_does_what_many_do(
    size: tuple[int, int, float, int],
    changes: dict[str, Any],
    stack2d: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Volumes, averages, images with and without CTF; NaN are counted alike."""
    average = changes.get("circle_crop", True)
    settings = make_settings(*size, stack2d=stack2d, average=average, **changes)
    assert_same_targets(settings, make_given(settings), monkeypatch)


@pytest.mark.parametrize("changes", [{"circle_precrop": True}, {"exact_scale": True}], ids=str)
@pytest.mark.parametrize("stack2d", [False, True])
def test_windows_that_python_makes(
    changes: dict[str, Any], stack2d: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop calls back for each frame, and goes on with what it finds."""
    settings = make_settings(26, 18, 1.3, stack2d=stack2d, **changes)
    assert_same_targets(settings, make_given(settings, all_weights=False), monkeypatch)


def test_a_particle_without_frames() -> None:
    """Nothing is done, and that is no error."""
    settings = make_settings()
    given, targets = make_given(settings), make_targets(settings)
    given.view = replace(given.view, visible=np.zeros(N_FRAMES, dtype=bool))
    assert given.run(FrameLoop(settings), 1.0, targets) == 0
    assert not targets.volume.any()


def test_an_error_of_the_call_back_is_passed_on() -> None:
    """It ends the loop; the next particle is as ever."""
    settings = make_settings(circle_precrop=True)
    given, loop = make_given(settings), FrameLoop(settings)
    spoilt = list(given.images.image_bytes)
    spoilt[3] = np.zeros((HEIGHT, 3), np.uint8)
    bad = replace(given, images=TiltImages(spoilt[:4] + [spoilt[0]] * 7, [1] * N_FRAMES))
    with pytest.raises(ValueError, match="do not fit"):
        bad.run(loop, 1.0, make_targets(settings))
    found, expected = make_targets(settings), make_targets(settings)
    given.run(loop, 1.0, found)
    given.run(FrameLoop(settings), 1.0, expected)
    np.testing.assert_array_equal(found.volume, expected.volume)


@pytest.mark.parametrize("size", [(24, 16, 2.0, 1), (36, 24, 8.0, 2)], ids=str)
def test_an_image_that_is_lost(size: tuple[int, int, float, int], tmp_path: Path) -> None:
    """A mapped image that was truncated is an error; without that frame the particle is made."""
    settings = make_settings(*size)
    given, loop = make_given(settings), FrameLoop(settings)
    path = tmp_path / "image.raw"
    path.write_bytes(given.images.image_bytes[0].tobytes())
    image_bytes = list(given.images.image_bytes)
    image_bytes[0] = np.memmap(path, np.uint8, "r", shape=image_bytes[0].shape).view(np.ndarray)
    mapped = replace(given, images=replace(given.images, image_bytes=image_bytes))
    with path.open("r+b") as file:
        file.truncate(4096)
    with pytest.raises(OSError, match="truncated or lost"):
        mapped.run(loop, 1.0, make_targets(settings))
    visible = VISIBLE & (np.arange(N_FRAMES) > 0)
    mapped.view = replace(given.view, visible=visible)
    targets = make_targets(settings)
    mapped.run(loop, 1.0, targets)
    assert targets.volume.any()


# What does not fit


def run_with(
    changes: dict[str, dict[str, Any]], targets: Targets | None = None, prebin: int = 1
) -> None:
    """Run a loop with attributes of its inputs replaced."""
    settings = make_settings(36, 24, 8.0, prebin) if prebin > 1 else make_settings(average=True)
    given = make_given(settings)
    for name, values in changes.items():
        setattr(given, name, replace(getattr(given, name), **values))
    given.run(FrameLoop(settings), 1.0, targets or make_targets(settings))


def build_with(**changes: Any) -> None:
    """Build a runner for a loop with attributes replaced."""
    loop = FrameLoop(make_settings())
    kernels.FrameRunner(SimpleNamespace(**{**vars(loop), **changes}))


def build_with_window(**changes: Any) -> None:
    """Build a runner for a loop with attributes of its window transform replaced."""
    window = vars(FrameLoop(make_settings()).window)
    build_with(window=SimpleNamespace(**{**window, **changes}))


def other_plan() -> Any:
    """Return a plan between arrays that no loop knows."""
    return FrameLoop(make_settings()).to_columns


def empty(*shape: int, dtype: Any = np.float32) -> NDArray[Any]:
    """Return an array of zeros."""
    return scratch.zeros(shape, dtype)


MISFITS: dict[str, Callable[[], None]] = {
    "kx": lambda: run_with({"tables": {"kx": np.zeros(14)}}),
    "ky": lambda: run_with({"tables": {"ky": np.zeros(25)}}),
    "ctf of other frames": lambda: run_with({"tables": {"ctf_phase": np.zeros((12, 5))}}),
    "ctf": lambda: run_with({"tables": {"ctf_phase": np.zeros((11, 6))}}),
    "gain": lambda: run_with({"tables": {"gain": empty(11, 14, 24)}}),
    "gain of other frames": lambda: run_with({"tables": {"gain": empty(12, 13, 24)}}),
    "noise": lambda: run_with({"tables": {"noise": empty(11, 13, 25)}}),
    "last_x": lambda: run_with({"tables": {"last_x": empty(11, 25, dtype=np.int32)}}),
    "last_x of other frames": lambda: run_with(
        {"tables": {"last_x": empty(12, 24, dtype=np.int32)}}
    ),
    "even": lambda: run_with({"aberrations": {"even_turns": np.zeros((14, 24))}}),
    "odd": lambda: run_with({"aberrations": {"odd_factor": empty(13, 25, dtype=np.complex64)}}),
    "points of other frames": lambda: run_with({"view": {"image_point": np.zeros((12, 2))}}),
    "points in space": lambda: run_with({"view": {"image_point": np.zeros((11, 3))}}),
    "defocus of other frames": lambda: run_with({"view": {"extra_defocus": np.zeros(12)}}),
    "axes of other frames": lambda: run_with({"view": {"slice_axes": np.zeros((12, 2, 3))}}),
    "three axes": lambda: run_with({"view": {"slice_axes": np.zeros((11, 3, 3))}}),
    "more frames": lambda: run_with({"view": {"visible": np.ones(12, dtype=bool)}}),
    "image of no rows": lambda: run_with(
        {"images": {"image_bytes": [np.zeros((0, 4), np.uint8)] * N_FRAMES}}
    ),
    "modes of other frames": lambda: run_with({"images": {"modes": [2] * 12}}),
    "volume of another box": lambda: run_with({}, Targets(volume=make_packed_volume(18))),
    "volume of other values": lambda: run_with({}, Targets(volume=empty(19, 19, 10, 5))),
    "average of another box": lambda: run_with(
        {}, Targets(average=SliceTarget(make_packed_volume(18), np.zeros((11, 2, 3))))
    ),
    "average's axes": lambda: run_with(
        {}, Targets(average=SliceTarget(make_packed_volume(16), np.zeros((12, 2, 3))))
    ),
    "stack of other frames": lambda: run_with({}, Targets(stack=empty(10, 16, 16))),
    "stack of another crop": lambda: run_with({}, Targets(stack=empty(9, 16, 17))),
    "images without CTF of other frames": lambda: run_with(
        {}, Targets(without_ctf=empty(8, 16, 16))
    ),
    "binned images of other frames": lambda: run_with(
        {"images": {"binned": replace(make_given(BINNED).images.binned, samples=[empty(9, 9)])}},
        prebin=2,
    ),
    "binned images that are too small": lambda: run_with(
        {
            "images": {
                "binned": replace(
                    make_given(BINNED).images.binned, samples=[empty(140, 140)] * N_FRAMES
                )
            }
        },
        prebin=2,
    ),
    "images binned by another factor": lambda: run_with(
        {"images": {"binned": replace(make_given(BINNED).images.binned, factor=4)}}, prebin=2
    ),
    "margin of half a sample": lambda: run_with(
        {"images": {"binned": replace(make_given(BINNED).images.binned, margin=301)}}, prebin=2
    ),
    "binned images for a loop of whole ones": lambda: run_with(
        {"images": {"binned": replace(make_given(BINNED).images.binned)}}
    ),
    "whole images for a loop of binned ones": lambda: run_with(
        {"images": {"binned": None}}, prebin=2
    ),
    "loop's gain": lambda: build_with(gain=np.ones(14)),
    "loop's ramp along x": lambda: build_with(ramp_x=empty(14, dtype=np.complex64)),
    "loop's ramp along y": lambda: build_with(ramp_y=empty(25, dtype=np.complex64)),
    "loop's slice": lambda: build_with(slice_fs=empty(13, 25, dtype=np.complex64)),
    "loop's weight": lambda: build_with(weight=empty(13, 25)),
    "loop's rows before the edge": lambda: build_with(edge=-1),
    "loop's rows behind the edge": lambda: build_with(edge=30),
    "loop's pairs": lambda: build_with(pairs_rs=empty(10, 24, dtype=np.complex64)),
    "loop's masked slice": lambda: build_with(masked_fs=empty(13, 25, dtype=np.complex64)),
    "no plan": lambda: build_with(to_rows=None),
    "window's blocks": lambda: build_with_window(rows=empty(47, 48)),
    "window's pixels elsewhere": lambda: build_with_window(rows=empty(48, 48)),
    "window's parts": lambda: build_with_window(parts_fs=empty(48, 1, 23, dtype=np.complex64)),
    "window's factors": lambda: build_with_window(factors=empty(1, 4, 14, 2)),
    "window's columns": lambda: build_with_window(columns=empty(13, 49, dtype=np.complex64)),
    "window's row plan": lambda: build_with_window(row_plan=other_plan()),
    "window's column plan": lambda: build_with_window(column_plan=other_plan()),
    **{
        f"loop's plan {name}": lambda name=name: build_with(**{name: other_plan()})
        for name in ("to_columns", "to_rows", "from_rows", "from_columns")
    },
}
BINNED = make_settings(36, 24, 8.0, 2)


@pytest.mark.parametrize("call", MISFITS.values(), ids=MISFITS.keys())
def test_arrays_that_do_not_fit_are_refused(call: Callable[[], None]) -> None:
    """A bug in the caller ends in an error, not in memory that is not ours."""
    with pytest.raises(ValueError, match="do not fit together"):
        call()


def test_what_fits_is_accepted() -> None:
    """The calls above are refused for what they change alone."""
    run_with({})
    run_with({}, prebin=2)
    run_with({}, Targets(stack=empty(9, 16, 16), without_ctf=empty(9, 16, 16)))
    build_with()
    build_with_window()
