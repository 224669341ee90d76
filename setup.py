"""The compiled kernels; everything else about the package is in pyproject.toml."""

from pathlib import Path

import numpy
from setuptools import Extension, setup

KERNELS = Path("relion_pseudosubtomo/core/kernels")

setup(
    ext_modules=[
        Extension(
            "relion_pseudosubtomo.core.kernels._compiled",
            [str(KERNELS / "_compiled.pyx"), str(KERNELS / "kernels.c")],
            depends=[str(KERNELS / "kernels.h"), str(KERNELS / "fftw3.h")],
            include_dirs=[str(KERNELS), numpy.get_include()],
            extra_compile_args=["-O3", "-ffp-contract=off", "-fno-math-errno", "-std=gnu11"],
            optional=True,
        )
    ]
)
