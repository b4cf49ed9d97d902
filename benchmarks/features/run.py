"""Cost of gradient features on a CPU, compared with a plain forward and backward pass.

    python benchmarks/features/run.py --out benchmarks/features/cpu.json

Runners take turns (A B A B ...) on one thread; each figure is the median of `--repeats` turns. The
model is a random Llama with LoRA and synthetic Adam moments; tokens are random, and the last two
thirds of each example are labeled. Batched runners use the batch size that was fastest in a trial.

- floor: plain forward and backward of the batch, frozen base, gradients discarded
- sketch, rademacher (8192 dims), exact (57 directions): gradsieve
- the installed peers of peers.py (`make bench` installs them), on `--slow` examples with the same
  spread of lengths, in the settings of WITH_PEERS

Errors are the rms error of cosines between examples, times sqrt(8192), compared with the same
updates unprojected in float32: about 1 for dense signs. All rows are the released code's Gamma.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import distributions, version
from pathlib import Path

import numpy as np
import torch
from peers import installed
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from gradsieve.data.batching import length_sorted_batches
from gradsieve.gradients.adam import Moments
from gradsieve.gradients.features import FeatureExtractor
from gradsieve.gradients.per_example import lora_layers, per_example_pass
from gradsieve.gradients.projection import Balance, ExactProducts, Projection

DIM = 8192
SUBTASKS = 57
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj"]
SETTINGS = {
    "toy: r 16, 128 tokens": {"r": 16, "vocabulary": 512, "mixed": False},
    "mixed lengths, r 8": {"r": 8, "vocabulary": 512, "mixed": True},
    "mixed lengths, r 32": {"r": 32, "vocabulary": 512, "mixed": True},
    "mixed lengths, r 128": {"r": 128, "vocabulary": 512, "mixed": True},
    "mixed lengths, r 32, 32,000 words": {"r": 32, "vocabulary": 32000, "mixed": True},
}
WITH_PEERS = ("toy: r 16, 128 tokens", "mixed lengths, r 32")
"""Settings with peers; others would take hours: a dense projector's time grows with r."""


class Problem:
    """A model, its Adam moments and examples."""

    def __init__(self, r: int, vocabulary: int, mixed: bool, count: int) -> None:
        torch.manual_seed(0)
        self.vocabulary = vocabulary
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=256,
            intermediate_size=688,
            num_hidden_layers=4,
            num_attention_heads=8,
            num_key_value_heads=8,
            max_position_embeddings=512,
        )
        lora = LoraConfig(r=r, lora_alpha=4 * r, target_modules=MODULES, init_lora_weights=False)
        self.model = get_peft_model(LlamaForCausalLM(config), lora).eval()
        config._attn_implementation = "eager"  # vmap fails with masked fused attention
        self.eager = get_peft_model(LlamaForCausalLM(config), lora).eval()
        self.eager.load_state_dict(self.model.state_dict())
        weights = {name: layer.weight for name, layer in lora_layers(self.model).items()}
        self.sizes = {name: weight.numel() for name, weight in weights.items()}
        self.moments = Moments(
            {name: torch.randn_like(weight) * 1e-4 for name, weight in weights.items()},
            {name: torch.rand_like(weight) * 1e-7 for name, weight in weights.items()},
            step=50,
        )
        rng = np.random.default_rng(0)
        # Evenly spaced quantiles of a lognormal: any count has the same spread of lengths.
        normal = statistics.NormalDist()
        quantiles = [normal.inv_cdf((i + 0.5) / count) for i in range(count)]
        lengths = np.clip(100 * np.exp(0.7 * np.array(quantiles)), 16, 512).astype(int)
        self.lengths = rng.permutation(lengths).tolist() if mixed else [128] * count
        self.examples = [self._example(length) for length in self.lengths]

    def _example(self, length: int) -> dict[str, list[int]]:
        """Random tokens, the last two thirds of which are labeled."""
        ids = torch.randint(0, self.vocabulary, (length,)).tolist()
        bare = length // 3
        return {"input_ids": ids, "labels": [-100] * bare + ids[bare:]}

    def batch_indices(self, tokens: int) -> list[list[int]]:
        """Batches sorted by length; the order of examples doesn't depend on `tokens`."""
        return length_sorted_batches(self.lengths, tokens)

    def batches(self, tokens: int) -> list[dict[str, Tensor]]:
        """Batches, padded on the right."""

        def padded(batch: list[int], key: str, value: int) -> Tensor:
            rows = [torch.tensor(self.examples[i][key]) for i in batch]
            return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)

        return [
            {"input_ids": padded(batch, "input_ids", 0), "labels": padded(batch, "labels", -100)}
            for batch in self.batch_indices(tokens)
        ]


