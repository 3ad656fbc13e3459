"""Named models with their example inputs: architectures of `transformers`, and single layers of which a must
speaks; random weights, fixed seed.

Nothing is downloaded. Random weights are fine for speed; so that a comparison of outputs means something
as well, they are drawn so that activations keep their scale and the output depends on every layer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from benchmarks.alexnet import ALEXNET, Convolution
from benchmarks.decode import DecodeStep

Inputs = dict[str, Tensor]
SEED = 0
TOKENS, SMALL_TOKENS = 128, 16
CACHED, SMALL_CACHED = 64, 8
"""Tokens that are known when one more is decoded."""
FEATURES, SMALL_FEATURES = 4096, 256
"""Of the single linear layer."""
PIXELS, SMALL_PIXELS = 224, 64


@dataclass(frozen=True)
class Workload:
    """A model and what it is run on; the small variant has the same ops and is there for tests."""

    name: str
    build: Callable[[bool], nn.Module]
    """`small` -> the model as `transformers` initialises it."""
    inputs: Callable[[int, bool, int], Inputs]
    """`batch`, `small`, `seed` -> keyword arguments."""

    def make(self, batch: int = 1, small: bool = False, seed: int = SEED) -> tuple[nn.Module, Inputs]:
        """The model, ready for inference, and its inputs; `seed` draws the inputs, never the weights."""
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(SEED)
            model = self.build(small)
            _randomise(model)
            if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
                _measure_statistics(model, self.inputs(4, small, SEED))
        return model.eval(), self.inputs(batch, small, seed)


def _randomise(model: nn.Module) -> None:
    """Weights that keep the variance of their input, and biases and scales that are not zero or one."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d | Conv1D):
            fan_in = module.weight.shape[0] if isinstance(module, Conv1D) else module.weight[0].numel()
            # T5 does not divide q.k by the root of the head's size: its q weights hold that factor.
            unscaled = name.endswith("SelfAttention.q")
            module.weight.normal_(std=(fan_in * (64 if unscaled else 1)) ** -0.5)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:  # biases, and the scales of norms and branches
            parameter.normal_(mean=0.0 if name.endswith("bias") else 1.0, std=0.1)


