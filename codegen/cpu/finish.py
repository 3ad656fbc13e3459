"""What every kernel of output channels ends with: the steps of an epilogue, then the store."""

from __future__ import annotations

from collections.abc import Sequence

from tvm.script.ir_builder import tirx as T

from sparsecomp.codegen.cpu.emit import Accumulators, Expr, i64, load, splat, store
from sparsecomp.codegen.cpu.epilogues import HEAVY_STEPS, VECTOR_FORMS
from sparsecomp.epilogue import STEPS, split_steps


def operand_pointers(epilogue: str) -> list[tuple[str, str]]:
    """A kernel's pointers for the operands of its epilogue, in order."""
    kinds = [STEPS[step] for step in split_steps(epilogue)]
    return [(f"operand{i}", "float32") for i, kind in enumerate(kinds) if kind != "none"]


class Finish:
    """Stores registers into y; `mask` is None where padding columns need not be zero."""

    def __init__(
        self,
        epilogue: str,
        y: Expr,
        target_plane: int,
        mask: Expr | None,
        operands: Sequence[Expr],
        operand_planes: Sequence[int],
        lanes: int,
        order: Expr | None = None,
    ) -> None:
        """`order`: int32, the channel that each row stands for, where rows are not in the order of channels."""
        self.order = order
        self.steps, self.lanes = split_steps(epilogue), lanes
        self.y, self.target_plane, self.mask = y, target_plane, mask
        self.operands, self.operand_planes = operands, operand_planes

    def channel(self, row: Expr) -> Expr:
        """The channel of a row."""
        return row if self.order is None else T.bind(i64(self.order[row]))

    def tile(self, sums: Accumulators, row: Expr, first: Expr, starts: Sequence[Expr], vectors: int) -> None:
        """`vectors` vectors of columns from `first` on of each row from `row` on; y has them at `starts`.

        Steps of many instructions run in a loop over what was stored: unrolled over a whole register tile they
        would cost more to compile than they save.
        """
        lanes, rows = self.lanes, len(starts)
        if HEAVY_STEPS.isdisjoint(self.steps):
            for i in range(rows * vectors):
                r, column = i // vectors, i % vectors * lanes
                self.store(sums[i], self.channel(row + r), first + column, starts[r] + column)
            return
        for i in range(rows * vectors):
            store(self.y, sums[i], starts[i // vectors] + i % vectors * lanes, lanes)
        with T.serial(T.int32(rows)) as r, T.serial(T.int32(vectors)) as v:
            column = T.bind(i64(v) * lanes)
            channel = T.bind(self.channel(row + i64(r)))
            start = T.bind(channel * self.target_plane + first + column)
            self.store(load(self.y, start, lanes), channel, T.bind(first + column), start)

    def store(self, y: Expr, row: Expr, column: Expr, start: Expr) -> None:
        """y[start] = epilogue of one vector, zero where the column is padding."""
        lanes = self.lanes
        y = T.bind(self.epilogue(y, row, column))
        if self.mask is not None:
            inside = load(self.mask, column, lanes) != splat(0.0, lanes)
            y = T.Select(inside, y, splat(0.0, lanes))
        store(self.y, y, start, lanes)

    def epilogue(self, y: Expr, row: Expr, column: Expr) -> Expr:
        lanes = self.lanes
        operands = iter(self.operands)
        planes = iter(self.operand_planes)
        for step in self.steps:
            match step:
                case "bias":
                    y = T.bind(y + splat(next(operands)[row], lanes))
                case "scale":
                    y = T.bind(y * splat(next(operands)[row], lanes))
                case "add":
                    y = T.bind(y + load(next(operands), row * next(planes) + column, lanes))
                case "multiply":
                    y = T.bind(y * load(next(operands), row * next(planes) + column, lanes))
                case _ if step in HEAVY_STEPS:
                    # Through a register: TVM's simplifier writes an expression out at each of its uses.
                    register = Accumulators(2, lanes)
                    register[0] = y
                    register[1] = VECTOR_FORMS[step](register[0], lanes)
                    y = register[1]
                case _:
                    y = VECTOR_FORMS[step](T.bind(y), lanes)
        return y
