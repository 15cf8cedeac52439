"""Which galaxies the survey keeps: cuts on what it observed, each a smooth probability, and their product.

A survey cuts on noisy quantities. So every cut has two faces: the probability of keeping a galaxy whose *observed* flux is
known, and that of one whose true flux is known, the first averaged over the noise. Both are differentiable.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm
from jaxtyping import Array, Float

from popsed_jax.observe.magnitudes import POGSON, ab_mag

# A flux at or below zero is undetected; the magnitude of this flux is fainter than any survey's limit.
_FAINTEST = 1e-20  # [maggies], 50 mag
# Beyond a magnitude of noise the expansion of a magnitude in the flux means nothing.
_MAX_MAG_ERROR = 1.0
_NODES, _NODE_WEIGHTS = np.polynomial.hermite_e.hermegauss(7)


class Cut(abc.ABC):
    """One cut."""

    @property
    @abc.abstractmethod
    def filters(self) -> tuple[str, ...]:
        """The filters that it looks at."""

    @abc.abstractmethod
    def probability(
        self, flux: Float[Array, "*batch filter"], error: Float[Array, "*batch filter"], blur: float
    ) -> Float[Array, "*batch"]:
        """Probability that it keeps a galaxy.

        Args:
            flux, error: in its own filters, in their order [maggies].
            blur: 0 where the fluxes are the observed ones, 1 where they are true: then averaged over noise as wide as `error`.
        """


@dataclasses.dataclass(frozen=True)
class _InOneFilter(Cut):
    """A cut that looks at a single filter."""

    filter: str

    @property
    def filters(self) -> tuple[str, ...]:
        """The filters that it looks at."""
        return (self.filter,)


@dataclasses.dataclass(frozen=True)
class MagnitudeLimit(_InOneFilter):
    """A galaxy is kept with probability Phi((limit - mag) / width), or the complement of that.

    Args:
        filter: name of the filter library; it need not be one of the catalogue's bands.
        limit: magnitude at which half are kept [AB mag].
        width: softness of the edge [mag].
        keep: the brighter galaxies or the fainter ones.
    """

    limit: float
    width: float = 0.05
    keep: Literal["brighter", "fainter"] = "brighter"

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        if not math.isfinite(self.limit) or not 0.0 < self.limit < 40.0:
            raise ValueError(f"selection: limit = {self.limit} in {self.filter} is no AB magnitude between 0 and 40")
        _check_width(self.width, self.filter)

    def probability(  # noqa: D102 (see `Cut`)
        self, flux: Float[Array, "*batch filter"], error: Float[Array, "*batch filter"], blur: float
    ) -> Float[Array, "*batch"]:
        # The edge is soft in magnitudes and the noise is in flux: Phi(d / w) without noise, and without softness the exact
        # Phi((f - f_limit) / sigma). Both by measuring from the limit in units of its flux, where `stretch` is a magnitude.
        limit = 10.0 ** (-0.4 * self.limit)
        ratio = (self.limit - _mag(flux[..., 0])) / POGSON
        near = jnp.abs(ratio) < 1e-3
        safe = jnp.where(near, 1.0, ratio)
        stretch = jnp.where(near, 1.0 + 0.5 * ratio, jnp.expm1(safe) / safe)
        noise = blur * error[..., 0] / limit
        sign = 1.0 if self.keep == "brighter" else -1.0
        return norm.cdf(sign * stretch * ratio / jnp.hypot(self.width / POGSON * stretch, noise))


@dataclasses.dataclass(frozen=True)
class SignalToNoiseCut(_InOneFilter):
    """A galaxy is kept with probability Phi((flux / error - minimum) / width).

    Args:
        filter: one of the catalogue's bands: no other has an error.
        minimum: signal-to-noise at which half are kept.
        width: softness of the edge, in units of signal-to-noise.
    """

    minimum: float
    width: float = 0.2

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        if not math.isfinite(self.minimum):
            raise ValueError(f"selection: minimum = {self.minimum} in {self.filter} must be finite")
        _check_width(self.width, self.filter)

    def probability(  # noqa: D102 (see `Cut`)
        self, flux: Float[Array, "*batch filter"], error: Float[Array, "*batch filter"], blur: float
    ) -> Float[Array, "*batch"]:
        ratio = flux[..., 0] / error[..., 0]
        return norm.cdf((ratio - self.minimum) / math.hypot(self.width, blur))


@dataclasses.dataclass(frozen=True)
class ColorCut(Cut):
    """A galaxy is kept when low < mag(blue) - mag(red) < high, with soft edges.

    Args:
        blue, red: filters of the colour.
        low, high: edges [AB mag]; absent: none on that side.
        width: softness of the edges [mag].
    """

    blue: str
    red: str
    low: float | None = None
    high: float | None = None
    width: float = 0.05

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        if self.low is None and self.high is None:
            raise ValueError(f"selection: a cut in {self.blue} - {self.red} needs low, high or both")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(
                f"selection: low = {self.low} must be below high = {self.high} in {self.blue} - {self.red}"
            )
        _check_width(self.width, f"{self.blue} - {self.red}")

    @property
    def filters(self) -> tuple[str, ...]:
        """The filters that it looks at."""
        return (self.blue, self.red)

    def probability(  # noqa: D102 (see `Cut`)
        self, flux: Float[Array, "*batch filter"], error: Float[Array, "*batch filter"], blur: float
    ) -> Float[Array, "*batch"]:
        mags = _mag(flux)
        color = mags[..., 0] - mags[..., 1]
        noise = blur * jnp.sqrt(jnp.sum(_mag_error(flux, error) ** 2, axis=-1))
        width = jnp.hypot(self.width, noise)
        below_low, below_high = jnp.zeros_like(color), jnp.ones_like(color)
        if self.low is not None:
            below_low = norm.cdf((self.low - color) / width)
        if self.high is not None:
            below_high = norm.cdf((self.high - color) / width)
        return below_high - below_low


@dataclasses.dataclass(frozen=True)
class Completeness(_InOneFilter):
    """A table of p(kept | mag): a survey's completeness, or the success rate of its spectrograph.

    Args:
        filter: whose magnitude the table runs in.
        mags: increasing [AB mag].
        fraction: kept at each, between 0 and 1; linear in between, constant beyond the ends.
    """

    mags: tuple[float, ...]
    fraction: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        if len(self.mags) != len(self.fraction) or len(self.mags) < 2:
            raise ValueError(
                f"selection: the completeness in {self.filter} has {len(self.mags)} mags and {len(self.fraction)} fractions; "
                "it needs as many of both, at least 2"
            )
        if not np.all(np.diff(self.mags) > 0):
            raise ValueError(f"selection: mags of the completeness in {self.filter} must increase")
        if not all(0.0 <= value <= 1.0 for value in self.fraction) or max(self.fraction) == 0.0:
            raise ValueError(
                f"selection: fractions of the completeness in {self.filter} lie between 0 and 1, not all 0"
            )

    def probability(  # noqa: D102 (see `Cut`)
        self, flux: Float[Array, "*batch filter"], error: Float[Array, "*batch filter"], blur: float
    ) -> Float[Array, "*batch"]:
        mag = _mag(flux[..., 0])
        at, fraction = jnp.asarray(self.mags), jnp.asarray(self.fraction)
        if blur == 0.0:
            return jnp.interp(mag, at, fraction)
        nodes = mag[..., None] + blur * _mag_error(flux, error)[..., :1] * jnp.asarray(_NODES)
        return jnp.interp(nodes, at, fraction) @ jnp.asarray(_NODE_WEIGHTS / _NODE_WEIGHTS.sum())


@dataclasses.dataclass(frozen=True)
class SelectionConfig:
    """The survey's cuts; a galaxy must pass all. None at all keeps everything.

    Args:
        limits: magnitude limits.
        signal_to_noise: cuts in signal-to-noise.
        colors: cuts in colour.
        completeness: tables of the fraction kept against magnitude.
        observed: whether the cuts act on the noisy fluxes of the catalogue's bands; false: on the noise-free ones, for cuts
            that were made in other photometry, whose scatter is in their widths. Filters that are not among the bands are
            noise-free in any case.
    """

    limits: tuple[MagnitudeLimit, ...] = ()
    signal_to_noise: tuple[SignalToNoiseCut, ...] = ()
    colors: tuple[ColorCut, ...] = ()
    completeness: tuple[Completeness, ...] = ()
    observed: bool = True

    @property
    def cuts(self) -> tuple[Cut, ...]:
        """All of them."""
        return (*self.limits, *self.signal_to_noise, *self.colors, *self.completeness)

    @property
    def filters(self) -> tuple[str, ...]:
        """Filters that the cuts look at."""
        return tuple(dict.fromkeys(name for cut in self.cuts for name in cut.filters))

    def check(self, bands: Sequence[str]) -> None:
        """Refuse a cut in signal-to-noise outside the catalogue's bands.

        Raises:
            ValueError: it has no error there.
        """
        for cut in self.signal_to_noise:
            if cut.filter not in bands:
                raise ValueError(
                    f"selection: signal-to-noise in {cut.filter}, which is not among the catalogue's {', '.join(bands)}"
                )
            if not self.observed:
                raise ValueError("selection: a cut in signal-to-noise needs observed = true")

    def deeper(self, mags: float) -> SelectionConfig:
        """Magnitude and signal-to-noise limits fainter by so much, of noise-free fluxes, and no other cuts."""
        return dataclasses.replace(
            self,
            observed=False,
            limits=tuple(
                dataclasses.replace(limit, limit=limit.limit + mags)
                for limit in self.limits
                if limit.keep == "brighter"
            ),
            signal_to_noise=tuple(
                dataclasses.replace(cut, minimum=cut.minimum * 10.0 ** (-0.4 * mags)) for cut in self.signal_to_noise
            ),
            colors=(),
            completeness=(),
        )


def kept_probability(
    flux: Float[Array, "*batch filter"],
    error: Float[Array, "*batch filter"],
    filters: Sequence[str],
    selection: SelectionConfig,
) -> Float[Array, "*batch"]:
    """Probability that the survey keeps a galaxy of these observed fluxes.

    Args:
        flux, error: as observed [maggies], in the order of `filters`, which must contain every filter of the selection.

    Raises:
        ValueError: a cut in a filter that is not there.
    """
    return _product(flux, error, filters, selection, 0.0)


def detection_probability(
    flux: Float[Array, "*batch filter"],
    error: Float[Array, "*batch filter"],
    filters: Sequence[str],
    selection: SelectionConfig,
) -> Float[Array, "*batch"]:
    """Probability that the survey keeps a galaxy of these true fluxes: `kept_probability` averaged over the noise.

    Args:
        flux: noise-free [maggies].
        error: of an observation; 0 where it has no noise.

    Raises:
        ValueError: a cut in a filter that is not there.

    Notes:
        Each cut is averaged by itself: the noise that two cuts share in one band is not, nor its skewness in magnitudes (at a
        signal-to-noise of 4 a cut in colour is off by up to 0.07, one in magnitude or completeness by 0.01).
        Whatever uses it as a density of proposals and weighs with `kept_probability` is exact all the same.
    """
    return _product(flux, error, filters, selection, 1.0 if selection.observed else 0.0)


def _product(flux: Array, error: Array, filters: Sequence[str], selection: SelectionConfig, blur: float) -> Array:
    probability = jnp.ones(flux.shape[:-1])
    for cut in selection.cuts:
        missing = [name for name in cut.filters if name not in filters]
        if missing:
            raise ValueError(f"selection in {missing[0]}, which is not among the filters {', '.join(filters)}")
        index = jnp.asarray([list(filters).index(name) for name in cut.filters])
        probability = probability * cut.probability(flux[..., index], error[..., index], blur)
    return probability


def _mag(flux: Array) -> Array:
    return ab_mag(jnp.maximum(flux, _FAINTEST))


def _mag_error(flux: Array, error: Array) -> Array:
    # The bound stands in the denominator: behind the quotient, its slope would be infinite for an undetected flux.
    noise = POGSON * error
    return noise / jnp.maximum(flux, noise / _MAX_MAG_ERROR + _FAINTEST)


def _check_width(width: float, where: str) -> None:
    if not width > 0.0:
        raise ValueError(f"selection: width = {width} in {where} must be positive")
