"""Attention of one new token to those before it, whose keys and values lie as PyTorch has them.

    y[h] = softmax(scale * [keys[h], k[h]] q[h]) [values[h], v[h]]

Bound by reading keys and values once. A key lies along a register: a score is a sum across lanes, a few of
them under way at once; the exponentials are taken of whole registers of scores.
"""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm.script.ir_builder import tirx as T

from sparsecomp.codegen.cpu.emit import Accumulators, Expr, i64, kernel, load, share, splat, store, workspace
from sparsecomp.codegen.cpu.epilogues import exponential
from sparsecomp.codegen.machine import Machine
from sparsecomp.geometry import round_up

TOGETHER = 4
"""Keys scored at once, so that their sums across lanes overlap."""
AT_ONCE = 8
"""Vectors of features summed at once: more are left to another walk over the values."""


@dataclass(frozen=True)
class CachedAttentionKernel:
    heads: int
    key_heads: int
    """Heads of keys and values; each serves as many heads of q as there are for it."""
    size: int
    """Features of a head of q and of a key."""
    value_size: int
    """Features of a head of a value and of y."""
    past: int
    """Earlier tokens."""
    steps: tuple[int, int, int]
    """Floats from one token's q, k and v to the next one's."""
    scale: float


def cached_attention(name: str, spec: CachedAttentionKernel, machine: Machine) -> tvm.tirx.PrimFunc:
    """Arguments q, k, v (of token 0), keys, values (of its sequence), y; which part of how many, number of tokens.
    Each token belongs to a sequence of its own. Parts share the heads of all tokens."""
    pointers = [(label, "float32") for label in ("q", "k", "v", "keys", "values", "y")]
    lanes = machine.lanes

    def body(*arguments: Expr) -> None:
        *buffers, part, parts, tokens = arguments
        low, high = share(spec.heads * tokens, part, parts)
        with workspace(round_up(spec.past + 1, lanes)) as scores, T.serial(high - low) as relative:
            unit = T.bind(low + relative)
            token = T.bind(T.truncdiv(unit, T.int32(spec.heads)))
            _Head(spec, lanes, buffers, scores, token, T.bind(unit - token * spec.heads)).emit()

    return kernel(name, pointers, ["part", "parts", "tokens"], body)


