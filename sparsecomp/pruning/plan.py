"""What becomes of each layer, what that takes and costs, and what came near: as text, and as data."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from sparsecomp.errors import InputError
from sparsecomp.pruning.candidate import Candidate
from sparsecomp.pruning.gradients import Loss
from sparsecomp.pruning.metrics import Measurement, accuracy_density
from sparsecomp.pruning.model import prune_model
from sparsecomp.pruning.prune import Method

MIB = 1 << 20
Cost = Literal["nonzeros", "flops", "bytes", "seconds"]
FORMAT = 2


@dataclass(frozen=True)
class Option:
    """One thing a layer may become."""

    candidate: Candidate
    seconds: float
    """Predicted, of all calls of the layer within the compiled model."""
    error: float
    """Predicted, of the layer's output; see `Plan.method`."""

    def __str__(self) -> str:
        return f"{self.candidate} ({self.seconds * 1e3:.3f} ms, {self.error:.3g})"

    def as_dict(self) -> dict[str, Any]:
        return {
            "pattern": str(self.candidate.structure),
            "sparsity": self.candidate.sparsity,
            "ms": self.seconds * 1e3,
            "error": self.error,
        }

    @staticmethod
    def of(data: Mapping[str, Any]) -> Option:
        """Inverse of `as_dict`."""
        candidate = Candidate(data["pattern"], data["sparsity"])
        return Option(candidate, data["ms"] / 1e3, float(data["error"]))


@dataclass(frozen=True)
class LayerPlan:
    """One layer."""

    name: str
    shape: tuple[int, ...]
    """Of its weight, as the model stores it."""
    chosen: Option
    dense_seconds: float
    """Predicted as well."""
    runners_up: tuple[Option, ...] = ()
    """The nearest first."""
    format: str = "dense"
    """The smallest exact one of its weight: see `storage`."""
    nbytes: int = 0
    """Of the weight in that format."""
    note: str = ""
    """Why it stays dense, or was pruned in another way than asked for."""

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "shape": list(self.shape),
            "chosen": self.chosen.as_dict(),
            "dense_ms": self.dense_seconds * 1e3,
            "runners_up": [option.as_dict() for option in self.runners_up],
            "format": self.format,
            "bytes": self.nbytes,
            "note": self.note,
        }

    @staticmethod
    def of(data: Mapping[str, Any]) -> LayerPlan:
        """Inverse of `as_dict`."""
        return LayerPlan(
            data["name"],
            tuple(data["shape"]),
            Option.of(data["chosen"]),
            data["dense_ms"] / 1e3,
            tuple(map(Option.of, data["runners_up"])),
            data["format"],
            data["bytes"],
            data["note"],
        )


@dataclass(frozen=True)
class Totals:
    """Of the whole model. Seconds are on the example; None where nothing was measured or evaluated."""

    predicted_seconds: float
    """Before the plan itself was measured: from layers alone and, where whole models are timed, two of these, dense and
    sparse, and those that were tried before it (a note then says what the first of them was predicted to take)."""
    dense_bytes: int
    bytes: int
    """Of all parameters and buffers, each sparse weight in its smallest exact format."""
    weights: int
    """Of the layers that may be pruned."""
    kept: int
    error: float
    """The sum of the layers' predicted errors."""
    measured_seconds: float | None = None
    dense_seconds: float | None = None
    """Compiled by this library."""
    eager_seconds: float | None = None
    """Dense, by PyTorch."""
    dense_loss: float | None = None
    """What `evaluate` says of the dense model."""
    loss: float | None = None
    """What it says of the pruned one."""
    dense_quality: float | None = None
    """What `quality` says of the dense model."""
    quality: float | None = None
    """What it says of the pruned one."""
    parameters: int = 0
    """Of the whole model."""
    nonzeros: int = 0
    """Parameters of the pruned model that are not zero."""
    dense_flops: int = 0
    """Of the layers that may be pruned, on the example; two for a multiply-add."""
    flops: int = 0
    """Those of them by weights that are not zero."""
    formats: Mapping[str, int] = field(default_factory=dict)
    """Bytes of the layers that became sparse, together, by format; the smallest first."""

    @property
    def densities(self) -> tuple[float, float] | None:
        """Quality per million parameters that are not zero, of the dense model and of the pruned one; None where no
        quality was asked for."""
        if self.dense_quality is None or self.quality is None:
            return None
        return accuracy_density(self.dense_quality, self.parameters), accuracy_density(
            self.quality, self.nonzeros
        )

    @property
    def sparsity(self) -> float:
        return 1 - self.kept / max(1, self.weights)

    @property
    def speedup(self) -> float | None:
        """Measured, over the dense model compiled by this library."""
        both = self.measured_seconds and self.dense_seconds
        return self.dense_seconds / self.measured_seconds if both else None  # type: ignore[operator]

    @property
    def eager_speedup(self) -> float | None:
        """Measured, over the dense model in PyTorch."""
        both = self.measured_seconds and self.eager_seconds
        return self.eager_seconds / self.measured_seconds if both else None  # type: ignore[operator]


