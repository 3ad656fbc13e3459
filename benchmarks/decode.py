"""One step of text generation: a token and a cache of earlier ones -> the scores of the next token."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn


class DecodeStep(nn.Module):
    """A language model of `transformers`, whose cache goes in and out as a plain tensor.

    A graph cannot look into cache objects, and what changes its inputs cannot be captured. So `forward` makes
    a cache of views of a tensor, batch x layers x 2 (keys, values) x heads x tokens x features, and returns
    what the token adds to it; whoever generates text writes that behind the others.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        """The scores of the next token, and the token's own keys and values: of the cache's shape, 1 token."""
        known = hf.DynamicCache([tuple(layer.unbind(1)) for layer in cache.unbind(1)])
        scores = self.model(input_ids=input_ids, past_key_values=known, use_cache=True).logits
        last = [(layer.keys[:, :, -1:], layer.values[:, :, -1:]) for layer in known.layers]
        return scores, torch.stack([torch.stack(pair, 1) for pair in last], 1)
