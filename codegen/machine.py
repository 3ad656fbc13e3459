"""What a kernel must know of the machine it is for."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("TVM_BIND_THREADS", "0")  # else TVM re-pins the calling thread and undoes taskset
os.environ.setdefault("TVM_NUM_THREADS", str(os.cpu_count() or 1))  # else half of the processors

import tvm

from sparsecomp.errors import InputError
from sparsecomp.target import Target

L2_BYTES = 512 * 1024
"""Of the L2 cache of a core, where a processor does not say."""


@dataclass(frozen=True)
class Machine:
    """Vector width and registers decide the register tiles; TVM's target decides the instructions."""

    cpu: str
    triple: str
    lanes: int
    """float32 in a vector register."""
    registers: int
    l1_bytes: int = 32 * 1024
    l2_bytes: int = L2_BYTES
    device: str = ""
    """The name under which a device elsewhere is known, "rpc zen5"; "" is this host."""
    tvm_target: Any = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.cpu} ({self.lanes} lanes)"


@cache
def cpu_model() -> str:
    """The name the maker gave this host's processor."""
    info = Path("/proc/cpuinfo")
    names = info.read_text().splitlines() if info.exists() else []
    found = (line.partition(":")[2].strip() for line in names if line.startswith("model name"))
    return next(found, "") or platform.processor() or platform.machine()


@cache
def l2_bytes() -> int:
    """Of the L2 cache that a core of this host has, as Linux tells."""
    size = Path("/sys/devices/system/cpu/cpu0/cache/index2/size")
    found = size.read_text().strip() if size.exists() else ""
    return int(found[:-1]) * 1024 if found[:-1].isdigit() and found.endswith("K") else L2_BYTES


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
    l2 = l2_bytes() if target.cpu == "native" else L2_BYTES
    return Machine(cpu, target.triple, lanes, registers, l2_bytes=l2, tvm_target=resolved)


FEATURES = (
    "avx512f",
    "avx512vnni",
    "avx512bf16",
    "avx512vp2intersect",
    "avx512fp16",
    "amx-tile",
    "avx2",
    "fma",
)
"""Instruction sets that one x86 processor has and another lacks."""


def check_host(target: Target) -> None:
    """Raise InputError if this processor lacks instructions that code for the target may use."""
    from tvm.target import codegen

    wanted, host = machine_of(target), machine_of(Target())
    missing = [
        feature
        for feature in FEATURES
        if codegen.target_has_features(feature, wanted.tvm_target)
        and not codegen.target_has_features(feature, host.tvm_target)
    ]
    if target.triple or missing:
        why = f"it needs {', '.join(missing)}" if missing else f"it is {target.triple}"
        raise InputError(
            f"code for target {target} cannot run on this processor ({host.cpu}): {why}. "
            "compile_sparse measures and runs on this machine: use target='cpu'."
        )