class _Head:
    """One head of one token."""

    def __init__(
        self,
        spec: CachedAttentionKernel,
        lanes: int,
        buffers: list[Expr],
        scores: Expr,
        token: Expr,
        head: Expr,
    ) -> None:
        self.spec, self.lanes, self.scores = spec, lanes, scores
        self.q, self.k, self.v, self.keys, self.values, self.y = buffers
        key_head = T.bind(i64(T.truncdiv(head, T.int32(spec.heads // spec.key_heads))))
        sequence, head = T.bind(i64(token)), T.bind(i64(head))
        unit = T.bind(sequence * spec.key_heads + key_head)
        self.at_q = T.bind(sequence * spec.steps[0] + head * spec.size)
        self.at_k = T.bind(sequence * spec.steps[1] + key_head * spec.size)
        self.at_v = T.bind(sequence * spec.steps[2] + key_head * spec.value_size)
        self.at_keys = T.bind(unit * (spec.past * spec.size))
        self.at_values = T.bind(unit * (spec.past * spec.value_size))
        self.at_y = T.bind((sequence * spec.heads + head) * spec.value_size)

    def emit(self) -> None:
        spec = self.spec
        turns, single = divmod(spec.past, TOGETHER)
        self.pad_scores()
        with T.serial(T.int32(turns)) as turn:
            self.score(self.keys, self.at_keys, T.bind(i64(turn) * TOGETHER), TOGETHER)
        if single:
            self.score(self.keys, self.at_keys, T.int64(turns * TOGETHER), single)
        self.score(self.k, self.at_k - spec.past * spec.size, T.int64(spec.past), 1)
        factor = self.exponentials()
        vectors = -(-spec.value_size // self.lanes)
        for first in range(0, vectors, AT_ONCE):
            self.weigh(first, min(AT_ONCE, vectors - first), factor)

    def pad_scores(self) -> None:
        """What fills up the last register of scores gets no weight."""
        last = (self.spec.past + 1) // self.lanes * self.lanes
        if (self.spec.past + 1) % self.lanes:
            store(self.scores, splat(float("-inf"), self.lanes), T.int64(last), self.lanes)

    def features(self, buffer: Expr, start: Expr, vector: int, size: int) -> Expr:
        """One vector of a head's features; lanes past the last feature are 0."""
        lanes, first = self.lanes, vector * self.lanes
        if first + lanes <= size:
            return T.bind(load(buffer, start + first, lanes))
        inside = T.Ramp(0, 1, lanes) < T.Broadcast(size - first, lanes)
        places = T.Ramp(start + first, T.int64(1), lanes)
        read = T.masked_load(f"float32x{lanes}", buffer, places, inside)
        return T.bind(T.Select(inside, read, splat(0.0, lanes)))

    def score(self, buffer: Expr, start: Expr, first: Expr, count: int) -> None:
        """Scores of `count` keys from number `first` on."""
        size, lanes = self.spec.size, self.lanes
        sums = Accumulators(count, lanes)
        for vector in range(-(-size // lanes)):
            q = self.features(self.q, self.at_q, vector, size)
            for i in range(count):
                key = self.features(buffer, T.bind(start + (first + i) * size), vector, size)
                sums[i] = key * q if vector == 0 else sums[i] + key * q
        for i in range(count):
            total = T.bind(sums.across(i) * T.float32(self.spec.scale))
            T.buffer_store(self.scores, total, [first + i])

    def exponentials(self) -> Expr:
        """Scores become exponentials; returns 1 / their sum."""
        lanes, turns = self.lanes, T.int32(-(-(self.spec.past + 1) // self.lanes))
        largest, total, score = Accumulators(1, lanes), Accumulators(1, lanes), Accumulators(2, lanes)
        largest[0], total[0] = splat(float("-inf"), lanes), splat(0.0, lanes)
        with T.serial(turns) as turn:
            largest[0] = T.max(largest[0], load(self.scores, T.bind(i64(turn) * lanes), lanes))
        most = T.bind(splat(largest.across(0, T.max), lanes))
        with T.serial(turns) as turn:
            # Through registers: TVM's simplifier writes an expression out at each of its uses.
            at = T.bind(i64(turn) * lanes)
            score[0] = load(self.scores, at, lanes) - most
            score[1] = exponential(score[0], lanes)
            total[0] = total[0] + score[1]
            store(self.scores, score[1], at, lanes)
        return T.bind(T.float32(1.0) / total.across(0))

    def weigh(self, first: int, count: int, factor: Expr) -> None:
        """`count` vectors of y from number `first` on."""
        spec, lanes, size = self.spec, self.lanes, self.spec.value_size
        sums = Accumulators(count, lanes)
        own = T.bind(splat(self.scores[T.int64(spec.past)], lanes))
        for i in range(count):
            sums[i] = own * self.features(self.v, self.at_v, first + i, size)
        with T.serial(T.int32(spec.past)) as key:
            weight = T.bind(splat(self.scores[i64(key)], lanes))
            start = T.bind(self.at_values + i64(key) * size)
            for i in range(count):
                sums[i] = sums[i] + weight * self.features(self.values, start, first + i, size)
        for i in range(count):
            begin = (first + i) * lanes
            y = T.bind(sums[i] * splat(factor, lanes))
            if begin + lanes <= size:
                store(self.y, y, self.at_y + begin, lanes)
                continue
            inside = T.Ramp(0, 1, lanes) < T.Broadcast(size - begin, lanes)
            T.evaluate(T.masked_store(self.y, y, T.Ramp(self.at_y + begin, T.int64(1), lanes), inside))
