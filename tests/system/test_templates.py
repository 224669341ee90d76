"""The SLURM templates as text: what a user must find in them, and what sbatch would misread."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from templates import FIRST_MARK, LAST_MARK, TEMPLATES, edit_template

SCRIPTS = sorted(TEMPLATES.glob("*.sh"))
BY_NAME = pytest.mark.parametrize("script", SCRIPTS, ids=[path.name for path in SCRIPTS])

#: What RELION replaces (its saveJobSubmissionScript); XXXextra1XXX and so on are for sites.
NEEDED = {"mpinodes", "threads", "dedicated", "nodes"}
NEEDED |= {"name", "errfile", "outfile", "queue", "command"}
#: The product of two of them, which SLURM is not told.
SPARE = {"cores"}


@BY_NAME
def test_is_bash(script: Path) -> None:
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@BY_NAME
def test_sbatch_lines_come_before_the_first_command(script: Path) -> None:
    lines = script.read_text().splitlines()
    is_command = [bool(line.strip()) and not line.startswith("#") for line in lines]
    late = [line for line in lines[is_command.index(True) :] if line.startswith("#SBATCH")]
    assert late == []


@BY_NAME
def test_block_holds_only_what_a_user_edits(script: Path) -> None:
    lines = script.read_text().splitlines()
    block = lines[lines.index(FIRST_MARK) + 1 : lines.index(LAST_MARK)]
    assert len(block) >= 5
    assert all(re.match(r"#SBATCH --[a-z-]+=|#module load |[a-z]+=", line) for line in block)


@BY_NAME
def test_readme_tells_of_it(script: Path) -> None:
    assert f"`{script.name}`" in (TEMPLATES / "README.md").read_text()


def test_resumable_always_continues() -> None:
    assert "--only_do_unfinished" in edit_template("resumable.sh", {"options": "()"})


def test_relion_replaces_every_variable_and_the_command_once() -> None:
    # RELION repeats a line with the command for each of a job's commands, comments too
    text = (TEMPLATES / "relion_queue.sh").read_text()
    assert NEEDED <= set(re.findall("XXX([a-z0-9]+)XXX", text)) <= NEEDED | SPARE
    readme = (TEMPLATES / "README.md").read_text()
    assert [name for name in sorted(NEEDED) if f"XXX{name}XXX" not in readme] == []
    (line,) = [line for line in text.splitlines() if "XXXcommandXXX" in line]
    assert line.startswith("srun ")
    assert "'" not in line
