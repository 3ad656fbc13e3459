"""What a kernel must know of the machine it is for."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cache
from typing import Any

os.environ.setdefault("TVM_BIND_THREADS", "0")  # else TVM re-pins the calling thread and undoes taskset
os.environ.setdefault("TVM_NUM_THREADS", str(os.cpu_count() or 1))  # else half of the processors

import tvm

from sparsecomp.errors import InputError
from sparsecomp.target import Target


@dataclass(frozen=True)
class Machine:
    """Vector width and registers decide the register tiles; TVM's target decides the instructions."""

    cpu: str
    triple: str
    lanes: int
    """float32 in a vector register."""
    registers: int
    l1_bytes: int = 32 * 1024
    tvm_target: Any = field(default=None, compare=False, repr=False)

    @property
    def accumulators(self) -> int:
        """Registers left for sums, when one holds the weight and a few hold X."""
        return self.registers - 4

    def __str__(self) -> str:
        return f"{self.cpu} ({self.lanes} lanes)"


@cache
def machine_of(target: Target) -> Machine:
    """Resolve "native" to this host, and read the vector width from the features LLVM knows of."""
    from tvm.target import codegen

    cpu = codegen.llvm_get_system_cpu() if target.cpu == "native" else target.cpu
    description: dict[str, Any] = {"kind": "llvm", "mcpu": cpu}
    if target.triple:
        description["mtriple"] = target.triple
    resolved = tvm.target.Target(description)
    known = codegen.llvm_get_cpu_archlist(resolved)
    if cpu not in [str(name) for name in known]:
        raise InputError(
            f"target {target}: LLVM knows no CPU named {cpu!r}. Use target='cpu' for this machine, or one of: "
            + ", ".join(sorted(str(name) for name in known)[:40])
            + ", ..."
        )

    def has(feature: str) -> bool:
        return bool(codegen.target_has_features(feature, resolved))

    if target.triple.startswith("aarch64") or has("neon"):
        lanes, registers = 4, 32
    elif has("avx512f"):
        lanes, registers = 16, 32
    elif has("avx2") and has("fma"):
        lanes, registers = 8, 16
    else:
        lanes, registers = 4, 16
    return Machine(cpu, target.triple, lanes, registers, tvm_target=resolved)
