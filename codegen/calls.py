"""Each call of a region -> the kernel that serves it, and what that is called with.

To add a kernel: a file in `codegen/cpu/`, a line in `RULES`, and a case in `specify` and `arguments`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from sparsecomp.codegen.cpu.attention import AttentionKernel, attention
from sparsecomp.codegen.cpu.bitmap_rows import BitmapRows, bitmap_rows
from sparsecomp.codegen.cpu.cached_attention import CachedAttentionKernel, cached_attention
from sparsecomp.codegen.cpu.gathered_rows import RowsKernel, gathered_rows
from sparsecomp.codegen.cpu.mean import MeanKernel, mean
from sparsecomp.codegen.cpu.norm_rows import NormRowsKernel, norm_rows
from sparsecomp.codegen.cpu.norms import NormKernel, norm
from sparsecomp.codegen.cpu.octet_rows import OctetRows, octet_rows
from sparsecomp.codegen.cpu.planes import CopyPlanes, copy_planes
from sparsecomp.codegen.cpu.taps import TapsKernel, taps
from sparsecomp.codegen.cpu.tokens import (
    CopyRows,
    EnterTokens,
    ExitTokens,
    copy_rows,
    enter_tokens,
    exit_tokens,
)
from sparsecomp.codegen.machine import Machine
from sparsecomp.codegen.table import Address, Frame, tile_step
from sparsecomp.epilogue import STEPS, split_steps
from sparsecomp.geometry import Planes, TokenRows, offsets
from sparsecomp.region import (
    AnySchedule,
    Apply,
    Call,
    Depthwise,
    Enter,
    Exit,
    FewTokens,
    FewWeights,
    OnGpu,
    Region,
    Rows,
    Schedule,
    Split,
    Value,
    reads,
)
from sparsecomp.work import Attention, CachedAttention, Mean, Norm, Pointwise, Pool

LastArgument = Literal["", "tokens", "vectors", "bands"]
Where = TypeVar("Where")
"""An address, or an expression that computes one."""

RULES: Mapping[type, Callable[[str, Any, Machine], Any]] = {
    RowsKernel: gathered_rows,
    BitmapRows: bitmap_rows,
    OctetRows: octet_rows,
    CopyRows: copy_rows,
    EnterTokens: enter_tokens,
    ExitTokens: exit_tokens,
    CopyPlanes: copy_planes,
    NormKernel: norm,
    NormRowsKernel: norm_rows,
    AttentionKernel: attention,
    CachedAttentionKernel: cached_attention,
    TapsKernel: taps,
    MeanKernel: mean,
}
"""Which file makes which kernel."""


@dataclass(frozen=True)
class Kernel:
    """A kernel and how it is called."""

    spec: Any
    """What it is compiled for: the key in `RULES` is its type."""
    last: LastArgument
    """Its last argument: the number of tokens, of vectors of columns (0 for images), or of bands of columns."""
    whole: bool
    """Whether one invocation does all tiles of an item."""


def kernel_of(call: Call, region: Region, machine: Machine) -> Kernel:
    """The kernel that serves a call; calls that agree in it share it."""
    whole = isinstance(call, Apply) and isinstance(call.work, Attention)
    return Kernel(specify(call, region, machine), last_argument(call, region), whole)


def last_argument(call: Call, region: Region) -> LastArgument:
    if _token_rows(region):
        return "tokens"
    match call:
        case Enter() | Exit():
            return "tokens" if region.tokens is not None else ""
        case Rows():
            if not isinstance(call.schedule, Schedule):
                return ""
            return "vectors" if region.tokens is not None else "bands"
        case Apply():
            return "vectors" if isinstance(call.work, Norm) else ""
    return ""


# Specifications -----------------------------------------------------------------------------------------


def specify(call: Call, region: Region, machine: Machine) -> Any:
    """What the call's kernel is compiled for; calls that agree in it share the kernel."""
    match call:
        case Rows():
            return _rows(call, region, machine)
        case Enter():
            return _enter(call, region)
        case Split():
            return _split(call, region)
        case Exit():
            return _exit(call, region)
        case Apply():
            return _apply(call, region, machine)


