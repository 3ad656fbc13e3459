"""How kernels for few tokens end: lanes added up to a row's sum, the epilogue on vectors of 16 rows of a token."""

from __future__ import annotations

from collections.abc import Sequence

from tvm.script.ir_builder import tirx as T

from sparsecomp.codegen.cpu.emit import Accumulators, Expr, load
from sparsecomp.codegen.cpu.epilogues import HEAVY_STEPS, VECTOR_FORMS
from sparsecomp.codegen.machine import Machine
from sparsecomp.codegen.shares import UNIT
from sparsecomp.epilogue import STEPS, split_steps

SUM = """
declare float @llvm.vector.reduce.fadd.v{lanes}f32(float, <{lanes} x float>)
define linkonce_odr float @sparsecomp_sum{lanes}(<{lanes} x float> %v) #0 {{
  %result = call reassoc float @llvm.vector.reduce.fadd.v{lanes}f32(float -0.0, <{lanes} x float> %v)
  ret float %result
}}
attributes #0 = {{ alwaysinline nounwind "target-cpu"="{cpu}" }}
"""


def summation(lanes: int, machine: Machine) -> str:
    """LLVM IR of what `lane_sum` calls, and of the attributes #0 of such functions."""
    return SUM.format(cpu=machine.cpu, lanes=lanes)


def lane_sum(vector: Expr, lanes: int) -> Expr:
    return T.call_extern("float32", f"sparsecomp_sum{lanes}", vector)


def operand_names(epilogue: str) -> list[tuple[str, str]]:
    """Pointers to the operands: each a vector of rows, or of y's shape."""
    kinds = [STEPS[step] for step in split_steps(epilogue)]
    return [(f"operand{i}", "float32") for i, kind in enumerate(kinds) if kind != "none"]


class UnitFinish:
    """y: tokens x rows, as PyTorch holds it. Nothing is read or written outside it and the operands."""

    def __init__(self, epilogue: str, rows: int, y: Expr, operands: Sequence[Expr]) -> None:
        self.epilogue, self.rows, self.y, self.operands = epilogue, rows, y, operands

    def emit(self, sums: Expr, at: Expr, row: Expr, token: Expr) -> None:
        """The epilogue's steps in order, on the 16 sums from `at` on: of a token's rows from `row` on. Then the store."""
        start = T.bind(token * self.rows + row)
        y = T.bind(load(sums, at, UNIT))
        operands = iter(self.operands)
        for step in split_steps(self.epilogue):
            match step:
                case "bias":
                    y = T.bind(y + self._load(next(operands), row, row))
                case "scale":
                    y = T.bind(y * self._load(next(operands), row, row))
                case "add":
                    y = T.bind(y + self._load(next(operands), start, row))
                case "multiply":
                    y = T.bind(y * self._load(next(operands), start, row))
                case _ if step in HEAVY_STEPS:
                    # Through a register: TVM's simplifier writes an expression out at each of its uses.
                    register = Accumulators(2, UNIT)
                    register[0] = y
                    register[1] = VECTOR_FORMS[step](register[0], UNIT)
                    y = register[1]
                case _:
                    y = VECTOR_FORMS[step](y, UNIT)
        if self.rows % UNIT:
            T.evaluate(T.masked_store(self.y, y, T.Ramp(start, T.int64(1), UNIT), self._inside(row)))
        else:
            T.buffer_store(self.y, y, [slice(start, start + UNIT)])

    def _load(self, operand: Expr, start: Expr, row: Expr) -> Expr:
        if not self.rows % UNIT:
            return load(operand, start, UNIT)
        return T.masked_load("float32x16", operand, T.Ramp(start, T.int64(1), UNIT), self._inside(row))

    def _inside(self, row: Expr) -> Expr:
        """Which of 16 rows there are."""
        return T.Ramp(row, T.int64(1), UNIT) < T.Broadcast(T.int64(self.rows), UNIT)
