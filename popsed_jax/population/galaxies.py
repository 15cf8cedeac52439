"""The galaxies that a fit learns from. They stay on the host: a device sees the batches of one epoch, never the catalogue."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

BOOTSTRAP = 5  # folded into the members' key


class SurveyGalaxies(NamedTuple):
    """Of one survey.

    Attributes:
        mags: asinh magnitudes of those that the training sees.
        spectra: asinh magnitudes and redshifts of those whose redshifts it sees; None: photometry alone.
    """

    mags: Float[np.ndarray, "galaxy band"]
    spectra: tuple[Float[np.ndarray, "known band"], Float[np.ndarray, " known"]] | None = None


class Batch(NamedTuple):
    """What the model is compared with; with leading axes (member, step) for an epoch, without for one step.

    Attributes:
        mags: of each survey.
        spectra: magnitudes and redshifts of each survey; None: photometry alone.
    """

    mags: tuple[Float[Array, "*step galaxy band"], ...]
    spectra: tuple[tuple[Float[Array, "*step known band"], Float[Array, "*step known"]] | None, ...]


class TrainingGalaxies:
    """The galaxies of all surveys, drawn with replacement for each member.

    Args:
        key: the members'.
        surveys: of each survey.
        num_members: of the ensemble, its control included.
    """

    def __init__(self, key: Array, surveys: tuple[SurveyGalaxies, ...], num_members: int) -> None:
        self.surveys = surveys
        keys = jax.random.split(jax.random.fold_in(key, BOOTSTRAP), (len(surveys), 2))
        self._rows = tuple(_resample(k[0], num_members, len(each.mags)) for k, each in zip(keys, surveys, strict=True))
        self._spectra = tuple(
            None if each.spectra is None else _resample(k[1], num_members, len(each.spectra[1]))
            for k, each in zip(keys, surveys, strict=True)
        )

    def batches(self, key: Array, members: Int[np.ndarray, " member"], num_steps: int, size: int) -> Batch:
        """The batches of an epoch.

        Args:
            key: the epoch's.
            members: their numbers.
            size: galaxies a batch, drawn with replacement; of galaxies with redshifts as many, or as there are.
        """
        mags: list[Array] = []
        spectra: list[tuple[Array, Array] | None] = []
        for i, (survey, rows, known) in enumerate(zip(self.surveys, self._rows, self._spectra, strict=True)):
            pick = np.stack([rows[m][_draw(key, m, i, 0, rows.shape[1], num_steps, size)] for m in members])
            mags.append(jnp.asarray(survey.mags[pick]))
            if survey.spectra is None or known is None:
                spectra.append(None)
                continue
            num = known.shape[1]
            pick = np.stack([known[m][_draw(key, m, i, 1, num, num_steps, min(size, num))] for m in members])
            spectra.append((jnp.asarray(survey.spectra[0][pick]), jnp.asarray(survey.spectra[1][pick])))
        return Batch(tuple(mags), tuple(spectra))


def _resample(key: Array, num_members: int, num: int) -> Int[np.ndarray, "member galaxy"]:
    """Numbers of galaxies, drawn with replacement for each member."""
    return np.asarray(jax.random.randint(key, (num_members, num), 0, num))


def _draw(
    key: Array, member: int, survey: int, kind: int, num: int, num_steps: int, size: int
) -> Int[np.ndarray, "step size"]:
    return np.asarray(_draw_compiled(key, int(member), survey, kind, num, num_steps, size))


@partial(jax.jit, static_argnames=("num_steps", "size"))
def _draw_compiled(
    key: Array, member: Array, survey: Array, kind: Array, num: Array, num_steps: int, size: int
) -> Int[Array, "step size"]:
    """Numbers below `num` for each step; the keys are those that the step does not use (see `member_loss`)."""

    def one(step: Array) -> Array:
        data = jax.random.split(jax.random.fold_in(step, member), 3)[1]
        return jax.random.randint(jax.random.split(jax.random.fold_in(data, survey))[kind], (size,), 0, num)

    return jax.vmap(one)(jax.random.split(key, num_steps))
