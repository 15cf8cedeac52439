"""Zero points and template errors from galaxies of known redshift: what their best fits leave. (Ilbert+06, sec. 4.2)

Photometry alone hardly tells a zero point from a population of other colours. At its spectroscopic redshift a galaxy's colours
are those of some stellar population; what the best of these leaves in a band, for galaxies of all redshifts, is the band's, and
what it leaves at a rest-frame wavelength, in whatever band, is the templates' (Brammer+08, sec. 2.3).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from popsed_jax._random import normal
from popsed_jax.observe.calibration import CalibrationModel
from popsed_jax.observe.forward import ForwardModel
from popsed_jax.parameters import ParameterSpace
from popsed_jax.population.batching import map_batches

FEWEST = 40  # galaxies from which a mean residual is worth having
_HELD = ("redshift", "log_mass")  # given, and found in closed form
_PRIOR_WIDTH = (
    3.0  # of the other unconstrained parameters without a population, against 1 of the flat prior: nearly free
)
_FARTHEST = 4.0  # of a population's unconstrained parameters: values on a bound are no outliers
_LEAST_WIDTH = 0.1  # of a population in any of them
_TOGETHER = 1200  # fits in one piece: the default sample is two, one for each of two cores
_NUM_PARTS = 4
_FASTER = 1.5  # than what a round finds: the fits take back about a third of any move
_RIDGE = 1e-6  # of its own weight, for a band that no galaxy of a part has
_MAG = 2.5 / np.log(10.0)


@dataclasses.dataclass(frozen=True)
class ZeroPointConfig:
    """How zero points are measured.

    Args:
        max_galaxies: galaxies that are fitted at most, a random sample.
        num_starts: random stellar populations from which each fit starts; the best end counts.
        num_steps: steps of Adam from each of them, the first time; a quarter of it from the last end after that.
        learning_rate: their size, in unconstrained parameters.
        num_rounds: times that galaxies are fitted again with the zero points found so far.
        floor: of the flux, added to the errors, so that templates' own faults do not decide.
        seed: of the starts and of the sample.
    """

    max_galaxies: int = 400
    num_starts: int = 6
    num_steps: int = 300
    learning_rate: float = 0.08
    num_rounds: int = 5
    floor: float = 0.03
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        for name in ("num_starts", "num_steps", "num_rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"zero points: {name} = {getattr(self, name)} must be at least 1")
        if self.max_galaxies < FEWEST:
            raise ValueError(f"zero points: max_galaxies = {self.max_galaxies} must be at least {FEWEST}")
        for name in ("learning_rate", "floor"):
            if not getattr(self, name) > 0.0:
                raise ValueError(f"zero points: {name} = {getattr(self, name)} must be positive")


class ZeroPoints(NamedTuple):
    """What was found.

    Attributes:
        offset: model plus offset = data [mag]; 0 in the pinned band.
        error: by what parts of the galaxies find [mag]; what templates have wrong comes on top.
        wave: rest-frame wavelengths of the template error's knots [Angstrom].
        template: the templates' error there [mag], model plus error = data; the prior's mean where no galaxy tells, or its width
            is 0.
        template_error: by what parts of the galaxies find [mag].
        scatter: of single galaxies about both [mag].
        num_galaxies: fitted.
        last_step: the largest of the last round [mag]: how far from converged.
    """

    offset: Float[np.ndarray, " band"]
    error: Float[np.ndarray, " band"]
    wave: Float[np.ndarray, " knot"]
    template: Float[np.ndarray, " knot"]
    template_error: Float[np.ndarray, " knot"]
    scatter: Float[np.ndarray, " band"]
    num_galaxies: int
    last_step: float


def fit_zero_points(
    forward: ForwardModel,
    model: CalibrationModel,
    flux: Float[np.ndarray, "galaxy band"],
    error: Float[np.ndarray, "galaxy band"],
    redshift: Float[np.ndarray, " galaxy"],
    config: ZeroPointConfig = ZeroPointConfig(),
    callback: Callable[[int, float], None] | None = None,
    population: Float[Array, "num dim"] | None = None,
) -> ZeroPoints:
    """Zero points and template errors that galaxies of known redshift ask for.

    Each galaxy is fitted at its redshift with a loss that outliers do not rule; from the residuals follows, by weighted least
    squares, how zero points and template errors have to move, and so on. What all galaxies' colours have in common, a slope with
    wavelength above all, could be zero points as well as dust or age: there the prior of the fits decides.

    Args:
        model: says which band is pinned, and how wrong templates may be: without a prior, a slope of their errors with
            wavelength and one of the zero points are the same.
        flux, error: [maggies]; NaN where a galaxy lacks the band.
        redshift: NaN where it is not known.
        callback: is told the rounds done and the largest step [mag] after each.
        population: theta of galaxies like these, whose mean and covariance at each redshift are the prior of the fits; None: next
            to no prior.

    Raises:
        ValueError: fewer than 40 galaxies with a redshift inside the bounds and two thirds of the bands.
    """
    there = np.isfinite(flux) & np.isfinite(error) & (flux > 3.0 * error)
    bounds = forward.space["redshift"]
    # False of an unknown redshift.
    usable = (redshift > bounds.low) & (redshift < bounds.high) & (there.mean(axis=1) >= 2.0 / 3.0)
    if usable.sum() < FEWEST:
        raise ValueError(
            f"zero points: {usable.sum()} galaxies have a redshift and photometry to measure them from; {FEWEST} are needed"
        )
    chosen = np.random.default_rng(config.seed).permutation(np.flatnonzero(usable))[: config.max_galaxies]
    flux, error, there, redshift = flux[chosen], error[chosen], there[chosen], redshift[chosen]
    width = np.where(there, _MAG * np.hypot(np.where(there, error / flux, 1.0), config.floor), np.inf)
    mags = np.where(there, -_MAG * np.log(np.where(there, flux, 1.0)), 0.0)
    fits = _Fits(forward, mags, width, redshift, config, population)
    # Each part of the galaxies finds its own: how these differ is their error, fits' freedom and all.
    part = np.arange(len(chosen)) % _NUM_PARTS
    pinned = int(np.argmin(np.asarray(model.offset_sigma)))
    shares = np.asarray(model.knot_shares(model.wave / (1.0 + redshift[:, None])), float)
    offset, template = (
        np.tile(np.asarray(mean, float), (_NUM_PARTS, 1)) for mean in (model.offset_mean, model.template_mean)
    )
    moves = [
        _Moves(shares[part == i], width[part == i], float(model.template_sigma), pinned) for i in range(_NUM_PARTS)
    ]
    for number in range(config.num_rounds):
        shift = offset[part] + np.einsum("gbk,gk->gb", shares, template[part])
        residual = fits.residual(shift, config.num_steps if number == 0 else -(-config.num_steps // 4))
        found = [
            move(residual[part == i], template[i] - np.asarray(model.template_mean)) for i, move in enumerate(moves)
        ]
        # Fits follow what they are given, so that a round finds a part of what is missing.
        step, bend = (_FASTER * np.stack(each) for each in zip(*found, strict=True))
        offset, template = offset + step, template + bend
        if callback is not None:
            callback(number + 1, float(np.abs(step.mean(axis=0)).max()))
    off = np.where(there, residual, np.nan)
    return ZeroPoints(
        offset.mean(axis=0),
        offset.std(axis=0, ddof=1) / np.sqrt(_NUM_PARTS),
        np.exp(np.asarray(model.knots, float)),
        template.mean(axis=0),
        template.std(axis=0, ddof=1) / np.sqrt(_NUM_PARTS),
        0.5 * np.subtract(*np.nanpercentile(off, [84, 16], axis=0)),
        len(chosen),
        float(np.abs(step.mean(axis=0)).max()),
    )


class _Moves:
    """From the residuals of some galaxies to the moves of zero points and template errors that they ask for."""

    def __init__(
        self,
        shares: Float[np.ndarray, "galaxy band knot"],
        width: Float[np.ndarray, "galaxy band"],
        template_sigma: float,
        pinned: int,
    ):
        num, bands, knots = shares.shape
        self.width, self.bands, self.sigma = width, bands, template_sigma
        # What all bands share is mass, of which the pinned one tells: no zero point for it.
        one = np.broadcast_to(np.eye(bands) * (np.arange(bands) != pinned), (num, bands, bands))
        self.design = np.concatenate([one, template_sigma * shares], axis=2)
        self.prior = np.concatenate([np.zeros(bands), np.ones(knots)])

    def __call__(self, residual: np.ndarray, bent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Moves of the zero points and of the knots [mag].

        Args:
            bent: how far the knots are from their prior's mean already [mag], which the prior draws back.
        """
        # Outliers count less. (Cauchy's weights)
        weight = self.width**-2 / (1.0 + (residual / (3.0 * self.width)) ** 2)
        share = weight / weight.sum(axis=1, keepdims=True)
        # Each galaxy's mass goes with whatever moves all its bands.
        design = self.design - np.einsum("gb,gbx->gx", share, self.design)[:, None]
        residual = residual - (share * residual).sum(axis=1, keepdims=True)
        curvature = np.einsum("gb,gbx,gby->xy", weight, design, design)
        pull = np.concatenate([np.zeros(self.bands), bent / self.sigma if self.sigma > 0.0 else 0.0 * bent])
        ridge = self.prior + _RIDGE * np.maximum(curvature.diagonal().max(), 1.0)
        found = np.linalg.solve(curvature + np.diag(ridge), np.einsum("gb,gbx,gb->x", weight, design, residual) - pull)
        return found[: self.bands], self.sigma * found[self.bands :]