Runner = Callable[[Problem, int], "Tensor | None"]


def floor(problem: Problem, tokens: int) -> None:
    for batch in problem.batches(tokens):
        problem.model(**batch, use_cache=False).loss.backward()
        problem.model.zero_grad()


def gradients_only(problem: Problem, tokens: int) -> None:
    """Compute per-example gradients with logits at labels only, and discard them."""
    for batch in problem.batches(tokens):
        with per_example_pass(problem.model, lambda *_: None) as losses:
            losses({key: batch[key] for key in ("input_ids", "labels")}).sum().backward()


def extracted(projection: Projection | ExactProducts) -> Runner:
    def run(problem: Problem, tokens: int) -> Tensor:
        extract = FeatureExtractor(problem.model, projection, problem.moments, "official")
        return torch.cat([extract(batch).rows for batch in problem.batches(tokens)])

    return run


def balanced(problem: Problem, tokens: int) -> Tensor:
    """A recipe's default: updates scaled by powers of Adam's second moment before the sketch."""
    balance = Balance.of(problem.moments.exp_avg_sq, problem.moments.eps)
    return extracted(Projection("sketch", DIM, balance=balance))(problem, tokens)


def exact(subtasks: int = SUBTASKS) -> Runner:
    """A runner that draws its directions on its first run: on a large model they may not fit."""
    runs: list[Runner] = []

    def run(problem: Problem, tokens: int) -> Tensor | None:
        if not runs:
            on = next(iter(problem.moments.exp_avg.values())).device
            directions = torch.randn(subtasks, sum(problem.sizes.values()), device=on)
            products = ExactProducts(functional.normalize(directions, dim=1), problem.sizes)
            runs.append(extracted(products))
        return runs[0](problem, tokens)

    return run


def cosine_error(found: Tensor, whole: Tensor) -> float:
    pairs = torch.triu_indices(len(whole), len(whole), 1).unbind()
    unit = [functional.normalize(rows.double(), dim=1) for rows in (found, whole)]
    gaps = [(rows @ rows.T)[pairs] for rows in unit]
    gap = (gaps[0] - gaps[1]).detach()
    return float(gap.square().mean().sqrt()) * math.sqrt(DIM)


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def peak_bytes(call: Callable[[], object]) -> int:
    """The peak number of bytes held by tensors that were created within the call."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    # Raw events: the aggregated ones hide what an operator allocates and frees internally.
    events = profiler.profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    held = peak = 0
    for _, change in sorted(changes):
        held += change
        peak = max(peak, held)
    return peak


def memory(problem: Problem, tokens: int) -> dict[str, int]:
    """Peak memory of one batch, and its limit: batch size x the largest weight's gradients."""
    batch = max(problem.batch_indices(tokens), key=len)
    one = copy.copy(problem)
    one.examples = [problem.examples[i] for i in batch]
    one.lengths = [problem.lengths[i] for i in batch]
    sketch = extracted(Projection("sketch", DIM))
    sketch(one, 10**9)
    return {
        "examples": len(batch),
        "floor_bytes": peak_bytes(lambda: floor(one, 10**9)),
        "sketch_bytes": peak_bytes(lambda: sketch(one, 10**9)),
        "batch_times_largest_weight_bytes": 4 * len(batch) * max(problem.sizes.values()),
        "batch_times_all_weights_bytes": 4 * len(batch) * sum(problem.sizes.values()),
    }


