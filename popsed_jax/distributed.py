"""One fit by several processes, each with its own devices: joining them, and what to say when one is lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import jax
from jax.experimental.multihost_utils import sync_global_devices
from jax.extend.backend import clear_backends

HEARTBEAT_SECONDS = 30
_OWN = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED")  # errors that no other process can cause


class LostProcessError(RuntimeError):
    """Another process of a distributed fit ended or cannot be reached."""


def join(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Become one of the processes of a distributed fit. Before anything else that uses JAX.

    Args:
        coordinator: HOST:PORT of process 0; None, with the others: from the cluster's environment (SLURM, Open MPI, Kubernetes,
            a TPU pod).
        num_processes: of all.
        process_id: of this one, from 0.

    Raises:
        ValueError: some are given and others not; no environment that names them; they do not meet within two minutes.
    """
    given = (coordinator, num_processes, process_id)
    if any(value is not None for value in given) and any(value is None for value in given):
        raise ValueError("distributed: give all of --coordinator HOST:PORT, --num-processes and --process-id, or none")
    if num_processes is not None and process_id is not None and not 0 <= process_id < num_processes:
        raise ValueError(f"distributed: --process-id {process_id} must be from 0 to {num_processes - 1}")
    # DSPS computes a constant when it is imported, which starts JAX's devices; processes can only join before they are.
    clear_backends()
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=120,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=60,
        )
    except (ValueError, RuntimeError) as error:
        if coordinator is None:
            raise ValueError(
                "distributed: the environment does not say which processes belong together (SLURM, Open MPI, Kubernetes and TPU "
                f"pods do); give --coordinator HOST:PORT, --num-processes and --process-id. {error}"
            ) from None
        raise ValueError(f"distributed: the {num_processes} processes did not meet at {coordinator}: {error}") from None
    with named_losses():
        sync_global_devices("joined")


@contextmanager
def named_losses() -> Iterator[None]:
    """Turn a failed exchange with another process into an error that says what to do.

    Raises:
        LostProcessError: another process ended or cannot be reached.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or str(error).startswith(_OWN):
            raise
        raise LostProcessError(
            f"another of the {jax.process_count()} processes ended or cannot be reached, so that this one (number "
            f"{jax.process_index()}) ends too. Start all of them again with --resume: nothing before the last epoch is lost. "
            f"({str(error).splitlines()[0][:200]})"
        ) from None
