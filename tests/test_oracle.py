"""The oracle of `tests/oracle` agrees with RELION's own output on every reference case.

This is what makes the oracle worth comparing with: it is written from the specification alone
and shares no code with the program.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from oracle.read_case import Case, read_case
from oracle.run_case import kept_particles, run_case
from oracle.spec_extraction import (
    FloatArray,
    Particle,
    Tomogram,
    euler_to_matrix,
    matrix_to_euler,
    particle_position,
    visible_frames,
)
from reference_comparison import (
    SUMMARY_PROPERTY,
    TOLERANCE_NUMBER,
    FileComparison,
    compare_arrays,
    kind_of_image,
    list_images,
    read_mrc,
    read_multiplicity,
    read_star_text,
    values_agree,
)

REFERENCE = Path(__file__).parent / "reference"
CASES = sorted(path.parent.name for path in REFERENCE.glob("*/case.json"))
TOLERANCE_DOUBLE = 3e-5
"""What a double-precision program reaches on float32 files, with some margin."""


@pytest.fixture(params=CASES, scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    """Read one reference case; all tests of a case share it."""
    return read_case(REFERENCE / request.param)


def read_relion_particles(case: Case) -> pd.DataFrame:
    """Return RELION's output particle table, as text."""
    return read_star_text(case.folder / "relion" / "particles.star")["particles"]


def compare_with_relion(case: Case, file: str, image: FloatArray) -> FileComparison:
    """Compare one of the oracle's images with RELION's file."""
    path = case.folder / "relion" / file
    reference = read_mrc(path)[0].astype(np.float64)
    assert image.shape == reference.shape, file
    multiplicity = read_multiplicity(path) if kind_of_image(file) == "data_nrm" else None
    return compare_arrays(file, reference, image, case.words, multiplicity)


def allowed_error(case: Case, result: FileComparison) -> float:
    """Return the oracle's own, tighter tolerance where the rule is for differences in float32.

    `_data_nrm`, a quotient by small multiplicities, loses digits and keeps the rule's tolerance.
    """
    is_rounded = case.use_float16 or result.kind == "data_nrm"
    if result.measure == "difference" and not is_rounded:
        return TOLERANCE_DOUBLE
    return result.tolerance


def test_images_agree_with_relion(
    case: Case, record_property: Callable[[str, object], None]
) -> None:
    """Every image RELION wrote is reproduced within the tolerance for its kind."""
    images = run_case(case)
    files = list_images(case.folder / "relion")
    assert files
    results = [compare_with_relion(case, file, images[file]) for file in files]
    worst = max(results, key=lambda result: result.error / result.tolerance)
    record_property(SUMMARY_PROPERTY, ["oracle", case.folder.name, *astuple(worst)])
    for result in results:
        assert result.error < allowed_error(case, result), result


def test_kept_particles_and_poses_agree_with_relion(case: Case) -> None:
    """The same particles survive, in the same order, at the same positions and angles."""
    kept, rows = kept_particles(case), read_relion_particles(case)
    assert [particle.name for _, particle in kept] == list(rows["rlnTomoParticleName"])
    for (tomogram, particle), (_, row) in zip(kept, rows.iterrows(), strict=True):
        centred = centred_coordinates_angstrom(case, tomogram, particle)
        expected = [float(row[f"rlnCenteredCoordinate{axis}Angst"]) for axis in "XYZ"]
        np.testing.assert_allclose(centred, expected, rtol=0, atol=TOLERANCE_NUMBER)
        if case.options.apply_orientations:
            angles = matrix_to_euler(particle.a_full)
            for name, angle in zip(("Rot", "Tilt", "Psi"), angles, strict=True):
                label = f"rlnTomoSubtomogram{name}"
                assert values_agree(label, row[label], str(angle)), (particle.name, label, angle)


def centred_coordinates_angstrom(case: Case, tomogram: Tomogram, particle: Particle) -> FloatArray:
    """Return (p - (W, H, D)/2) px, what the output table holds (3.3)."""
    position = particle_position(particle, tomogram, case.options)
    return (position - tomogram.centre_xyz) * tomogram.pixel_size


def test_visible_frames_agree_with_relion(case: Case) -> None:
    """As many frames as RELION's images have are visible; of 2D stacks, exactly its frames."""
    rows = read_relion_particles(case).set_index("rlnTomoParticleName")
    for tomogram, particle in kept_particles(case):
        flags = visible_frames(particle, tomogram, case.options).astype(int)
        row = rows.loc[particle.name]
        if case.options.stack2d:
            assert f"[{','.join(map(str, flags))}]" == row["rlnTomoVisibleFrames"]
        if case.options.stack2d or case.options.real_subtomo:
            image = read_mrc(case.folder / row["rlnImageName"])[0]
            assert len(image) == flags.sum()


@pytest.mark.parametrize(
    "angles",
    [(0, 0, 0), (10, 20, 30), (-150, 81, 63), (30, 1e-9, 0), (0, 180, 40), (0, 0, -70)],
)
def test_angles_survive_the_matrix(angles: tuple[float, float, float]) -> None:
    """Angles, matrix, angles, matrix: the two matrices are the same rotation."""
    matrix = euler_to_matrix(*angles)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(euler_to_matrix(*matrix_to_euler(matrix)), matrix, atol=1e-9)
