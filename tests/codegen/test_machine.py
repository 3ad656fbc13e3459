"""Code for three kinds of machine, looked at as assembly; one of them also run here."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from sparsecomp.codegen.compiled_region import Code, compile_region
from sparsecomp.codegen.layout import lay_out, source_geometry
from sparsecomp.codegen.lowered_region import LoweredRegion
from sparsecomp.codegen.machine import machine_of
from sparsecomp.codegen.schedules import schedules
from sparsecomp.codegen.stream import Stream, make_stream
from sparsecomp.epilogue import apply
from sparsecomp.errors import InputError
from sparsecomp.layer import Layer
from sparsecomp.pattern import PATTERNS, RowBlocks, pack
from sparsecomp.region import RowsKernelChoice, Schedule
from sparsecomp.section import Section, SectionOp
from sparsecomp.target import Target

ON_X86 = platform.machine() in ("x86_64", "AMD64")
LAYERS = {
    "linear": Layer("fc", "linear", "w", (64, 96), (128, 96)),
    "conv": Layer("conv", "conv2d", "w", (64, 32, 3, 3), (1, 32, 28, 28), padding=(1, 1, 1, 1)),
}


@dataclass(frozen=True)
class Expected:
    """How a target's code should look; patterns are of lines of assembly."""

    target: Target
    lanes: int
    registers: int
    multiply_add: str
    scalar: str
    spill: str


X86_SPILL = r"\(%rsp[,)].*mm\d+|mm\d+.*\(%rsp[,)]"
MACHINES = {
    "avx512": Expected(
        Target(cpu="znver4"), 16, 32, r"vfmadd\d+ps\s.*%zmm\d+$", r"vfn?m(add|sub)\d+ss|v?mulss", X86_SPILL
    ),
    "avx2": Expected(
        Target(cpu="x86-64-v3"), 8, 16, r"vfmadd\d+ps\s.*%ymm\d+$", r"vfn?m(add|sub)\d+ss|v?mulss", X86_SPILL
    ),
    "neon": Expected(
        Target(cpu="neoverse-v1", triple="aarch64-linux-gnu"),
        4,
        32,
        r"fmla\s+v\d+\.4s",
        r"f(n?m(add|sub|ul))\s+s\d+",
        r"(str|ldr|stp|ldp)\s+q\d+.*\[sp",
    ),
}


def section_of(layer: Layer) -> Section:
    return Section(("x",), (SectionOp("s", layer, "x", "y", "bias relu"),), ("y",))


def compiled(layer: Layer, matrix: Tensor, pattern: RowBlocks, target: Target) -> tuple[Code, Stream]:
    """The layer with the schedule that is tried first."""
    section, machine = section_of(layer), machine_of(target)
    geometry = source_geometry(section)["s"]
    schedule = schedules(layer, geometry, pattern, machine)[0]
    stream = make_stream(pack(matrix, pattern), layer, geometry, schedule)
    region = lay_out(section, [RowsKernelChoice(pattern, schedule)], [stream.kept])
    return compile_region(region, machine), stream


def inner_loops(assembly: str, multiply_add: str) -> list[list[str]]:
    """Basic blocks that multiply and end in a jump back to their own start."""
    lines = [line.split("#")[0].strip() for line in assembly.splitlines()]
    code = "\n".join(line for line in lines if re.match(r"[a-z]|\.LBB", line))
    loops = []
    for block in re.split(r"^(?=\.LBB)", code, flags=re.MULTILINE):
        label, _, body = block.partition(":\n")
        jump = re.search(rf"^(j|b|cb|tb)\S*\s.*{re.escape(label)}$", body, re.MULTILINE)
        if jump and re.search(multiply_add, body, re.MULTILINE):
            loops.append(body[: jump.end()].splitlines())
    return loops


@pytest.mark.parametrize("pattern", [RowBlocks(1), RowBlocks(4), RowBlocks(8, shared=True)], ids=str)
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("expected", MACHINES.values(), ids=MACHINES)
def test_inner_loops_are_vector_multiply_adds_in_registers(
    expected: Expected, layer: Layer, pattern: RowBlocks
) -> None:
    code, stream = compiled(layer, torch.ones(layer.rows, layer.columns), pattern, expected.target)
    loops = inner_loops(code.source("asm"), expected.multiply_add)
    counts = [sum(bool(re.search(expected.multiply_add, line)) for line in loop) for loop in loops]
    assert isinstance(stream.schedule, Schedule)
    assert max(counts, default=0) >= pattern.rows * stream.schedule.vectors
    for line in (line for loop in loops for line in loop):
        assert not re.search(expected.scalar, line), line
        assert not re.search(expected.spill, line), line


@pytest.mark.parametrize("expected", MACHINES.values(), ids=MACHINES)
def test_a_machine_knows_its_vectors(expected: Expected) -> None:
    machine = machine_of(expected.target)
    assert (machine.lanes, machine.registers) == (expected.lanes, expected.registers)
    assert str(machine) == f"{expected.target.cpu} ({expected.lanes} lanes)"


def test_native_is_resolved_to_a_name() -> None:
    assert machine_of(Target()).cpu not in ("native", "")


def test_an_unknown_processor_is_an_input_error() -> None:
    with pytest.raises(InputError, match="LLVM knows no CPU named 'pentium9'") as error:
        machine_of(Target(cpu="pentium9"))
    for suggested in re.findall(r"Target\.(\w+)", str(error.value)):
        assert hasattr(Target, suggested), f"the message suggests Target.{suggested}, which does not exist"


@pytest.mark.skipif(not ON_X86, reason="runs x86 code")
@pytest.mark.parametrize("cpu", ["x86-64", "x86-64-v3"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_code_for_smaller_machines_gives_the_same_numbers(layer: Layer, pattern: RowBlocks, cpu: str) -> None:
    if cpu == "x86-64-v3" and "AVX" not in torch.backends.cpu.get_cpu_capability():
        pytest.skip("this machine has no AVX2")
    matrix = torch.randn(layer.rows, layer.columns) * (torch.rand(layer.rows, layer.columns) < 0.2)
    code, stream = compiled(layer, matrix, pattern, Target(cpu=cpu))
    x, bias = layer.example(), torch.randn(layer.rows)
    (y,) = LoweredRegion(code, [stream], [bias], lambda: 1).run([x])
    expected = layer.dense(x.double(), matrix.double())
    expected = apply(expected, "bias relu", [bias.double()], channel=-1 if layer.op == "linear" else 1)
    assert float((y.double() - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