@dataclass(frozen=True)
class Plan:
    """The outcome of `sparsify`. `print(plan)` for people, `as_dict()` for programs, `plan.model` for the compiler."""

    goal: str
    """What was asked for: "target_speedup=2"."""
    method: Method
    """How weights are chosen and repaired: see `prune_weight`."""
    allocation: str
    device: str
    threads: int
    layers: tuple[LayerPlan, ...]
    totals: Totals
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    """That the planning took; of a resumed run, since it was resumed."""
    pruned: nn.Module | None = field(default=None, repr=False, compare=False)

    @property
    def model(self) -> nn.Module:
        """The pruned copy, for `compile_sparse`.

        Raises:
            InputError: the plan was loaded from a file, which holds no weights.
        """
        if self.pruned is None:
            raise InputError(
                "a plan from a file holds no weights: plan.apply(model, calibration) prunes the model again."
            )
        return self.pruned

    @property
    def choices(self) -> dict[str, Candidate]:
        """Layer -> what it becomes."""
        return {layer.name: layer.chosen.candidate for layer in self.layers}

    def measurement(self, cost: Cost) -> Measurement:
        """For `smallest_within`, which of several plans is the smallest of nearly the dense model's quality.

        Args:
            cost: "nonzeros", "flops", "bytes", or "seconds", which are measured ones where there are any.

        Raises:
            InputError: neither `quality` nor `evaluate` said how good the plan's model is.
        """
        totals = self.totals
        if totals.quality is None and totals.loss is None:
            raise InputError("how good this plan's model is was not asked for: give quality= or evaluate=.")
        quality = totals.quality if totals.quality is not None else -(totals.loss or 0.0)
        seconds = totals.measured_seconds or totals.predicted_seconds
        costs = {
            "nonzeros": totals.nonzeros,
            "flops": totals.flops,
            "bytes": totals.bytes,
            "seconds": seconds,
        }
        return Measurement(costs[cost], quality)

    def apply(self, model: nn.Module, calibration: Sequence[Any] = (), loss: Loss | None = None) -> nn.Module:
        """A copy of the model pruned by this plan.

        Args:
            model: Has the layers that the plan names. It is left as it is.
            calibration: Batches, as for `sparsify`; none: by magnitude.
            loss: As for `sparsify`.

        Raises:
            InputError: the model lacks a layer, or a batch cannot be used.
        """
        pruned = copy.deepcopy(model)
        wanted = {name: c for name, c in self.choices.items() if not c.is_dense}
        prune_model(pruned, wanted, list(calibration), self.method, loss=loss)
        return pruned

    def as_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "goal": self.goal,
            "method": self.method,
            "allocation": self.allocation,
            "device": self.device,
            "threads": self.threads,
            "seconds": self.seconds,
            "notes": list(self.notes),
            "totals": asdict(self.totals)
            | {
                "sparsity": self.totals.sparsity,
                "speedup": self.totals.speedup,
                "eager_speedup": self.totals.eager_speedup,
            },
            "layers": [layer.as_dict() for layer in self.layers],
        }

    @staticmethod
    def of(data: Mapping[str, Any]) -> Plan:
        """Inverse of `as_dict`, but for the weights."""
        totals = {key: value for key, value in data["totals"].items() if key in Totals.__dataclass_fields__}
        names = ("goal", "method", "allocation", "device", "threads", "seconds")
        return Plan(
            **{name: data[name] for name in names},
            layers=tuple(map(LayerPlan.of, data["layers"])),
            totals=Totals(**totals),
            notes=tuple(data["notes"]),
        )

    def save(self, path: str | Path) -> None:
        """As JSON, without the weights."""
        Path(path).write_text(json.dumps(self.as_dict(), indent=1) + "\n")

    @staticmethod
    def load(path: str | Path) -> Plan:
        """
        Raises:
            InputError: the file is no plan, or of another version.
        """
        try:
            data = json.loads(Path(path).read_text())
            if data["format"] != FORMAT:
                raise InputError(f"{path} is a plan of format {data['format']}; this version reads {FORMAT}.")
            return Plan.of(data)
        except InputError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} holds no plan: {type(error).__name__}: {error}.") from error

    def without_model(self) -> Plan:
        """The plan as a file would hold it."""
        return replace(self, pruned=None)

    def __str__(self) -> str:
        from sparsecomp.pruning.plan_text import plan_text

        return plan_text(self)
