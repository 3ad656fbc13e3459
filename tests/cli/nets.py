"""Models that the command line of the tests names, `tests.cli.nets:small`; and a way to run it."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from benchmarks.prune import prune
from sparsecomp.cli.app import app

SMALL = "tests.cli.nets:small"


class Sum(nn.Module):
    """Two inputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 16)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        out: Tensor = self.fc(x) * scale
        return out


def small() -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 48))
    prune(model, "unstructured", 0.9)
    return model, (torch.randn(5, 48),)


def other() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """As `small`, with other weights."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 48)), (torch.randn(5, 48),)


def batches() -> list[Tensor]:
    """For `small` and `other`."""
    return [torch.randn(16, 48) for _ in range(2)]


def without_inputs() -> nn.Module:
    return small()[0]


def by_name() -> tuple[nn.Module, dict[str, Tensor]]:
    return Sum(), {"x": torch.randn(2, 16), "scale": torch.ones(2, 1)}


MODEL = Sum()


def number() -> int:
    return 3


def wrong_inputs() -> tuple[nn.Module, int]:
    return Sum(), 3


def broken() -> nn.Module:
    raise ValueError("no weights here")


def leaving() -> nn.Module:
    raise SystemExit(3)


def talking() -> tuple[nn.Module, tuple[Tensor, ...]]:
    print("loading the weights")
    return small()


def run(*words: str, code: int = 0) -> Any:
    """The result of `sparsecomp WORDS`, which must end with that exit code, and without a traceback."""
    result = CliRunner().invoke(app, words, env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    assert result.exit_code == code, result.output
    return result


def refusal(*words: str) -> str:
    """The message with which a command refuses a model or file: exit code 1, nothing on standard output."""
    result = run(*words, code=1)
    assert result.stdout == ""
    assert result.stderr.startswith("sparsecomp: ")
    return str(result.stderr.removeprefix("sparsecomp: ").strip())


def usage_error(*words: str) -> str:
    """The message about wrong usage: exit code 2, nothing on standard output. Without its frame and line ends."""
    result = run(*words, code=2)
    assert result.stdout == ""
    text = "".join(" " if letter in "│╭╮╰╯─\n" else letter for letter in result.stderr)
    return " ".join(text.split())


def as_json(*words: str) -> Any:
    """Standard output, which must be JSON and nothing else."""
    return json.loads(run(*words, "--json").stdout)
