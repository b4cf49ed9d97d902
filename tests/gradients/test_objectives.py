"""An example's loss is the model's own, whatever else is in the batch."""

from array import array

import pytest
import torch
from torch import nn

import tiny
from gradsieve.data.batching import collate
from gradsieve.data.examples import TokenizedExample
from gradsieve.errors import ModelError
from gradsieve.gradients.objectives import SFT, Batch, Sft, example_losses
from gradsieve.gradients.per_example import per_example, per_example_pass


def encoded(length: int, seed: int) -> TokenizedExample:
    batch = tiny.batch((length,), seed=seed)
    ids, labels = (array("i", batch[key][0].tolist()) for key in ("input_ids", "labels"))
    return TokenizedExample(ids, labels)


@pytest.mark.parametrize("name", list(tiny.CONFIGS))
def test_sft_is_the_models_own_loss(name: str) -> None:
    model = tiny.model(name).eval()
    examples = [encoded(length, seed) for seed, length in enumerate((12, 5, 9, 30))]
    found = example_losses(model, examples)
    with torch.no_grad():
        own = [float(model(**collate([example])).loss) for example in examples]
    assert found == pytest.approx(own, rel=1e-5)


def test_only_label_positions_reach_the_head() -> None:
    model = tiny.model().eval()
    batch = collate([encoded(12, 0), encoded(7, 1)])
    seen: list[torch.Size] = []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda _, inputs, out: seen.append(out.shape))
    losses = SFT.losses(model, batch)
    assert losses.shape == (2,)
    assert losses.requires_grad
    wanted = int((batch["labels"][:, 1:] != -100).sum())
    assert [tuple(shape) for shape in seen] == [(1, wanted, tiny.VOCABULARY)]
    assert not head._forward_pre_hooks


def test_the_gradient_of_logits_takes_their_place() -> None:
    model, places = tiny.model().eval(), []

    def keep(_: nn.Module, inputs: object, out: torch.Tensor) -> None:
        places.append(out.data_ptr())
        out.register_hook(lambda gradient: places.append(gradient.data_ptr()))

    model.get_output_embeddings().register_forward_hook(keep)
    batch = collate([encoded(12, 0), encoded(7, 1)])
    loss = SFT.batch_loss(model, batch)
    loss.backward(retain_graph=True)
    logits, gradient = places
    assert logits == gradient
    with pytest.raises(RuntimeError, match="inplace"):  # no second backward pass
        loss.backward()


def test_a_batch_for_losses_that_does_not_fit_into_memory_is_halved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, room, sizes = tiny.model(), 2, []
    ids = [array("i", range(1, 9 + row)) for row in range(5)]
    examples = [TokenizedExample(one, one[:]) for one in ids]
    together, real = example_losses(model, examples), SFT.losses

    def losses(model: nn.Module, batch: Batch) -> torch.Tensor:
        sizes.append(len(batch["labels"]))
        if sizes[-1] > room:
            raise torch.OutOfMemoryError
        return real(model, batch)

    monkeypatch.setattr(SFT, "losses", losses)
    assert example_losses(model, examples) == pytest.approx(together, rel=1e-5)
    assert sizes == [5, 2, 3, 1, 2]
    room = 0
    with pytest.raises(ModelError, match="with a single example"):
        example_losses(model, examples)


def test_gradients_are_of_the_objective() -> None:
    class Twice(Sft):
        def losses(self, model: nn.Module, batch: Batch) -> torch.Tensor:
            return 2 * super().losses(model, batch)

    model = tiny.stirred(tiny.adapted())
    batch = {key: value for key, value in tiny.batch().items() if key != "attention_mask"}
    once, twice = per_example(model, batch), {}
    with per_example_pass(model, twice.__setitem__, Twice()) as losses:
        losses(batch).sum().backward()
    for name, gradient in once.items():
        torch.testing.assert_close(twice[name], 2 * gradient)


def test_a_model_without_output_layer_is_refused() -> None:
    with pytest.raises(ModelError, match="no output layer"):
        SFT.losses(tiny.model().model, collate([encoded(5, 0)]))
