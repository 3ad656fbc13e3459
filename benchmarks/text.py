"""Real text without a download: the source of Python's standard library, byte by byte."""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FOLDERS = (
    "",
    "asyncio",
    "collections",
    "concurrent/futures",
    "email",
    "html",
    "http",
    "importlib",
    "json",
    "logging",
)
"""Of the standard library; what is installed beside it, and its tests, is no part of the text."""
HELD_OUT = 10
"""Every tenth file is held out."""


@dataclass(frozen=True)
class Text:
    """Bytes, uint8, of whole files."""

    train: Tensor
    held_out: Tensor

    @staticmethod
    def of_python() -> Text:
        """The same files in the same order on every machine with this release of Python."""
        library = Path(sysconfig.get_paths()["stdlib"])
        files = [path for folder in FOLDERS for path in sorted((library / folder).glob("*.py"))]
        parts = [path.read_bytes() for path in files]
        held = b"".join(parts[::HELD_OUT])
        train = b"".join(part for number, part in enumerate(parts) if number % HELD_OUT)
        return Text(*(torch.frombuffer(bytearray(part), dtype=torch.uint8) for part in (train, held)))

    def windows(self, count: int, length: int, generator: torch.Generator) -> Tensor:
        """int64, count x length: pieces of the training text from anywhere."""
        starts = torch.randint(0, len(self.train) - length, (count,), generator=generator)
        return self.train[starts[:, None] + torch.arange(length)].long()

    def held_out_windows(self, count: int, length: int) -> Tensor:
        """int64, count x length: pieces of the held-out text, evenly spread."""
        starts = torch.linspace(0, len(self.held_out) - length, count).long()
        return self.held_out[starts[:, None] + torch.arange(length)].long()


class Block(nn.Module):
    """Attention and a feed-forward part, norms before each (Radford et al. 2019)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.project = nn.Linear(width, width)
        self.grow, self.shrink = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (
            layer(y).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.project(mixed.transpose(1, 2).flatten(2))
        y = x + self.shrink(F.gelu(self.grow(self.norm2(x))))
        assert isinstance(y, Tensor)
        return y


class ByteTransformer(nn.Module):
    """A language model of bytes: N x T int64 -> logits N x T x 256."""

    def __init__(self, width: int = 128, heads: int = 4, depth: int = 4, length: int = 128) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, width)
        self.place = nn.Parameter(torch.randn(length, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 256)

    def forward(self, x: Tensor) -> Tensor:
        y = self.blocks(self.embed(x) + self.place[: x.shape[1]])
        logits: Tensor = self.head(self.norm(y))
        return logits


def next_byte_loss(logits: Tensor, x: Tensor) -> Tensor:
    """Mean, in nats a byte: each byte from those before it."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), x[:, 1:].flatten())


@torch.no_grad()
def bits_per_byte(model: nn.Module, windows: Tensor, batch: int = 32) -> float:
    """Of pieces of text, the first byte of each left out."""
    training = model.training
    model.eval()
    losses = [next_byte_loss(model(part), part) * len(part) for part in torch.split(windows, batch)]
    model.train(training)
    return float(torch.stack(losses).sum() / len(windows) / torch.log(torch.tensor(2.0)))


def fit_text(model: nn.Module, text: Text, steps: int, length: int, seed: int, rate: float = 2e-3) -> None:
    """Train in place: AdamW, a learning rate that rises and falls, batches of 32 pieces."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), rate, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    model.train()
    for _ in range(steps):
        x = text.windows(32, length, generator)
        loss = next_byte_loss(model(x), x)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval()
