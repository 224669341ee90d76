"""Options that need a word: windows that are odd or no whole number of pixels, and huge ones."""

from __future__ import annotations

import pytest
from small_models import make_options

from relion_pseudosubtomo.options import check_options


def messages(box: int, binning: float, crop: int | None = None) -> dict[str, str]:
    """Return the findings of a box and a binning by code."""
    findings = check_options(make_options(box=box, binning=binning, crop=crop or box))
    assert len({finding.code for finding in findings}) == len(findings.items)
    return {finding.code: finding.message for finding in findings}


def test_whole_even_windows_need_no_word() -> None:
    assert messages(48, 2.5) == {}
    assert messages(40, 1.7) == {}


def test_odd_window() -> None:
    """With box sizes whose windows are even."""
    found = messages(50, 1.3, crop=24)
    assert list(found) == ["odd-window"]
    assert "65 unbinned pixels" in found["odd-window"]
    assert found["odd-window"].endswith("box sizes without this: 40, 60")


def test_odd_window_that_is_fractional_too() -> None:
    """64.6 pixels cut as 65: both are said, the box sizes once; such windows are on centre."""
    found = messages(38, 1.7, crop=20)
    assert list(found) == ["odd-window", "fractional-window"]
    assert "box size" not in found["odd-window"]
    assert found["fractional-window"] == (
        "--b 38 at --bin 1.7 is 64.6 unbinned pixels, cut as 65: particles appear at 0.9938 of "
        "their size; box sizes without this: 20, 40"
    )


def test_even_fractional_window() -> None:
    found = messages(48, 1.7, crop=24)
    assert list(found) == ["fractional-window"]
    assert (
        "as in RELION particles appear at 0.9951 of their size and 0.118 binned pixels off"
        in (found["fractional-window"])
    )


@pytest.mark.parametrize(("crop", "named"), [(40, "40, 60"), (42, "60"), (46, "60"), (48, "60")])
def test_no_box_below_the_crop_is_named(crop: int, named: str) -> None:
    assert messages(48, 1.7, crop)["fractional-window"].endswith(f"without this: {named}")


def test_what_is_left_of_whole_windows_is_not_said() -> None:
    """A box of 54 pixels is named for a binning of 3.7037, 199.9998 pixels, and is then good."""
    assert messages(48, 3.7037, crop=32)["fractional-window"].endswith("without this: 54")
    assert messages(54, 3.7037) == {}


def test_nearest_box_where_none_is_whole() -> None:
    """The best one near is named, with what remains: 112 times 1.7321 is 193.9952."""
    end = "; the best near it is 112, 0.005 unbinned pixels from an even window"
    found = messages(100, 1.7321, crop=80)
    assert found["fractional-window"].endswith("1.0012 of their size" + end)
    assert (
        "of their size and 0.001 binned pixels off"
        in (messages(112, 1.7321, crop=80)["fractional-window"])
    )


def test_boxes_that_are_far_away_are_not_the_only_ones() -> None:
    """Of 162 pixels for one of 48: that is no choice."""
    found = messages(48, 1.234567, crop=32)["fractional-window"]
    assert "without this: 162; the best near it is 34, 0.025 unbinned pixels from" in found
    assert messages(1000, 1.0005)["odd-window"]


@pytest.mark.parametrize(
    ("box", "binning"),
    [(100, 1e308), (100, 1.7e308), (2**31, 1.0), (2, 2.0**31), pytest.param(10**400, 1.0, id="b")],
)
def test_windows_that_no_image_can_have(box: int, binning: float) -> None:
    """An error, and no number too large to compute with."""
    assert "expected at most 2147483647 unbinned pixels" in messages(box, binning)["bad-option"]
