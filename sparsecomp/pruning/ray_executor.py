"""Calls that run on the machines of a Ray cluster, for whatever takes a `concurrent.futures.Executor`."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, ParamSpec, TypeVar

from sparsecomp.errors import InputError

P = ParamSpec("P")
T = TypeVar("T")


class RayExecutor(Executor):
    """Each call is a task of Ray. That of a worker or a machine that is lost runs again on another.

    ray.init("auto")
    with RayExecutor(cores=8) as executor:
        found = sweep(model, calibration, evaluate, executor=executor)

    Args:
        cores: Of each call. Where times are measured let it be all that a machine has: two calls on one machine would
            disturb each other.
        retries: How often a call runs again whose machine was lost.

    Raises:
        InputError: Ray is not installed, or `ray.init` was not called.
    """

    def __init__(self, cores: float = 1, retries: int = 3) -> None:
        try:
            import ray
        except ImportError:
            raise InputError("Ray is not installed: pip install 'sparsecomp[ray]'.") from None
        if not ray.is_initialized():
            raise InputError("Ray is not connected: call ray.init() here, or ray.init('auto') on a cluster.")
        self._ray = ray
        self._task = ray.remote(_call).options(num_cpus=cores, max_retries=retries)
        self._sent: list[tuple[Callable[..., Any], Any]] = []
        """Functions, and where the cluster has them: a model that one holds travels once."""
        self._running: list[Any] = []

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        sent = next((reference for known, reference in self._sent if known is fn), None)
        if sent is None:
            sent = self._ray.put(fn)
            self._sent.append((fn, sent))
        reference = self._task.remote(sent, args, kwargs)
        self._running.append(reference)
        future: Future[T] = reference.future()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """The cluster goes on: it is not this object's."""
        if cancel_futures:
            for reference in self._running:
                self._ray.cancel(reference)
        elif wait and self._running:
            self._ray.wait(self._running, num_returns=len(self._running))


def _call(fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
    return fn(*args, **kwargs)