def _measure_statistics(model: nn.Module, inputs: Inputs) -> None:
    """Give batch norms the statistics of their own inputs, as training would."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean over all batches seen: of this one batch
            module.reset_running_stats()
    model.train()
    model(**inputs)


def _tokens(vocabulary: int, with_mask: bool = True) -> Callable[[int, bool, int], Inputs]:
    def inputs(batch: int, small: bool, seed: int) -> Inputs:
        shape = (batch, SMALL_TOKENS if small else TOKENS)
        highest = SMALL_VOCABULARY if small else vocabulary
        ids = torch.randint(0, highest, shape, generator=torch.Generator().manual_seed(seed))
        return {"input_ids": ids} | ({"attention_mask": torch.ones_like(ids)} if with_mask else {})

    return inputs


def _images(batch: int, small: bool, seed: int) -> Inputs:
    """Smooth patches with some noise: pure noise averages out, and every image gives the same output."""
    size = SMALL_PIXELS if small else PIXELS
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, 3, 4, 4, generator=generator)
    noise = torch.randn(batch, 3, size, size, generator=generator)
    smooth = F.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False)
    return {"pixel_values": smooth + 0.3 * noise}


SMALL_VOCABULARY = 100


def _token_and_cache(batch: int, small: bool, seed: int) -> Inputs:
    """What `DecodeStep` of GPT-2 takes; keys and values of random weights are about normal."""
    generator = torch.Generator().manual_seed(seed)
    layers, heads, cached, features = (2, 4, SMALL_CACHED, 16) if small else (12, 12, CACHED, 64)
    vocabulary = SMALL_VOCABULARY if small else 50257
    return {
        "input_ids": torch.randint(0, vocabulary, (batch, 1), generator=generator),
        "cache": torch.randn(batch, layers, 2, heads, cached, features, generator=generator),
    }


def _features(batch: int, small: bool, seed: int) -> Inputs:
    shape = (batch, SMALL_FEATURES if small else FEATURES)
    return {"input": torch.randn(shape, generator=torch.Generator().manual_seed(seed))}


def _linear(small: bool) -> nn.Module:
    features = SMALL_FEATURES if small else FEATURES
    return nn.Sequential(OrderedDict(linear=nn.Linear(features, features)))


def _alexnet_inputs(convolution: Convolution, batch: int, small: bool, seed: int) -> Inputs:
    """An image for the first layer; for the others noise that went through a ReLU, as theirs did."""
    of = convolution.small() if small else convolution
    shape = (batch, of.inputs, of.size, of.size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return {"input": noise if of.inputs == 3 else noise.relu()}


def _alexnet(name: str, convolution: Convolution) -> Workload:
    return Workload(
        name,
        lambda small: (convolution.small() if small else convolution).build(),
        partial(_alexnet_inputs, convolution),
    )


def _bert(small: bool) -> nn.Module:
    sizes: dict[str, Any] = {}
    if small:
        sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        sizes |= {"intermediate_size": 128, "vocab_size": SMALL_VOCABULARY}
    return model_of(hf.BertModel(hf.BertConfig(**sizes)))


def _distilbert(small: bool) -> nn.Module:
    sizes: dict[str, Any] = {}
    if small:
        sizes = {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, "vocab_size": SMALL_VOCABULARY}
    return model_of(hf.DistilBertModel(hf.DistilBertConfig(**sizes)))


def _gpt2(small: bool) -> nn.Module:
    sizes: dict[str, Any] = {}
    if small:
        sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": SMALL_VOCABULARY}
        sizes |= {"bos_token_id": 0, "eos_token_id": 0}
    return model_of(hf.GPT2LMHeadModel(hf.GPT2Config(use_cache=False, **sizes)))


def _gpt2_decode(small: bool) -> nn.Module:
    return DecodeStep(_gpt2(small))


def _t5_encoder(small: bool) -> nn.Module:
    sizes: dict[str, Any] = {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12}
    if small:
        sizes = {"d_model": 64, "d_ff": 128, "num_layers": 2, "num_heads": 2, "vocab_size": SMALL_VOCABULARY}
    return model_of(hf.T5EncoderModel(hf.T5Config(d_kv=64, **sizes)))


def _vit(small: bool) -> nn.Module:
    sizes: dict[str, Any] = {"num_labels": 1000}
    if small:
        sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        sizes |= {"intermediate_size": 128, "image_size": SMALL_PIXELS, "num_labels": 10}
    return model_of(hf.ViTForImageClassification(hf.ViTConfig(**sizes)))


def _resnet(small: bool) -> nn.Module:
    sizes: dict[str, Any] = {"num_labels": 1000}
    if small:
        sizes = {"embedding_size": 16, "hidden_sizes": [32, 64, 96, 128], "depths": [1, 1, 2, 1]}
        sizes |= {"num_labels": 10}
    return model_of(hf.ResNetForImageClassification(hf.ResNetConfig(layer_type="bottleneck", **sizes)))


def _mobilenet(small: bool) -> nn.Module:
    sizes: dict[str, Any] = {"num_labels": 1000}
    if small:
        sizes = {"depth_multiplier": 0.25, "image_size": SMALL_PIXELS, "num_labels": 10}
    return model_of(hf.MobileNetV2ForImageClassification(hf.MobileNetV2Config(**sizes)))


def _convnext(small: bool) -> nn.Module:
    sizes: dict[str, Any] = {"num_labels": 1000}
    if small:
        sizes = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1], "num_labels": 10}
    return model_of(hf.ConvNextForImageClassification(hf.ConvNextConfig(**sizes)))


def model_of(model: Any) -> nn.Module:
    """`transformers` has no types that reach here: say that this is a module."""
    assert isinstance(model, nn.Module)
    return model


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("bert-base", _bert, _tokens(30522)),
        Workload("distilbert", _distilbert, _tokens(30522)),
        Workload("gpt2", _gpt2, _tokens(50257)),
        Workload("gpt2-decode", _gpt2_decode, _token_and_cache),
        Workload("t5-encoder", _t5_encoder, _tokens(32128)),
        Workload("vit-base", _vit, _images),
        Workload("resnet-50", _resnet, _images),
        Workload("mobilenet-v2", _mobilenet, _images),
        Workload("convnext-tiny", _convnext, _images),
        Workload("linear-4096", _linear, _features),
        *(_alexnet(name, convolution) for name, convolution in ALEXNET.items()),
    )
}
