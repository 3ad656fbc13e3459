"""A region: a list of calls on feature-major values, converted once at its border and run as one function.

It is described twice. A *section* is what the graph says: layers in order and the tensors between them. A
*region* is what a machine runs: the same with memory layout, conversions and schedules.

A region names nothing of the model it came from: values are `v0, v1, ...`, weights and vectors are numbered.
So two blocks of a network that do the same thing are *equal* regions and share one compiled function; what
differs, their weights, is bound to it afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sparsecomp.epilogue import STEPS, split_steps
from sparsecomp.geometry import Geometry, Planes, TokenRows, Tokens
from sparsecomp.pattern import RowBlocks
from sparsecomp.work import Mean, Work


@dataclass(frozen=True)
class Schedule:
    """How a gathered-row kernel walks its work; every schedule gives the same numbers up to rounding."""

    vectors: int
    """Vectors of columns held in registers per row."""
    columns: int
    """Columns of the weight per pass, so that the rows of X that a pass touches stay in the L1 cache."""
    prefetch: int = 0
    """Floats of the weight stream fetched ahead of use; 0 for none."""

    def __str__(self) -> str:
        return f"V{self.vectors} K{self.columns}" + (f" P{self.prefetch}" if self.prefetch else "")


FEW_TOKENS = 16
"""Up to so many tokens the kernel for few is tried."""


@dataclass(frozen=True)
class FewTokens:
    """The kernel for few tokens, which reads the weights as a bitmap and the activations as PyTorch has them."""

    ahead: int = 512
    """Floats of the values fetched ahead of use; 0 for none."""
    in_place: bool = False
    """Whether it reads a dense weight where the model has it, since another operator needs it there."""

    def __str__(self) -> str:
        return f"{'in place' if self.in_place else 'bitmap'} P{self.ahead}"


@dataclass(frozen=True)
class FewWeights:
    """The kernel for few tokens and few weights, which reads these in octets: eight at once, with a byte for each column."""

    ahead: int = 512
    """Floats of the weights fetched ahead of use; 0 for none."""

    def __str__(self) -> str:
        return f"octets P{self.ahead}"


@dataclass(frozen=True)
class Depthwise:
    """The kernel for depthwise convolutions: all taps, whose places are known when it is compiled."""

    def __str__(self) -> str:
        return "depthwise"


@dataclass(frozen=True)
class OnGpu:
    """A kernel for a GPU: it takes the layer alone, with tensors as PyTorch has them."""

    label: str
    """Tells it from all others that there are for the layer."""
    kernel: Any = field(default=None, compare=False, repr=False)
    """What it is, where it was made for this very layer; None where only its label was kept."""

    def __str__(self) -> str:
        return f"{ON_GPU}{self.label}"


ON_GPU = "GPU "
AnySchedule = Schedule | FewTokens | FewWeights | Depthwise | OnGpu


def is_tokens_first(schedule: AnySchedule) -> bool:
    """Whether its kernel takes activations as PyTorch has them."""
    return isinstance(schedule, FewTokens | FewWeights)


@dataclass(frozen=True)
class RowsKernelChoice:
    """How one primitive is to be run: decided per layer, by measured time."""

    pattern: RowBlocks
    schedule: AnySchedule

    @property
    def tokens_first(self) -> bool:
        """Whether its activations lie as PyTorch has them."""
        return is_tokens_first(self.schedule)

    def __str__(self) -> str:
        if isinstance(self.schedule, OnGpu):
            return self.schedule.label
        return f"{self.pattern} [{self.schedule}]"


@dataclass(frozen=True)
class Value:
    """A feature-major tensor of one item. With `zero_pads` its padding is zero, else anything."""

    channels: int
    geometry: Geometry
    zero_pads: bool = False

    def __str__(self) -> str:
        return f"{self.channels} x {self.geometry}" + (" zero pads" if self.zero_pads else "")


@dataclass(frozen=True)
class Border:
    """A PyTorch tensor at the region's border: tokens x channels, or items x channels x height x width; a score
    mask is items x heads x keys x queries, a cache items x heads x tokens x size; without a height in a region of images, items x channels."""

    channels: int
    height: int = 0
    width: int = 0
    shared: bool = False
    """Whether all items share one: a score mask may be the same for a whole batch."""

    def __str__(self) -> str:
        if not self.height:
            return f"T x {self.channels}"
        return f"{'1' if self.shared else 'N'} x {self.channels} x {self.height} x {self.width}"


Phases = tuple[tuple[int, int], ...]
WHOLE: Phases = ((0, 0),)


@dataclass(frozen=True)
class Enter:
    """Border tensor `source` -> value `target`; images may be split into phases on the way in."""

    source: int
    target: str
    stride: tuple[int, int] = (1, 1)
    phases: Phases = WHOLE

    def __str__(self) -> str:
        return f"{self.target} = enter(input {self.source}){_split(self)}"


@dataclass(frozen=True)
class Split:
    """Plane `c * len(phases) + p` of the target, at (h, w), is plane c of the source at h * stride + phase p."""

    source: str
    target: str
    stride: tuple[int, int]
    phases: Phases

    def __str__(self) -> str:
        return f"{self.target} = split({self.source}){_split(self)}"


@dataclass(frozen=True)
class Rows:
    """target[m, n] = epilogue(sum of weight values * source[offset + n] over the columns kept for row m)."""

    source: str
    target: str
    weight: int
    """Number of the packed weight, in the region's list."""
    shape: tuple[int, int]
    """Rows and columns of the weight as a matrix."""
    kept: int
    """Columns in the list that all rows share; 0 for a pattern with a list per block."""
    pattern: RowBlocks
    schedule: AnySchedule
    epilogue: str = ""
    vectors: tuple[int, ...] = ()
    """Numbers of the per-channel operands of the epilogue, in order."""
    tensors: tuple[str, ...] = ()
    """Values that the epilogue reads, in order."""
    taps: tuple[int, ...] = ()
    """Of a depthwise convolution: where each tap of channel 0 reads, in floats from a pixel."""
    reach: tuple[int, int] = (0, 0)
    """Columns of the grid that the taps of a convolution reach before a pixel and behind it."""

    def __post_init__(self) -> None:
        kinds = [STEPS[step] for step in split_steps(self.epilogue)]
        assert kinds.count("vector") == len(self.vectors)
        assert kinds.count("tensor") == len(self.tensors)

    @property
    def groups(self) -> int:
        return -(-self.shape[0] // self.pattern.rows)

    @property
    def passes(self) -> int:
        if not isinstance(self.schedule, Schedule):
            return 1
        columns = self.kept if self.pattern.shared else self.shape[1]
        return max(1, -(-columns // self.schedule.columns))

    def __str__(self) -> str:
        shape = f"{self.shape[0]}x{self.shape[1]}"
        operands = "".join(f", {name}" for name in self.tensors)
        steps = f" | {self.epilogue}" if self.epilogue else ""
        return (
            f"{self.target} = rows(weight {self.weight} {shape} {self.pattern}, {self.source}{operands})"
            f"{steps}  [{self.schedule}]"
        )


@dataclass(frozen=True)
class Apply:
    """target = epilogue(work(sources)): what is done between layers."""

    work: Work
    sources: tuple[str, ...]
    target: str
    epilogue: str = ""
    vectors: tuple[int, ...] = ()
    """Numbers of the per-channel operands: the work's own, then the epilogue's."""
    tensors: tuple[str, ...] = ()
    plain: tuple[int, ...] = ()
    """The region's inputs that are read as they lie: a score mask, keys and values of earlier tokens."""

    def __str__(self) -> str:
        operands = ", ".join((*self.sources, *self.tensors, *(f"input {number}" for number in self.plain)))
        steps = f" | {self.epilogue}" if self.epilogue else ""
        return f"{self.target} = {self.work}({operands}){steps}"


@dataclass(frozen=True)
class Exit:
    """Value `source` -> border tensor `target`."""

    source: str
    target: int

    def __str__(self) -> str:
        return f"output {self.target} = exit({self.source})"


Call = Enter | Split | Rows | Apply | Exit


def reads(call: Call) -> tuple[str, ...]:
    """The values that a call reads."""
    match call:
        case Enter():
            return ()
        case Rows():
            return (call.source, *call.tensors)
        case Apply():
            return (*call.sources, *call.tensors)
        case Split() | Exit():
            return (call.source,)


def _split(call: Enter | Split) -> str:
    if call.stride == (1, 1):
        return ""
    return f" by {call.stride[0]}x{call.stride[1]} in {len(call.phases)} phases"


@dataclass(frozen=True)
class Region:
    """Inputs and outputs in PyTorch's layout, values in ours, and the calls in order."""

    inputs: tuple[Border, ...]
    outputs: tuple[Border, ...]
    values: tuple[tuple[str, Value], ...]
    calls: tuple[Call, ...]

    @property
    def value(self) -> Mapping[str, Value]:
        return dict(self.values)

    @property
    def tokens(self) -> Tokens | TokenRows | None:
        """The tile of a region whose items are tokens; None where they are images."""
        geometry = self.values[0][1].geometry
        return None if isinstance(geometry, Planes) else geometry

    @property
    def rows_calls(self) -> tuple[Rows, ...]:
        return tuple(call for call in self.calls if isinstance(call, Rows))

    @property
    def vectors(self) -> int:
        """How many per-channel operands there are."""
        return sum(len(call.vectors) for call in self.calls if isinstance(call, Rows | Apply))

    def check(self) -> None:
        """Raise AssertionError unless every value is written once, before it is read, on a fitting grid."""
        value, written = self.value, set[str]()
        for call in self.calls:
            assert set(reads(call)) <= written, f"{call}: reads before writing"
            if isinstance(call, Rows) or (isinstance(call, Apply) and not isinstance(call.work, Mean)):
                grids = {_grid(value[name]) for name in (*reads(call), call.target)}
                assert len(grids) == 1, f"{call}: operands on different grids"
            if not isinstance(call, Exit):
                assert call.target not in written, f"{call}: writes {call.target} again"
                written.add(call.target)

    def __str__(self) -> str:
        lines = [f"input {i}: {border}" for i, border in enumerate(self.inputs)]
        lines += [f"{name}: {value}" for name, value in self.values]
        lines += [str(call) for call in self.calls]
        return "\n".join(lines)


def _grid(value: Value) -> tuple[int, int]:
    geometry = value.geometry
    return (geometry.plane, geometry.row) if isinstance(geometry, Planes) else (geometry.plane, 0)
