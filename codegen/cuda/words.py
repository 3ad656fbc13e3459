"""Operations on 32-bit words that a GPU has as one instruction, in the vocabulary of kernels.

All stand in phases, on uint32. On a CPU they are the expressions that they mean.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from tvm.script.ir_builder import tirx as T

from sparsecomp.codegen.cuda.cuda_emitter import CudaEmitter
from sparsecomp.codegen.cuda.emitter import Array, Emitter, Expr


def repeat(emit: Emitter, count: int) -> AbstractContextManager[Expr]:
    """A loop that is unrolled on a GPU, where registers have constant indices; on a CPU, where they are memory, it
    stays a loop, which compiles in a fraction of the time."""
    loop: AbstractContextManager[Expr] = (T.unroll if isinstance(emit, CudaEmitter) else T.serial)(count)
    return loop


def u32(value: Expr) -> Expr:
    return T.uint32(value) if isinstance(value, int) else T.cast(value, "uint32")


def word(array: Array, index: Expr) -> Expr:
    """A word of an int32 array, unsigned, so that it shifts without its sign."""
    return T.reinterpret("uint32", array[index])


def nibble_counts(bits: Expr) -> Expr:
    """Of each 4 bits, how many are set, in their place (Warren, Hacker's Delight, 5-1)."""
    pairs = T.bind(bits - ((bits >> u32(1)) & u32(0x55555555)))
    return T.bind((pairs & u32(0x33333333)) + ((pairs >> u32(2)) & u32(0x33333333)))


def byte_counts(nibbles: Expr) -> Expr:
    """The same of each 8 bits, from `nibble_counts`."""
    return T.bind((nibbles + (nibbles >> u32(4))) & u32(0x0F0F0F0F))


def select_bytes(emit: Emitter, low: Expr, high: Expr, selector: Expr) -> Expr:
    """PTX's prmt: byte i of the result is byte (selector >> 4 i) & 7 of the eight in `low` and `high`."""
    if isinstance(emit, CudaEmitter):
        return T.bind(_instruction("prmt.b32", low, high, selector))
    both = T.bind(T.cast(low, "uint64") | (T.cast(high, "uint64") << T.uint64(32)))
    result = u32(0)
    for i in range(4):
        place = T.cast((selector >> u32(4 * i)) & u32(7), "uint64") * T.uint64(8)
        result = result | (T.cast((both >> place) & T.uint64(0xFF), "uint32") << u32(8 * i))
    return T.bind(result)


def funnel_shift(emit: Emitter, low: Expr, high: Expr, shift: Expr) -> Expr:
    """PTX's shf.r.wrap: the low word of (high : low) >> shift % 32."""
    if isinstance(emit, CudaEmitter):
        return T.bind(_instruction("shf.r.wrap.b32", low, high, shift))
    both = T.cast(low, "uint64") | (T.cast(high, "uint64") << T.uint64(32))
    return T.bind(T.cast(both >> T.cast(shift & u32(31), "uint64"), "uint32"))


def _instruction(name: str, *words: Expr) -> Expr:
    """A PTX instruction of three words. CUDA's own `__byte_perm` masks its selector first."""
    function = "sparsecomp_" + name.partition(".")[0]
    text = (
        f"__device__ __forceinline__ unsigned {function}(unsigned a, unsigned b, unsigned c) {{"
        f' unsigned d; asm("{name} %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c)); return d; }}'
    )
    return T.cuda.func_call(function, *words, source_code=text, return_type="uint32")
