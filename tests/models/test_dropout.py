"""Dropout per example: what is dropped depends on seed, step and example, and on nothing else.

The GPU kernel is tested in the same way, by Triton's interpreter in a process of its own
(tests/gradients/test_kernels.py explains why).
"""

import importlib.util
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from peft.tuners.lora import Linear
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

import tiny
from gradsieve.models import dropout
from gradsieve.models.dropout import example_dropout
from gradsieve.models.load import add_adapter
from gradsieve.recipe.schema import LoraConfig

P = 0.3


class Two(nn.Module):
    """Two dropout layers in a row; the output shows what each one drops."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Dropout(P), nn.Dropout(P)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.first(x), self.second(x)])


def batch(lengths: tuple[int, ...], longest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Examples with the tokens 100 a, 100 a + 1, ..., where a is the length."""
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    ids = (100 * torch.tensor(lengths)[:, None] + torch.arange(longest)) * mask
    return ids, mask


def dropped(lengths: tuple[int, ...], longest: int, seed: int = 0, step: int = 0) -> Any:
    """The output of both layers for each example, without its padding."""
    model, (ids, mask) = Two(), batch(lengths, longest)
    with example_dropout(model, seed) as begin:
        begin(ids, mask, step)
        out = model(torch.ones(*ids.shape, 50))
    return {length: out[:, row, :length] for row, length in enumerate(lengths)}


def test_batches_and_padding_make_no_difference() -> None:
    together = dropped((8, 20, 13), 20)
    for length, longest in ((8, 8), (20, 31), (13, 14)):
        (alone,) = dropped((length,), longest).values()
        assert torch.equal(alone, together[length])


def test_layers_steps_seeds_and_examples_differ() -> None:
    found = [
        *dropped((20,), 20)[20],
        *dropped((20,), 20, step=1)[20],
        *dropped((20,), 20, seed=1)[20],
        *dropped((21,), 21)[21][:, :20],
    ]
    for at, one in enumerate(found):
        for other in found[:at]:
            assert float(((one == 0) == (other == 0)).float().mean()) < 0.7  # 0.58 by chance


def test_the_share_and_the_mean_are_dropouts() -> None:
    out = dropped((400,), 400)[400]
    assert float((out == 0).float().mean()) == pytest.approx(P, abs=0.01)
    assert float(out.mean()) == pytest.approx(1, abs=0.02)
    assert out.unique().tolist() == pytest.approx([0.0, 1 / (1 - P)])


def test_tokens_laid_out_as_one_row_are_the_same() -> None:
    ids, mask = batch((8, 12), 12)
    model = Two()
    with example_dropout(model, 0) as begin:
        begin(ids, mask, 0)
        rows, flat = model(torch.ones(2, 12, 5)), model(torch.ones(24, 5))
        apart = model(torch.ones(2, 1, 12, 5))
    assert torch.equal(rows.flatten(1, 2), flat)
    assert torch.equal(rows, apart.squeeze(2))


def test_gradients_pass_what_is_kept_and_evaluation_drops_nothing() -> None:
    model, (ids, mask) = Two(), batch((8,), 8)
    x = torch.ones(1, 8, 5, requires_grad=True)
    with example_dropout(model, 0) as begin:
        begin(ids, mask, 0)
        out = model(x)
        assert torch.equal(model.eval()(x)[0], x)
    out[0].sum().backward()
    assert torch.equal(x.grad, out[0].detach())
    assert "forward" not in vars(model.first)


@pytest.mark.parametrize(("dtype", "room"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_adapters_compute_what_pefts_forward_does(dtype: torch.dtype, room: float) -> None:
    model = add_adapter(tiny.model().to(dtype), LoraConfig(r=4, alpha=8, dropout=P), seed=0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.1)
    layer = next(module for module in model.modules() if type(module) is Linear)
    ids, mask = batch((8, 20, 13), 20)
    x = torch.randn(3, 20, layer.in_features).to(dtype)
    found = []
    with example_dropout(model, 0) as begin:
        begin(ids, mask, 0)
        # PEFT's method with the example's dropout layer, and the method that replaces it.
        for forward in (lambda x: Linear.forward(layer, x), layer.forward):
            layer.zero_grad()
            given = x.clone().requires_grad_()
            out = forward(given)
            (out.float() ** 2).sum().backward()
            found.append(
                [out, given.grad, *(w.grad for w in layer.parameters() if w.requires_grad)]
            )
    assert len(found[0]) == 4
    for theirs, ours in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        assert float(((ours - theirs).norm() / theirs.norm()).detach()) < room
    assert [type(out.grad_fn).__name__ == "_LowRankBackward" for out, *_ in found] == [False, True]


def test_adapters_keep_only_their_input_for_the_backward_pass() -> None:
    model = add_adapter(tiny.model(), LoraConfig(r=1, alpha=2, dropout=P), seed=0)
    layer = next(module for module in model.modules() if type(module) is Linear)
    ids, mask = batch((8, 20), 20)
    x = torch.randn(2, 20, layer.in_features)
    kept: set[int] = set()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.numel() >= x.numel():
            kept.add(tensor.data_ptr())
        return tensor

    with example_dropout(model, 0) as begin, saved_tensors_hooks(pack, lambda tensor: tensor):
        begin(ids, mask, 0)
        layer(x)
    weights = {weight.data_ptr() for weight in layer.parameters()}
    assert kept - weights == {x.data_ptr()}


def test_a_gpus_kernel_keeps_all_this() -> None:
    if not importlib.util.find_spec("triton"):
        pytest.skip("triton is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr[-2000:]


if __name__ == "__main__":
    lengths = (8, 20, 13)
    by_generator = dropped(lengths, 20)
    dropout.has_kernels = lambda device: True
    by_kernel = dropped(lengths, 20)
    assert not any(torch.equal(by_generator[n], by_kernel[n]) for n in lengths)
    test_batches_and_padding_make_no_difference()
    test_layers_steps_seeds_and_examples_differ()
    test_the_share_and_the_mean_are_dropouts()
    test_tokens_laid_out_as_one_row_are_the_same()
    test_gradients_pass_what_is_kept_and_evaluation_drops_nothing()
