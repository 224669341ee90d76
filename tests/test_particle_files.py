"""Where the files of particles are written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_models import make_options

from relion_pseudosubtomo import particle_files
from relion_pseudosubtomo.io.atomic import make_folder
from relion_pseudosubtomo.model import Task
from relion_pseudosubtomo.particle_files import ParticleWriter


def test_a_folder_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for every particle: on parallel file systems each attempt is a message to a server."""
    made: list[str] = []

    def note(folder: Path) -> None:
        made.append(folder.name)
        make_folder(folder)

    monkeypatch.setattr(particle_files, "make_folder", note)
    stems = tuple(f"Subtomograms/{name}/{i}" for i in range(3) for name in ("TS_01", "TS_02"))
    visible = np.ones((len(stems), 1), dtype=bool)
    task = Task(0, 0, 0, np.arange(len(stems)), stems, visible)
    writer = ParticleWriter(make_options(output=str(tmp_path)), task)
    for i in range(len(stems)):
        writer.write(i, [("_data.mrc", np.zeros((4, 4, 4), np.float32), 1.0)])
    assert made == ["TS_01", "TS_02"]
    assert all((tmp_path / f"{stem}_data.mrc").exists() for stem in stems)
