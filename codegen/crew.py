"""Several benches take jobs from one queue. The job of one that is lost goes to another."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from sparsecomp.codegen.workbench import Bench, BenchLostError

Job = TypeVar("Job")
ATTEMPTS = 3
"""Benches that one job may lose before it is given up: it may be what ends them."""


@dataclass
class Crew(Generic[Job]):
    """`work` does one job on one bench. Each bench has a thread of its own; a single one uses the caller's."""

    benches: list[Bench]
    work: Callable[[Job, Bench], None]
    notes: list[str] = field(default_factory=list)
    """Benches that were lost and jobs that were given up, and why."""
    stopping: threading.Event = field(default_factory=threading.Event)

    def run(self, jobs: Sequence[Job]) -> None:
        """Returns when no job is left, or no bench. Jobs are begun in their order.

        Raises:
            KeyboardInterrupt: after the benches have ended what they were measuring.
            Exception: whatever else a job raised.
        """
        self._waiting = deque((job, 0) for job in jobs)
        self._open = len(self._waiting)
        self._failed: list[BaseException] = []
        self._change = threading.Condition()
        if len(self.benches) == 1:
            self._serve(self.benches[0])
        else:
            self._serve_together()
        if self._failed:
            raise self._failed[0]
        if self._waiting:
            self.notes.append(f"no device is left: {len(self._waiting)} of {len(jobs)} calls are not done")

    def _serve_together(self) -> None:
        threads = [threading.Thread(target=self._serve, args=(bench,)) for bench in list(self.benches)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.2)  # so that an interrupt is heard
        except KeyboardInterrupt:
            self.stopping.set()
            for thread in threads:
                thread.join()
            raise

    def _serve(self, bench: Bench) -> None:
        while (taken := self._take()) is not None:
            job, lost = taken
            try:
                self.work(job, bench)
            except BenchLostError as error:
                self._lose(bench, job, lost + 1, error)
                return
            except KeyboardInterrupt:
                raise
            except Exception as error:  # noqa: BLE001  raised again by `run`
                self._failed.append(error)
                self.stopping.set()
            self._end_one()

    def _take(self) -> tuple[Job, int] | None:
        """The next job; waits while others may still give theirs back. None where all is done."""
        with self._change:
            while not self._waiting and self._open and not self.stopping.is_set():
                self._change.wait(0.2)
            if self.stopping.is_set() or not self._waiting:
                return None
            return self._waiting.popleft()

    def _lose(self, bench: Bench, job: Job, lost: int, error: BenchLostError) -> None:
        with self._change:
            self.benches.remove(bench)
            self.notes.append(f"{error}; {len(self.benches)} left")
            if lost < ATTEMPTS:
                self._waiting.appendleft((job, lost))
            else:
                self._open -= 1
                self.notes.append(f"given up after {lost} devices were lost with it: {job}")
            self._change.notify_all()

    def _end_one(self) -> None:
        with self._change:
            self._open -= 1
            self._change.notify_all()