def _static_vectors(value: Value, machine: Machine) -> int:
    """Vectors of columns in an item, or 0 where that is known only at run time (tokens)."""
    return -(-value.geometry.columns // machine.lanes) if isinstance(value.geometry, Planes) else 0


def _masked(value: Value) -> bool:
    return isinstance(value.geometry, Planes) and value.zero_pads


def _rows(call: Rows, region: Region, machine: Machine) -> RowsKernel | BitmapRows | OctetRows | TapsKernel:
    target, tensors = region.value[call.target], [region.value[name] for name in call.tensors]
    if isinstance(call.schedule, FewTokens):
        few, dense = call.schedule, call.pattern.shared and not call.schedule.in_place
        return BitmapRows(*call.shape, call.epilogue, dense, few.in_place, few.ahead)
    if isinstance(call.schedule, FewWeights):
        return OctetRows(*call.shape, call.epilogue, call.schedule.ahead)
    if isinstance(call.schedule, Depthwise):
        return _reduction("weighted", call.taps, 1.0, call, region, machine)
    assert isinstance(call.schedule, Schedule)
    return RowsKernel(
        groups=call.groups,
        columns=call.kept,
        passes=call.passes,
        pattern=call.pattern,
        schedule=call.schedule,
        vectors=_static_vectors(target, machine),
        target_plane=target.geometry.plane,
        operand_planes=tuple(tensor.geometry.plane for tensor in tensors),
        epilogue=call.epilogue,
        masked=_masked(target),
    )


def _enter(call: Enter, region: Region) -> EnterTokens | CopyRows | CopyPlanes:
    border, target = region.inputs[call.source], region.value[call.target]
    if isinstance(target.geometry, TokenRows):
        return CopyRows(border.channels)
    if not isinstance(target.geometry, Planes):
        return EnterTokens(border.channels, target.geometry.tile)
    return CopyPlanes(
        border.channels,
        border.height,
        border.width,
        source=(border.height * border.width, border.width),
        target=(target.geometry.plane, target.geometry.row),
        stride=call.stride,
        phases=call.phases,
    )


def _split(call: Split, region: Region) -> CopyPlanes:
    source, target = region.value[call.source].geometry, region.value[call.target].geometry
    assert isinstance(source, Planes)
    assert isinstance(target, Planes)
    return CopyPlanes(
        region.value[call.source].channels,
        source.height,
        source.width,
        source=(source.plane, source.row),
        target=(target.plane, target.row),
        stride=call.stride,
        phases=call.phases,
    )


def _exit(call: Exit, region: Region) -> ExitTokens | CopyRows | CopyPlanes:
    border, source = region.outputs[call.target], region.value[call.source]
    if isinstance(source.geometry, TokenRows):
        return CopyRows(border.channels)
    if not isinstance(source.geometry, Planes):
        return ExitTokens(border.channels, source.geometry.tile)
    height, width = source.geometry.height, source.geometry.width
    return CopyPlanes(
        border.channels,
        height,
        width,
        source=(source.geometry.plane, source.geometry.row),
        target=(height * width, width),
        stride=(1, 1),
        phases=((0, 0),),
    )


def _apply(call: Apply, region: Region, machine: Machine) -> Any:
    source, target = region.value[call.sources[0]], region.value[call.target]
    work = call.work
    match work:
        case Norm():
            assert not call.epilogue
            if isinstance(target.geometry, TokenRows):
                return NormRowsKernel(work.kind, work.channels, work.epsilon, work.weight, work.bias)
            return NormKernel(
                kind=work.kind,
                channels=work.channels,
                source_plane=source.geometry.plane,
                target_plane=target.geometry.plane,
                epsilon=work.epsilon,
                weight=work.weight,
                bias=work.bias,
                vectors=_static_vectors(target, machine),
                masked=_masked(target),
            )
        case Attention():
            return _attention(call, work, region)
        case CachedAttention():
            channels = [region.value[name].channels for name in call.sources]
            return CachedAttentionKernel(
                heads=work.heads,
                key_heads=work.key_heads,
                size=work.size,
                value_size=work.value_size,
                past=work.past,
                steps=(channels[0], channels[1], channels[2]),
                scale=work.scale,
            )
        case Mean():
            assert isinstance(source.geometry, Planes)
            image = source.geometry
            return MeanKernel(
                source.channels, image.plane, image.height, image.width, image.row, target.geometry.plane
            )
        case Pool() | Pointwise():
            return _taps(call, work, region, machine)


def _attention(call: Apply, work: Attention, region: Region) -> AttentionKernel:
    value, tokens = region.value, region.tokens
    assert tokens is not None
    steps = [tile_step(value[name]) for name in (*call.sources, call.target)]
    mask = None
    if call.plain:
        border = region.inputs[call.plain[0]]
        mask = (border.height * border.width if border.channels > 1 else 0, 1, border.width)
    return AttentionKernel(
        heads=work.heads,
        size=work.size,
        value_size=work.value_size,
        tokens=tokens.length,
        tile=tokens.tile,
        steps=(steps[0], steps[1], steps[2], steps[3]),
        scale=work.scale,
        causal=work.causal,
        mask=mask,
        key_heads=work.key_heads,
    )


def _taps(call: Apply, work: Pool | Pointwise, region: Region, machine: Machine) -> TapsKernel:
    if isinstance(work, Pointwise):
        return _reduction("sum", (0,), 1.0, call, region, machine)
    table = offsets(work.window, region.value[call.sources[0]].geometry)[0]
    places = tuple(int(offset) for offset in table)
    scale = 1.0 / len(places) if work.kind == "mean" else 1.0
    return _reduction("max" if work.kind == "max" else "sum", places, scale, call, region, machine)


def _reduction(
    kind: Literal["max", "sum", "weighted"],
    places: tuple[int, ...],
    scale: float,
    call: Rows | Apply,
    region: Region,
    machine: Machine,
) -> TapsKernel:
    source, target = region.value[reads(call)[0]], region.value[call.target]
    return TapsKernel(
        kind=kind,
        channels=target.channels,
        phases=source.channels // target.channels,
        offsets=places,
        source_plane=source.geometry.plane,
        target_plane=target.geometry.plane,
        vectors=-(-target.geometry.columns // machine.lanes),
        scale=scale,
        masked=_masked(target),
        epilogue=call.epilogue,
        operand_planes=tuple(region.value[name].geometry.plane for name in call.tensors),
    )


# Arguments ----------------------------------------------------------------------------------------------


def arguments(call: Call, frame: Frame) -> list[Address]:
    """Addresses, in the order of the kernel's parameters."""
    match call:
        case Rows():
            return _rows_arguments(call, frame)
        case Enter():
            return [frame.input(call.source), frame.position(call.target)]
        case Split():
            return [frame.position(call.source), frame.position(call.target)]
        case Exit():
            return [frame.position(call.source), frame.output(call.target)]
        case Apply():
            return _apply_arguments(call, frame)


def _rows_arguments(call: Rows, frame: Frame) -> list[Address]:
    places = (frame.position(call.source), frame.position(call.target), frame.mask(call.target))
    operands = _operands(call.epilogue, call.vectors, call.tensors, frame)
    return order_arguments(call.schedule, frame.weight(call.weight), places, operands)


def order_arguments(
    schedule: AnySchedule,
    weight: Sequence[Where],
    places: tuple[Where, Where, Where],
    operands: Sequence[Where] = (),
) -> list[Where]:
    """Of a layer's kernel: the parts of its stream; x, y and the mask; operands of the epilogue."""
    x, y, mask = places
    match schedule:
        case FewTokens() | FewWeights():
            return [*weight, x, y, *operands]
        case Depthwise():
            return [x, y, mask, weight[1], *operands]
        case Schedule():
            return [*weight, x, y, mask, *operands]
        case OnGpu():
            raise AssertionError("a kernel for GPUs is in no list of calls")


def _apply_arguments(call: Apply, frame: Frame) -> list[Address]:
    sources, target = [frame.position(name) for name in call.sources], frame.position(call.target)
    match call.work:
        case Attention():
            tile = frame.region.tokens
            assert tile is not None
            starts = [start * tile.tile for start in call.work.starts]
            parts = [source.after(start) for source, start in zip(sources, starts, strict=True)]
            scores = frame.input(call.plain[0]) if call.plain else frame.nothing
            return [*parts, scores, target]
        case CachedAttention():
            parts = [source.after(start) for source, start in zip(sources, call.work.starts, strict=True)]
            return [*parts, *map(frame.input, call.plain), target]
        case Mean():
            return [*sources, target]
        case Norm():
            vectors = list(map(frame.vector, call.vectors))
            mask = [] if _token_rows(frame.region) else [frame.mask(call.target)]
            return [*sources, target, *mask, *vectors]
        case Pool() | Pointwise():
            operands = _operands(call.epilogue, call.vectors, call.tensors, frame)
            return [*sources, target, frame.mask(call.target), *operands]


def _operands(
    epilogue: str, vectors: tuple[int, ...], tensors: tuple[str, ...], frame: Frame
) -> list[Address]:
    numbers, names = iter(vectors), iter(tensors)
    operands = []
    for step in split_steps(epilogue):
        match STEPS[step]:
            case "vector":
                operands.append(frame.vector(next(numbers)))
            case "tensor":
                operands.append(frame.position(next(names)))
    return operands


def _token_rows(region: Region) -> bool:
    return isinstance(region.tokens, TokenRows)
