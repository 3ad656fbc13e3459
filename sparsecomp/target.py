"""What code is made for."""

from __future__ import annotations

from dataclasses import dataclass

from sparsecomp.errors import InputError

KINDS = ("cpu", "reference")


@dataclass(frozen=True)
class Target:
    """A kind of device and, for a CPU, which one.

    "cpu" generates kernels with TVM. "reference" runs the primitives as plain PyTorch: it needs no TVM and
    no kernel, measures nothing, and is what every other target is compared with.
    """

    kind: str = "cpu"
    cpu: str = "native"
    """LLVM's name of the processor, `znver4`, `x86-64-v3`, `neoverse-v1`; "native" is this host."""
    triple: str = ""
    """LLVM triple for cross-compilation, `aarch64-linux-gnu`; "" is this host's."""

    @staticmethod
    def parse(target: str | Target | None) -> Target:
        """None or "cpu" is this host; "cpu:NAME" another processor of its kind; "reference" plain PyTorch."""
        if target is None:
            return Target()
        known = isinstance(target, Target | str)
        kind, _, cpu = target.partition(":") if isinstance(target, str) else ("", "", "")
        parsed = target if isinstance(target, Target) else Target(kind, cpu or "native")
        if not known or parsed.kind not in KINDS:
            raise InputError(f"target {target!r} is not known. Use one of {', '.join(KINDS)}, or cpu:NAME.")
        return parsed

    def __str__(self) -> str:
        return self.kind if self.cpu == "native" else f"{self.kind}:{self.cpu}"