class _Prior(NamedTuple):
    """Normal distribution of a galaxy's unconstrained parameters about a mean of its own.

    Attributes:
        root: of the inverse covariance, zero for what is held: |root (u - mean)|^2 is the squared distance in widths.
    """

    mean: Float[np.ndarray, "galaxy dim"]
    root: Float[np.ndarray, "dim dim"]


def _build_prior(
    space: ParameterSpace,
    redshift: Float[np.ndarray, " galaxy"],
    held: np.ndarray,
    population: Float[Array, "num dim"] | None,
) -> tuple[_Prior, Float[np.ndarray, "dim dim"]]:
    """The prior of the fits, and what turns standard normal numbers into starts about its mean."""
    moving = ~held
    if population is None:
        # Starts from within the bounds: three times as wide, most would lie on them, where slopes vanish.
        return _Prior(np.zeros((len(redshift), len(space))), np.diag(moving / _PRIOR_WIDTH)), np.eye(len(space))
    u = np.clip(np.asarray(space.to_u(population), float), -_FARTHEST, _FARTHEST)
    known = np.asarray(population[:, space.index("redshift")], float)
    middle = np.log1p(known).mean()
    terms, galaxies = (np.vander(np.log1p(z) - middle, 3) for z in (known, redshift))
    slopes = np.linalg.lstsq(terms, u, rcond=None)[0]
    covariance = np.cov((u - terms @ slopes)[:, moving], rowvar=False) + _LEAST_WIDTH**2 * np.eye(moving.sum())
    root, spread = np.zeros((2, len(space), len(space)))
    spread[np.ix_(moving, moving)] = np.linalg.cholesky(covariance)
    root[np.ix_(moving, moving)] = np.linalg.inv(spread[np.ix_(moving, moving)])
    return _Prior(galaxies @ slopes, root), spread


