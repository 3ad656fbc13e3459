"""CUDA source -> PTX and machine code of an architecture, by NVIDIA's compiler. No GPU is needed."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sparsecomp.errors import LoweringError


@dataclass(frozen=True)
class Assembled:
    """One or several kernels, and what the assembler says of them: the most that any of them takes."""

    ptx: str
    cubin: bytes
    registers: int
    """Of a thread."""
    spilled: int
    """Bytes that a thread keeps in memory for want of registers, and its stack."""
    shared_bytes: int
    """Of a block, that are known when it is compiled."""


def has_compiler() -> bool:
    return shutil.which("nvcc") is not None


@lru_cache(maxsize=128)
def assemble(source: str, arch: str) -> Assembled:
    """`arch`: `sm_90`.

    Raises:
        LoweringError: there is no nvcc, or it refuses the source.
    """
    if not has_compiler():
        raise LoweringError("CUDA source cannot be compiled: there is no nvcc in PATH.")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cu"
        file.write_text(source)
        _run(["nvcc", "-O3", f"-arch={arch}", "--ptx", "-o", "kernel.ptx", file.name], folder)
        told = _run(
            [
                "ptxas",
                "-O3",
                f"-arch={arch}",
                "--register-usage-level=10",
                "-v",
                "-o",
                "kernel.cubin",
                "kernel.ptx",
            ],
            folder,
        )
        return Assembled(
            (Path(folder) / "kernel.ptx").read_text(),
            (Path(folder) / "kernel.cubin").read_bytes(),
            _most(r"Used (\d+) registers", told),
            _most(r"(\d+) bytes stack frame", told) + _most(r"(\d+) bytes spill stores", told),
            _most(r"(\d+) bytes smem", told),
        )


def _run(command: list[str], folder: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LoweringError(f"{command[0]} refuses the kernel: {done.stderr.strip()[-2000:]}")
    return done.stderr + done.stdout


def _most(pattern: str, text: str) -> int:
    return max((int(number) for number in re.findall(pattern, text)), default=0)
