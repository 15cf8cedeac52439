"""The comparison with FSPS: that the emulator is evaluated rightly and stands for the histories given it, and that we agree."""

import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest

EMULATOR = os.environ.get("PROVABGS_EMULATOR", "")
BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
pytestmark = [
    pytest.mark.comparison,
    pytest.mark.skipif(
        not Path(EMULATOR).is_file(), reason="PROVABGS_EMULATOR is not the path of PROVABGS's FSPS emulator (.npz)"
    ),
]


@pytest.fixture(scope="module")
def benchmark():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        spec = importlib.util.spec_from_file_location("benchmark_fsps", BENCHMARKS / "fsps.py")
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "benchmark_fsps", module)  # its dataclasses look for their module
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def match(benchmark):
    return benchmark.Comparison(benchmark.Emulator(Path(EMULATOR)), benchmark.draw(150, 3))


def test_emulator(benchmark, match):
    lum_nu = match.emulator.lum_nu(match.galaxies)
    assert lum_nu.shape == (150, 4899)
    assert np.all(np.isfinite(lum_nu))
    assert lum_nu.min() > 0.0
    # A galaxy of some Gyr has M_r of 4.5 to 6.5 per solar mass formed, before up to 3.5 mag of dust.
    clear = match.their_mags(benchmark.undimmed(match.galaxies))[:, list(benchmark.BANDS).index("r")]
    assert 4.5 < np.median(clear) < 6.5
    assert np.all(match.theirs[:, 2] > clear - 0.02)


def test_spectra_add_up_as_the_histories_say(benchmark, match):
    """The mean of two galaxies' spectra is that of the galaxy with their mean history: holds only for the right bases.

    Weights of the bases are shares of the history before it is cut at the galaxy's age, so masses enter.
    """
    galaxies = benchmark.undimmed(match.galaxies)[np.arange(20)]
    same = galaxies.replace(gamma=np.tile([3e-3, 3e-3], (20, 1)), age=np.full(20, 12.0))
    rng = np.random.default_rng(5)
    one, other = (same.replace(beta=rng.dirichlet(2.0 * np.ones(4), 20)) for _ in range(2))
    share = np.array([_before_the_cut(benchmark, g) for g in (one, other)])
    both = same.replace(beta=0.5 * (one.beta + other.beta))
    expected = (match.emulator.lum_nu(one) * share[0][:, None] + match.emulator.lum_nu(other) * share[1][:, None]) / (
        share.sum(axis=0)[:, None]
    )
    error = np.abs(match.emulator.lum_nu(both) / expected - 1.0)
    assert np.median(error) < 0.01  # the emulator's own accuracy
    assert np.quantile(error, 0.95) < 0.04


def _before_the_cut(benchmark, galaxies):
    """Mass of each history within its age, in the unit of the bases."""
    table = benchmark.Table.read(BENCHMARKS / "provabgs_bases.ecsv")
    fine = np.linspace(0.0, galaxies.age[0], 20_001)
    columns = [np.asarray(table[f"sfh{k}"]) for k in (1, 2, 3, 4)]
    shapes = [benchmark._extended(fine, np.asarray(table["lookback"]), column) for column in columns]
    return galaxies.beta @ np.trapezoid(shapes, fine, axis=1)


def test_colours(benchmark, match):
    """All medians within 0.1 mag, those of parts of the sample too but for the colours that are explained."""
    medians = np.median(match.difference, axis=0)
    assert np.all(np.abs(medians) < benchmark.TOLERANCE)
    assert np.abs(np.median(match.ours - match.theirs, axis=0)).max() < 0.2
    age, log_met = benchmark.mass_weighted(match.galaxies)
    for quantity in (age, log_met, match.galaxies.redshift):
        for inside in (quantity < np.quantile(quantity, 0.3), quantity > np.quantile(quantity, 0.7)):
            part = np.median(match.difference[inside], axis=0)
            far = {c for c, value in zip(benchmark.COLOURS, part, strict=True) if abs(value) > benchmark.TOLERANCE}
            assert far <= set(benchmark.EXPLAINED)


def test_the_cause_named_for_u_minus_g(benchmark, match):
    """Within MILES the two sides' spectra have one shape; blueward of it they have not; dust has no part in it."""
    edges = np.array([3000.0, 3540.0, 3700.0, 4500.0, 7400.0])
    ultraviolet, _, blue, red = np.median(match.spectrum_ratio(edges), axis=0)
    assert abs(blue - red) < 0.025
    assert blue - ultraviolet > 0.04
    clear = np.median(match.of(benchmark.undimmed(match.galaxies))[:, 0])
    assert abs(clear - np.median(match.difference[:, 0])) < 0.04


def test_metallicity_is_matched(benchmark, match):
    """A wrong scale moves the reddest colours: 0.126 dex, PROVABGS's own, is seen in J-H."""
    named = benchmark.colours(match.our_mags(match.galaxies, benchmark.Matching(1.0)))
    shift = np.median(named - benchmark.colours(match.ours), axis=0)
    assert shift[benchmark.COLOURS.index("J-H")] > 0.01
    assert np.all(shift[1:] > 0.0)  # metal-rich is redder