class _Fits:
    """The galaxies' fits, each going on from where the last ones ended."""

    def __init__(
        self,
        forward: ForwardModel,
        mags: Float[np.ndarray, "galaxy band"],
        width: Float[np.ndarray, "galaxy band"],
        redshift: Float[np.ndarray, " galaxy"],
        config: ZeroPointConfig,
        population: Float[Array, "num dim"] | None,
    ):
        self.forward, self.mags, self.width, self.config = forward, mags, width, config
        space = forward.space
        theta = jnp.repeat(space.to_theta(jnp.zeros((1, len(space)))), len(mags), axis=0)
        fixed = np.asarray(space.to_u(theta.at[:, space.index("redshift")].set(redshift)))
        self.held = np.array([name in _HELD for name in space.names])
        self.prior, spread = _build_prior(space, redshift, self.held, population)
        noise = np.asarray(normal(jax.random.key(config.seed), (len(mags), config.num_starts, len(space))))
        starts = self.prior.mean[:, None] + noise @ spread.T
        # What is held, the mass at its middle among it, is the same for all starts of a galaxy.
        self.u = np.where(self.held, fixed[:, None], starts)

    def residual(self, shift: np.ndarray, num_steps: int) -> Float[np.ndarray, "galaxy band"]:
        """Data minus best fit with these shifts of the model [mag]; 0 where a galaxy lacks the band."""
        galaxies = (self.u, self.mags - shift, self.width, self.prior.mean)
        fit = _fitter(self.config.learning_rate, num_steps, tuple(self.held.tolist()))
        given = (self.forward, jnp.asarray(self.prior.root))
        self.u, cost, residual = map_batches(fit, given, galaxies, max(1, _TOGETHER // self.u.shape[1]))
        best = np.argmin(cost, axis=1)
        return np.where(np.isfinite(self.width), residual[np.arange(len(best)), best], 0.0)


@cache
def _fitter(rate: float, num_steps: int, held: tuple[bool, ...]) -> Callable[[tuple[ForwardModel, Array], Any], Any]:
    """Fits of so many steps, one function for each number: a fresh one would compile anew."""
    moving = ~np.array(held)

    def losses(u: Array, given: tuple[ForwardModel, Array], galaxies: tuple[Array, ...]) -> tuple[Array, Array]:
        (forward, root), (mags, width, mean) = given, galaxies
        flat = u.reshape(-1, u.shape[-1])
        flux = forward.flux(forward.space.to_theta(flat))[:, : forward.num_bands]
        residual = mags[:, None] + _MAG * jnp.log(flux).reshape(*u.shape[:2], -1)
        weight = width[:, None] ** -2.0
        # The mass, which moves all bands alike, at its best.
        residual = residual - jnp.sum(weight * residual, axis=-1, keepdims=True) / jnp.sum(
            weight, axis=-1, keepdims=True
        )
        chi = residual / width[:, None]
        # Twice the square root beyond one sigma: no band rules alone.
        cost = jnp.sum(2.0 * (jnp.sqrt(1.0 + chi**2) - 1.0), axis=-1)
        return cost + 0.5 * jnp.sum(((u - mean[:, None]) @ root.T) ** 2, axis=-1), residual

    def fit(given: tuple[ForwardModel, Array], piece: tuple[Array, ...]) -> tuple[Array, Array, Array]:
        u, *galaxies = piece
        optimiser = optax.adam(optax.cosine_decay_schedule(rate, num_steps))

        def step(state: tuple[Array, Any], _: None) -> tuple[tuple[Array, Any], None]:
            u, opt_state = state
            slope = jax.grad(lambda u: jnp.sum(losses(u, given, tuple(galaxies))[0]))(u)
            updates, opt_state = optimiser.update(moving * slope, opt_state)
            return (cast(Array, optax.apply_updates(u, updates)), opt_state), None

        (u, _), _ = jax.lax.scan(step, (u, optimiser.init(u)), length=num_steps)
        return u, *losses(u, given, tuple(galaxies))

    return fit
