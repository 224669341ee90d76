"""Command line of the simulator: `python -m relion_pseudosubtomo.simulate --o DIR`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from relion_pseudosubtomo.errors import PseudoSubtomoError
from relion_pseudosubtomo.simulate.dataset import Settings, make_dataset
from relion_pseudosubtomo.simulate.project import LAYOUTS, Reference, write_project

EXIT_FAILED = 1


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; its defaults are those of `Settings` and `Reference`."""
    default, reference = Settings(), Reference()
    parser = argparse.ArgumentParser(
        prog="python -m relion_pseudosubtomo.simulate",
        description="Simulate tilt series of a known structure as a RELION project.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )

    def add(name: str, kind: type, value: object, text: str, **more: object) -> None:
        parser.add_argument(name, type=kind, default=value, help=text, **more)  # type: ignore[arg-type]

    parser.add_argument("--o", required=True, metavar="DIR", help="project directory to write")
    parser.add_argument("--layout", choices=LAYOUTS, default=LAYOUTS[0], help="STAR file layout")
    add("--tomograms", int, default.n_tomograms, "number of tomograms")
    add("--tilts", int, default.n_tilts, "tilt images in each tilt series")
    add("--tilt_step", float, default.tilt_step, "degrees between tilts")
    add("--particles", int, default.n_particles, "particles in all tomograms together")
    add("--size", int, default.image_size_xy, "width and height of tilt images, pixels", nargs=2)
    add("--thickness", int, default.thickness_px, "depth of the tomograms, unbinned pixels")
    add("--angpix", float, default.pixel_size, "pixel size of the tilt images, A")
    add("--dose", float, default.dose_per_tilt, "dose of a tilt image, e/A^2")
    add("--defocus", float, default.defocus, "mean defocus of the first tomogram, A")
    add("--snr", float, default.snr, "variance of signal over noise in a particle's area")
    parser.add_argument("--no_noise", action="store_true", help="signal alone")
    add("--motion", float, default.motion, "RMS motion of particles, A; above 0 writes motion.star")
    add("--seed", int, default.seed, "seed of everything random")
    add("--reference_box", int, reference.box, "voxels along each side of reference.mrc")
    add("--reference_angpix", float, reference.pixel_size, "voxel size of reference.mrc, A")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate a project; return the exit status."""
    given = build_parser().parse_args(arguments)
    try:
        settings = Settings(
            n_tomograms=given.tomograms,
            n_tilts=given.tilts,
            n_particles=given.particles,
            image_size_xy=(given.size[0], given.size[1]),
            thickness_px=given.thickness,
            pixel_size=given.angpix,
            tilt_step=given.tilt_step,
            dose_per_tilt=given.dose,
            defocus=given.defocus,
            snr=given.snr,
            noise=not given.no_noise,
            motion=given.motion,
            seed=given.seed,
        )
        reference = Reference(given.reference_box, given.reference_angpix)
        write_project(make_dataset(settings), Path(given.o), given.layout, reference)
    except (PseudoSubtomoError, OSError) as error:
        print(error, file=sys.stderr)
        return EXIT_FAILED
    print(f"{settings.n_particles} particles in {settings.n_tomograms} tilt series: {given.o}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
