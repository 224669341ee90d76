"""The report in a real browser: narrow and wide, light and dark; screenshots are kept."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from browser import Browser
from cluster import CannotInstallError
from projects import INPUT, Project, run_python

WIDTHS = (400, 1280)
OPTIONS = ("--report", "--average", "--j", "2")


@pytest.fixture(scope="module")
def browser(system_tests: None) -> Browser:
    """Return Chromium."""
    try:
        return Browser()
    except CannotInstallError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def page(small_project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Extract the small project, with a report."""
    project = small_project.copy(tmp_path_factory.mktemp("report"))
    words = ["--i", INPUT, "--o", "Out/", *project.options, *OPTIONS]
    run_python("relion_pseudosubtomo", words, project.path)
    return project.path / "Out" / "report.html"


@pytest.fixture(scope="module")
def bare_page(small_project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the report of a run that collected nothing."""
    folder = tmp_path_factory.mktemp("bare") / "Out"
    shutil.copytree(small_project.output, folder)
    run_python("relion_pseudosubtomo", ["report", str(folder)], small_project.path)
    return folder / "report.html"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_page_in_a_browser(
    browser: Browser, page: Path, width: int, dark: bool, tmp_path: Path
) -> None:
    """No message in the console, nothing beyond the edge, every picture decoded."""
    screenshot = tmp_path / f"report_{width}_{'dark' if dark else 'light'}.png"
    seen = browser.look(page, width, screenshot, dark=dark)
    assert seen.console == []
    assert seen.width == width
    assert seen.scroll_width <= width
    assert seen.outside == []
    assert seen.images > 0
    assert seen.broken == 0
    assert seen.dark == dark
    brightness = sum(int(part) for part in seen.ground.strip("rgb()").split(",")) / 3
    assert (brightness < 100) == dark
    assert screenshot.stat().st_size > 0


@pytest.mark.parametrize("width", WIDTHS)
def test_page_of_a_run_without_report(
    browser: Browser, bare_page: Path, width: int, tmp_path: Path
) -> None:
    seen = browser.look(bare_page, width, tmp_path / f"bare_{width}.png")
    assert (seen.console, seen.outside, seen.broken) == ([], [], 0)
    assert seen.scroll_width <= width
