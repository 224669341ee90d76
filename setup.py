"""The compiled kernels; everything else about the package is in pyproject.toml."""

from pathlib import Path

import numpy
from setuptools import Extension, setup

KERNELS = Path("relion_pseudosubtomo/core/kernels")
SOURCES = [
    "pixels",
    "windows",
    "prebinning",
    "weighting",
    "real_rows",
    "insertion",
    "cube",
    "noise",
]

setup(
    ext_modules=[
        Extension(
            "relion_pseudosubtomo.core.kernels._compiled",
            [str(KERNELS / name) for name in ("_compiled.pyx", *(f"{s}.c" for s in SOURCES))],
            depends=[str(path) for path in (*KERNELS.glob("*.h"), *KERNELS.glob("*.pxi"))],
            include_dirs=[str(KERNELS), numpy.get_include()],
            extra_compile_args=["-O3", "-ffp-contract=off", "-fno-math-errno", "-std=gnu11"],
            optional=True,
        )
    ]
)