def fastest(runs: Mapping[str, Runner], problem: Problem, trials: Sequence[int]) -> dict[str, int]:
    """Each runner's best batch size, in tokens."""
    best = {}
    for name, run in runs.items():
        run(problem, trials[0])  # caches signs
        times = {tokens: seconds(lambda r=run, t=tokens: r(problem, t)) for tokens in trials}
        best[name] = min(times, key=times.__getitem__)
    return best


def measure(setting: dict, count: int, slow: int, repeats: int) -> dict:
    """Measure one setting, with `slow` examples for the peers; 0 means no peers."""
    problem = Problem(**setting, count=count)
    small = Problem(**setting, count=slow or 1)
    own = {
        "floor": floor,
        "gradients only": gradients_only,
        "sketch": extracted(Projection("sketch", DIM)),
        "sketch, balanced": balanced,
        "rademacher": extracted(Projection("rademacher", DIM)),
        f"exact, {SUBTASKS} subtasks": exact(),
    }
    peers = installed() if slow else {}
    best = fastest(own, problem, (1024, 2048, 4096, 8192))
    best.update(fastest(peers, small, (1024, 8192)))
    calls = {name: (run, problem, best[name]) for name, run in own.items()}
    calls.update({name: (run, small, best[name]) for name, run in peers.items()})
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, (run, on, tokens) in calls.items():
            taken = seconds(lambda r=run, o=on, t=tokens: r(o, t))
            times[name].append(taken / len(on.lengths))
    whole = extracted(Projection("none"))
    exact_rows = {id(on): whole(on, 2048) for on in (problem, small)}
    errors = {
        name: cosine_error(run(on, tokens), exact_rows[id(on)])
        for name, (run, on, tokens) in calls.items()
        if name not in own or name in ("sketch", "rademacher")
    }
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "values": sum(problem.sizes.values()),
        "seconds_an_example": medians,
        "spread": {name: [min(values), max(values)] for name, values in times.items()},
        "times_the_floor": {name: value / medians["floor"] for name, value in medians.items()},
        "times_the_sketch": {name: value / medians["sketch"] for name, value in medians.items()},
        "tokens_per_batch": best,
        "cosine_error_times_sqrt_dim": errors,
        "memory": memory(problem, 2048),
    }


def table(result: dict) -> str:
    """The result as Markdown."""
    lines = [
        "# Gradient features on a CPU",
        "",
        f"`{result['command']}`, {result['machine']}, {json.dumps(result['versions'])}.",
        "Medians; times are of one example. Error: rms error of cosines times sqrt(8192).",
        "",
        "| setting | runner | seconds | times the floor | times the sketch | error |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for setting, found in result["settings"].items():
        for name, taken in found["seconds_an_example"].items():
            error = found["cosine_error_times_sqrt_dim"].get(name)
            lines.append(
                f"| {setting} | {name} | {taken:.4f} | {found['times_the_floor'][name]:.2f} "
                f"| {found['times_the_sketch'][name]:.2f} | {f'{error:.2f}' if error else ''} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--slow", type=int, default=32, help="examples of the peers")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    packages = ("torch", "transformers", "peft", "traker", "bergson", "dattri")
    result = {
        "command": "python benchmarks/features/run.py "
        f"--count {arguments.count} --slow {arguments.slow} --repeats {arguments.repeats}",
        "machine": f"{platform.machine()}, one thread",
        "commit": commit(),
        "versions": {name: version(name) for name in packages if find_distribution(name)},
        "settings": {},
    }
    for name, setting in SETTINGS.items():
        if arguments.only in name:
            slow = arguments.slow if name in WITH_PEERS else 0
            result["settings"][name] = measure(setting, arguments.count, slow, arguments.repeats)
            print(name, json.dumps(result["settings"][name]["times_the_floor"]), flush=True)
            arguments.out.write_text(json.dumps(result, indent=1) + "\n")
            arguments.out.with_suffix(".md").write_text(table(result))


def commit() -> str:
    """The commit of the checkout; empty in a copy without git history."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def find_distribution(name: str) -> bool:
    """Whether a package is installed."""
    return any(True for _ in distributions(name=name))


if __name__ == "__main__":
    main()
