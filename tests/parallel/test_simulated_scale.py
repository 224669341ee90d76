"""Hundreds of simulated ranks: near the best possible time, and better than blocks of tomograms."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from relion_pseudosubtomo.parallel.forecast import count_pieces
from relion_pseudosubtomo.parallel.schedule import TaskCost

SCRIPT = Path(__file__).parents[2] / "scripts" / "simulate_schedule.py"

#: How much longer than the lower bound a run of many tomograms may take.
MOST_ABOVE_BOUND = 1.03

#: Seconds of processor time that rank 0 may need for a message, on a slow and busy machine.
MOST_SECONDS_A_MESSAGE = 1e-3


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    """Return the script as a module."""
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[SCRIPT.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("n_ranks", [8, 64, 125, 200])
def test_many_tomograms(simulation: ModuleType, n_ranks: int, split: bool) -> None:
    """2,000 tomograms of 10 to 3,000 particles: within 3 % of the bound; blocks are worse."""
    estimated = simulation.estimate_costs(simulation.draw_sizes(2000, 10, 3000))
    real = simulation.draw_real_costs(estimated)
    result = simulation.simulate(estimated, real, n_ranks, split=split)
    bound = simulation.lower_bound(real, n_ranks, split=split)
    assert bound <= result.seconds < MOST_ABOVE_BOUND * bound
    assert simulation.static_seconds(real, n_ranks) > result.seconds
    assert result.n_pieces >= len(real)
    assert split or result.n_pieces == len(real)
    assert result.n_messages <= 3 * result.n_pieces  # the last ones are asked for


@pytest.mark.parametrize(
    ("n_tomograms", "n_particles", "n_ranks", "most"),
    [(5, 10_000, 5, 1.03), (5, 10_000, 8, 1.03), (5, 10_000, 64, 1.1), (500, 100, 8, 1.03)],
)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_few_tomograms_are_split(
    simulation: ModuleType, n_tomograms: int, n_particles: int, n_ranks: int, most: float, seed: int
) -> None:
    """Ranks that would idle take parts; with many more ranks than tomograms loading shows."""
    estimated = simulation.estimate_costs([n_particles] * n_tomograms)
    real = simulation.draw_real_costs(estimated, seed)
    bound = simulation.lower_bound(real, n_ranks, split=True)
    split, whole = (
        simulation.simulate(estimated, real, n_ranks, split=split) for split in (True, False)
    )
    assert bound <= split.seconds < most * bound
    assert split.seconds < whole.seconds
    assert split.seconds < simulation.static_seconds(real, n_ranks)


@pytest.mark.parametrize(
    ("n_tomograms", "n_particles", "n_ranks"),
    [(5, 10_000, 1), (5, 10_000, 8), (5, 10_000, 64), (500, 100, 64), (30, 300, 64)],
)
@pytest.mark.parametrize("split", [True, False])
def test_number_of_pieces_is_foreseen(
    simulation: ModuleType, n_tomograms: int, n_particles: int, n_ranks: int, split: bool
) -> None:
    """Well enough that one piece more a rank is always enough, and not much too much."""
    estimated = simulation.estimate_costs([n_particles] * n_tomograms)
    foreseen = count_pieces(estimated, n_ranks, split=split)
    for seed in (1, 2, 3):
        real = simulation.draw_real_costs(estimated, seed)
        n_pieces = simulation.simulate(estimated, real, n_ranks, split=split).n_pieces
        if split and n_ranks > 1:
            assert n_pieces - (n_ranks - 1) <= foreseen <= 1.1 * n_pieces
        else:
            assert foreseen == n_pieces == n_tomograms


def test_rank_0_has_time_to_spare(simulation: ModuleType) -> None:
    """Less than a millisecond a message with 1,024 ranks, 1,500 particles described in each."""
    estimated = simulation.estimate_costs(simulation.draw_sizes(1500, 10, 3000))
    description = simulation.make_description(simulation.PARTICLES_A_MESSAGE)
    result = simulation.simulate(
        estimated, estimated, 1024, split=True, describe=lambda piece: description
    )
    assert result.rank_0_seconds < MOST_SECONDS_A_MESSAGE


def test_one_rank_takes_all_the_work_there_is(simulation: ModuleType) -> None:
    """As long as everything together, and the looks for messages in between."""
    costs = simulation.estimate_costs([10, 20, 30])
    result = simulation.simulate(costs, costs, 1, split=True)
    assert result.seconds == pytest.approx(sum(map(simulation.whole_cost, costs)), abs=0.02)
    assert (result.n_pieces, result.n_messages) == (3, 0)


def test_bounds_of_a_small_case(simulation: ModuleType) -> None:
    """Worked out by hand: items of one second, a second to start."""
    costs = [TaskCost(1.0, 1.0, ((0, n),)) for n in (9, 1, 2, 3)]
    assert simulation.lower_bound(costs, 2, split=True) == 9.5
    assert simulation.lower_bound(costs, 2, split=False) == 10
    assert simulation.lower_bound(costs, 100, split=True) == 2
    # blocks of two: 10 + 2 and 3 + 4
    assert simulation.static_seconds(costs, 2) == 12
    assert simulation.static_seconds(costs, 4) == 10
    assert simulation.static_seconds(costs, 9) == 10


def test_tables_have_a_line_a_case_and_mode(simulation: ModuleType) -> None:
    """Markdown: as many cells in each line as there are columns."""
    case = simulation.Case("3 x 50", (50, 50, 50), (1, 2))
    lines = list(simulation.make_table([case]))
    assert len(lines) == 2 + 2 * 2
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| 3 x 50 | 1 | split |")
    messages = list(simulation.make_message_table())
    assert len(messages) == 2 + len(simulation.MEASURED_SIZES)
    assert len({line.count("|") for line in messages}) == 1
