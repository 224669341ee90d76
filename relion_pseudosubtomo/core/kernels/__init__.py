"""Inner loops: compiled where the extension was built, else their NumPy twins, with a warning.

`numpy_twin` documents every kernel, `core.frame_loop` what `FrameRunner` does with them.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

from relion_pseudosubtomo.core.kernels import numpy_twin

try:
    active: Any = import_module("relion_pseudosubtomo.core.kernels._compiled")
except (ImportError, TypeError, ValueError) as error:  # not built, or for another pyFFTW
    active = numpy_twin
    warnings.warn(
        f"relion_pseudosubtomo: the compiled kernels cannot be used ({error}); the NumPy versions "
        "run instead, some 20 times slower. Install GCC or clang and the headers of Python, "
        "then reinstall the package with pip install -v --force-reinstall, which shows what the "
        "compiler says.",
        RuntimeWarning,
        stacklevel=2,
    )

#: MRC mode -> type of the pixels that `copy_rows` reads.
IMAGE_DTYPES = numpy_twin.IMAGE_DTYPES
IS_COMPILED = active is not numpy_twin

#: All frames of a particle in one call, the tilt images for it, and a whole cube in one call; None
#: where they were not built.
FrameRunner: Any = getattr(active, "FrameRunner", None)
ImageViews: Any = getattr(active, "ImageViews", None)
CubeRunner: Any = getattr(active, "CubeRunner", None)

add_power = active.add_power
copy_rows = active.copy_rows
bin_image = active.bin_image
cut_binned = active.cut_binned
join_columns = active.join_columns
join_rows = active.join_rows
make_ramps = active.make_ramps
fold_rows = active.fold_rows
weight_slice = active.weight_slice
pack_rows = active.pack_rows
unpack_rows = active.unpack_rows
mask_pairs = active.mask_pairs
crop_pairs = active.crop_pairs
insert_slice = active.insert_slice
unpack_volume = active.unpack_volume
weight_cone = active.weight_cone

__all__ = [
    "IMAGE_DTYPES",
    "IS_COMPILED",
    "CubeRunner",
    "FrameRunner",
    "ImageViews",
    "add_power",
    "bin_image",
    "copy_rows",
    "crop_pairs",
    "cut_binned",
    "fold_rows",
    "insert_slice",
    "join_columns",
    "join_rows",
    "make_ramps",
    "mask_pairs",
    "numpy_twin",
    "pack_rows",
    "unpack_rows",
    "unpack_volume",
    "weight_cone",
    "weight_slice",
]
