"""What code is made for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar
from urllib.parse import parse_qsl, urlsplit

import torch

from sparsecomp.errors import InputError

KINDS = ("cpu", "cuda", "reference")


@dataclass(frozen=True)
class Target:
    """A kind of device and which one.

    "cpu" and "cuda" (NVIDIA GPUs) generate kernels with TVM. "reference" runs the primitives as plain PyTorch: it needs no TVM and
    no kernel, measures nothing, and is what every other target is compared with.
    """

    kind: str = "cpu"
    cpu: str = "native"
    """LLVM's name of the processor, `znver4`, `x86-64-v3`, `neoverse-v1`; "native" is this host."""
    triple: str = ""
    """LLVM triple for cross-compilation, `aarch64-linux-gnu`; "" is this host's."""
    arch: str = "native"
    """CUDA's name of the GPU's architecture, `sm_90`; "native" is that of PyTorch's current device."""

    @staticmethod
    def parse(target: str | Target | None) -> Target:
        """None or "cpu" is this host, "cpu:NAME" another processor of its kind; "cuda" is PyTorch's current GPU,
        "cuda:sm_90" one of that architecture; "reference" is plain PyTorch."""
        if target is None:
            return Target()
        known = isinstance(target, Target | str)
        kind, _, name = target.partition(":") if isinstance(target, str) else ("", "", "")
        which = {"arch" if kind == "cuda" else "cpu": name} if name else {}
        parsed = target if isinstance(target, Target) else Target(kind, **which)
        if not known or parsed.kind not in KINDS:
            kinds = ", ".join(KINDS)
            raise InputError(
                f"target {target!r} is not known. Use one of {kinds}, or cpu:NAME, or cuda:ARCHITECTURE."
            )
        if parsed.arch != "native" and not re.fullmatch(r"sm_\d{2,3}a?", parsed.arch):
            raise InputError(
                f"target {target!r}: {parsed.arch!r} is no architecture of a GPU. Write cuda:sm_90, or cuda for the "
                "device that is here."
            )
        return parsed

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """Of the layers that are lowered."""
        if self.kind == "cuda":
            return torch.float32, torch.float16, torch.bfloat16
        return (torch.float32,)

    def __str__(self) -> str:
        name = self.arch if self.kind == "cuda" else self.cpu
        return self.kind if name == "native" else f"{self.kind}:{name}"


@dataclass(frozen=True)
class Remote:
    """Devices behind TVM's RPC tracker, all of one kind: those that registered under `key`."""

    host: str
    port: int
    key: str
    cpu: str = ""
    """LLVM's name of their processor; "" asks a server, which only one with TVM's compiler can tell."""
    triple: str = ""
    """Their LLVM triple, `aarch64-linux-gnu`; "" asks a server."""

    SCHEME: ClassVar[str] = "rpc://"
    FORM: ClassVar[str] = "rpc://host:port/key, or rpc://host:port/key?cpu=NAME&triple=TRIPLE"

    @staticmethod
    def parse(text: str) -> Remote:
        """Raises InputError for what is not of `FORM`."""
        try:
            url = urlsplit(text)
            options = dict(parse_qsl(url.query, strict_parsing=bool(url.query)))
            host, port, key = url.hostname, url.port, url.path.strip("/")
        except ValueError as error:
            raise InputError(f"device {text!r} cannot be read ({error}). Write {Remote.FORM}.") from error
        if not host or not port or not key or not set(options) <= {"cpu", "triple"}:
            raise InputError(f"device {text!r} cannot be read. Write {Remote.FORM}.")
        return Remote(host, port, key, options.get("cpu", ""), options.get("triple", ""))

    @property
    def tracker(self) -> str:
        return f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.SCHEME}{self.tracker}/{self.key}"
