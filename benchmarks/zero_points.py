"""Zero points and template errors from galaxies of known redshift: found where they were put?

python benchmarks/zero_points.py

Mock: 500 galaxies with i < 22 in eight deep bands from u to Ks, whose truth differs from the reference as in recovery.py; zero
points wrong by up to 0.1 mag, templates wrong by smooth bumps in the rest frame. Measured with next to no prior on the galaxies,
and with the reference as their prior.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from common import finish

import popsed_jax as pj
from popsed_jax.observe.calibration import CalibrationModel, build_calibration
from popsed_jax.observe.forward import build_forward_model
from popsed_jax.observe.noise import fit_noise_model
from popsed_jax.observe.selection import MagnitudeLimit, SelectionConfig
from popsed_jax.population.reference import sample_uncertain
from popsed_jax.population.zero_points import ZeroPointConfig, fit_zero_points

# Magnitude at which each band's signal-to-noise is 5.
DEPTH = {"u": 26.0, "g": 26.0, "r": 25.5, "i": 25.0, "z": 24.5, "J": 23.5, "H": 23.0, "Ks": 23.0}
ZERO_POINTS = {"u": 0.10, "g": -0.06, "r": 0.04, "i": 0.0, "z": -0.08, "J": 0.07, "H": -0.05, "Ks": 0.09}
BUMPS = {3800.0: -0.12, 8000.0: 0.08}  # [mag] at the knots nearest to these rest-frame wavelengths [Angstrom]
SEEN = np.geomspace(2500.0, 12_000.0, 60)  # where most galaxies tell


def bumps(model: CalibrationModel) -> np.ndarray:
    """The templates' error at the knots."""
    knots, values = np.asarray(model.knots), np.zeros(len(model.knots))
    for wave, value in BUMPS.items():
        values[np.argmin(np.abs(knots - np.log(wave)))] = value
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/zero_points.json"))
    parser.add_argument("--num", type=int, default=500)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    bands, config = tuple(DEPTH), pj.default_config()
    filters = [f"sdss_{band}0" if band in "ugriz" else f"twomass_{band}" for band in bands]
    sky = np.array([10.0 ** (-0.4 * depth) / 5.0 for depth in DEPTH.values()])
    rng = np.random.default_rng(0)
    flux = sky * 10.0 ** rng.uniform(-1.0, 4.0, (4000, len(sky)))
    noise = fit_noise_model(flux, np.hypot(sky, 0.01 * flux) * 10.0 ** rng.normal(0.0, 0.03, flux.shape))
    selection = SelectionConfig((MagnitudeLimit("sdss_i0", 22.0, 0.02),))
    forward = build_forward_model(
        filters, noise, selection=selection, model=config.model, bounds={"redshift": (0.01, 1.5)}
    )
    mock = pj.simulate_mock(jax.random.key(args.seed), forward, config.mock, config.reference, args.num, bands)
    redshift = np.asarray(mock.theta[:, forward.space.index("redshift")], float)
    calibration = pj.CalibrationConfig(offset_sigma=0.1, template_sigma=0.05, template_knots=24, pinned="i")
    model = build_calibration(calibration, bands, filters, "i")
    true, bent = np.array(list(ZERO_POINTS.values())), bumps(model)
    shares = np.asarray(model.knot_shares(model.wave / (1.0 + redshift[:, None])))
    factor = 10.0 ** (-0.4 * (true + shares @ bent))
    reference = sample_uncertain(jax.random.key(1), (forward,), config.reference, 4000, 4)
    curve = np.asarray(model.knot_shares(jnp.asarray(SEEN)))
    rows, extra = [], {}
    for name, population in (("next to no prior", None), ("the reference as prior", reference)):
        found = fit_zero_points(
            forward,
            model,
            factor * mock.flux,
            factor * mock.error,
            redshift,
            ZeroPointConfig(num_rounds=8),
            lambda number, step, name=name: print(name, number, round(step, 4), flush=True),
            population,
        )
        off = found.offset - true
        slope = float(
            np.polyfit(np.log(np.asarray(model.wave)), off, 1)[0] * np.log(float(model.wave[-1] / model.wave[0]))
        )
        left = curve @ (found.template - bent)
        rows.append(
            [
                name,
                *off.round(4).tolist(),
                float(np.sqrt(np.mean(off**2))),
                slope,
                float(np.std(curve @ bent)),
                float(np.std(left)),
            ]
        )
        extra[name] = {key: np.asarray(value).tolist() for key, value in found._asdict().items()}
    columns = [
        "fits",
        *(f"{band} [mag]" for band in bands),
        "rms",
        "slope, u to Ks",
        "template error",
        "what is left of it",
    ]
    finish(
        "Zero points: found minus true", columns, rows, args.out, {"true": ZERO_POINTS, "bumps": bent.tolist(), **extra}
    )


if __name__ == "__main__":
    main()
