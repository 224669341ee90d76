"""The progress bar on a terminal, and the log above it."""

from __future__ import annotations

import logging
import sys

import pytest

from relion_pseudosubtomo.cli import configure_logging
from relion_pseudosubtomo.progress import Progress

LOGGER = logging.getLogger("relion_pseudosubtomo")


@pytest.mark.parametrize("is_terminal", [True, False])
def test_what_is_logged_meanwhile_is_shown(
    is_terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Messages on standard output, warnings and errors on standard error, each once."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    configure_logging("info")
    handlers = LOGGER.handlers
    with Progress(10) as progress:
        LOGGER.info("TS_01 is done")
        progress.advance(5)
        LOGGER.error("TS_02 failed")
        LOGGER.debug("a detail")
    assert LOGGER.handlers == handlers
    LOGGER.warning("the end")
    shown = capsys.readouterr()
    assert shown.out.count("TS_01 is done") == 1
    assert ("5/10" in shown.out) == is_terminal
    assert shown.err == "ERROR: TS_02 failed\nWARNING: the end\n"
    assert "TS_02" not in shown.out
    assert "a detail" not in shown.out
