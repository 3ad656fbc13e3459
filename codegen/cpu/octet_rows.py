"""The kernel for one token and few weights: each octet's inputs are picked by their bytes.

    y[t, m] = epilogue( sum_k W[m, k] * x[t, k] )        x and y as PyTorch holds them, tokens first

    for each pair of units of 16 rows, far apart:        memory delivers two streams faster than one
        for each token:                                  the pair's octets wait in the L2 cache for the next
            for each of 16 rows, of both units side by side:
                for each octet: 8 floats of x picked, multiplied with the 8 values
            the epilogue, on vectors of 16 rows

No processor is quick at gathering: eight loads into one vector take as long as their addresses do, and two rows
under way at once hide how long each waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tvm
from tvm.script.ir_builder import tirx as T

from sparsecomp.codegen.cpu.emit import Accumulators, Expr, i64, kernel, load, prefetch, splat
from sparsecomp.codegen.cpu.unit_finish import UnitFinish, lane_sum, operand_names, summation
from sparsecomp.codegen.machine import Machine
from sparsecomp.codegen.octets import OCTET, WORDS
from sparsecomp.codegen.shares import SHARES, UNIT

STREAMS = 2
"""Units walked at once, in different parts of the octets."""


@dataclass(frozen=True)
class OctetRows:
    """Everything the kernel is compiled for; calls that agree in it share the kernel."""

    rows: int
    columns: int
    epilogue: str
    ahead: int = 512
    """Floats of the octets fetched ahead of use, in each stream; 0 for none."""


def octet_rows(name: str, spec: OctetRows, machine: Machine) -> tvm.tirx.PrimFunc:
    """Arguments: index, data, balance (see `codegen/octets.py`), order (not used), x (tokens x columns), y (tokens x
    rows), operands of the epilogue (a vector of rows, or of y's shape)...; which part of how many, number of tokens.

    Nothing is read or written outside x, y and the operands. Parts share the rows.
    """
    pointers = [("index", "int32"), ("data", "float32"), ("balance", "int32"), ("order", "int32")]
    pointers += [("x", "float32"), ("y", "float32"), *operand_names(spec.epilogue)]

    def body(*arguments: Expr) -> None:
        *buffers, part, parts, tokens = arguments
        with T.attr(T.int32(0), "pragma_import_llvm", _pick() + summation(OCTET, machine)):
            _Emitter(spec, buffers, tokens).part(part, parts)

    return kernel(name, pointers, ["part", "parts", "tokens"], body)


def _pick() -> str:
    """LLVM IR: the floats of x that eight bytes point to."""
    lines = ["  %bytes = load i64, ptr %places, align 4"]
    for lane in range(OCTET):
        before = f"%v{lane - 1}" if lane else "poison"
        lines += [
            f"  %shifted{lane} = lshr i64 %bytes, {8 * lane}",
            f"  %byte{lane} = and i64 %shifted{lane}, 255",
            f"  %at{lane} = getelementptr float, ptr %x, i64 %byte{lane}",
            f"  %x{lane} = load float, ptr %at{lane}, align 4",
            f"  %v{lane} = insertelement <{OCTET} x float> {before}, float %x{lane}, i32 {lane}",
        ]
    head = f"define linkonce_odr <{OCTET} x float> @sparsecomp_pick(ptr %x, ptr %places) #0 {{"
    return "\n".join([head, *lines, f"  ret <{OCTET} x float> %v{OCTET - 1}", "}"])


class _Emitter:
    def __init__(self, spec: OctetRows, buffers: Sequence[Expr], tokens: Expr) -> None:
        self.spec, self.tokens = spec, tokens
        self.index, self.data, self.balance, _, self.x, y, *operands = buffers
        self.finish = UnitFinish(spec.epilogue, spec.rows, y, operands)

    def part(self, part: Expr, parts: Expr) -> None:
        """Units of the part, the first half along with the second. Where they are odd in number one is computed
        twice, to the same result: that costs less than code of its own."""
        low = T.bind(self.balance[T.truncdiv(part * SHARES, parts)])
        high = T.bind(self.balance[T.truncdiv((part + 1) * SHARES, parts)])
        steps = T.bind(T.truncdiv(high - low + (STREAMS - 1), T.int32(STREAMS)))
        with T.serial(steps) as step, T.serial(self.tokens) as token:
            units = [T.bind(T.min(low + step + steps * s, high - 1)) for s in range(STREAMS)]
            self.units(units, T.bind(i64(token)))

    def units(self, units: Sequence[Expr], token: Expr) -> None:
        """All rows of both units for a token."""
        sums = T.alloc_buffer((STREAMS * UNIT,), "float32")
        x = T.bind(token * self.spec.columns)
        with T.serial(T.int32(UNIT)) as row:
            totals = self.rows([T.bind(unit * UNIT + row) for unit in units], x)
            for s, total in enumerate(totals):
                T.buffer_store(sums, total, [row + s * UNIT])
        for s, unit in enumerate(units):
            self.finish.emit(sums, T.int32(s * UNIT), T.bind(i64(unit) * UNIT), token)

    def rows(self, rows: Sequence[Expr], x: Expr) -> list[Expr]:
        """Sums of two rows: side by side as far as both go, then what one has left."""
        sums = Accumulators(STREAMS, OCTET)
        for s in range(STREAMS):
            sums[s] = splat(0.0, OCTET)
        first = [T.bind(self.index[row]) for row in rows]
        count = [T.bind(self.index[row + 1] - start) for row, start in zip(rows, first, strict=True)]
        both = T.bind(T.min(*count))
        with T.serial(both) as i:
            for s in range(STREAMS):
                self.octet(i64(first[s] + i), x, sums, s)
        for s in range(STREAMS):
            with T.serial(count[s] - both) as i:
                self.octet(i64(first[s] + both + i), x, sums, s)
        return [lane_sum(sums[s], OCTET) for s in range(STREAMS)]

    def octet(self, octet: Expr, x: Expr, sums: Accumulators, s: int) -> None:
        at = T.bind(octet * WORDS)
        if self.spec.ahead:
            prefetch(self.data, at + self.spec.ahead)
        base = T.bind(x + i64(T.reinterpret("int32", self.data[at + WORDS - 1])))
        pointers = (T.address_of(self.x[base]), T.address_of(self.data[at + OCTET]))
        picked = T.call_extern(f"float32x{OCTET}", "sparsecomp_pick", *pointers)
        sums[s] = sums[s] + load(self.data, at, OCTET) * picked
