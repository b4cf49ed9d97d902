"""Random projections of gradients from P values to `dim` (the paper's section 4.1).

In: an example's values, weight by weight, in any order. Out: `dim` values. Their inner products are
unbiased estimates of the original ones, with variance about (|x|^2 |y|^2 + <x,y>^2) / dim.

- `sketch`: each weight's values get random signs and are split into blocks of `dim`, and each block
  is added to the result after a random rotation. O(P): each value is read once. As exact as the
  dense matrix (benchmarks/projection).
- `rademacher`: a dense matrix of random signs over sqrt(dim), as in the paper; O(P dim), in tiles.
- `none`: all values, concatenated.

`ExactProducts` replaces a projection if the targets are known in advance: inner products with their
directions have no projection error and need no datastore of gradients, but S x P values of memory.

With a `Balance`, rows are scaled before projection and targets are scaled by the inverse: the inner
products stay the same and their error is smaller.

Signs and rotations are a hash of (seed, weight name, position) in integer arithmetic only, so they
are the same on every device, with any number of threads and in any order of the weights. Rejected:
a generator per block (fast_jl's matrix depends on the GPU's number of multiprocessors), FFT-based
transforms (no faster on CPU, O(P log P)), and two-sided projections per module (2.7 to 3.5 times
the error at the same size).

Letters: B examples, P trainable parameters, p values of one weight, d dim, S subtasks.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

Kind = Literal["sketch", "rademacher", "none"]

VERSION = {False: 1, True: 2}
"""Versions of the plain (False) and the balanced (True) projection, saved in the datastore. A
version changes whenever the same settings would give different values."""

TILE_VALUES = {"cpu": 1 << 19, "cuda": 1 << 26}
"""Values of the dense matrix generated at a time. CPU: 2 MiB in float32, which fits a core's cache
(the fastest of 2^18 to 2^24 on one core, see LOG); GPU: enough to keep it busy, an assumption."""

KEPT_BYTES = 1 << 29
"""Limit on the packed signs of the dense matrix (P d / 8 bytes) that are cached: hashing takes a
sixth of the projection's time (measured, see LOG). 512 MiB is an assumption about spare memory."""


SMALLEST_SCALE = 0.1
"""Smallest scale of a coordinate; the mean of the squared scales is about 1. A coordinate with
v = 0 (as all of LoRA's A after one step) needs a minimum. This one adds at most 1% to the squared
norm of updates of equal coordinates, and bounds what such a coordinate adds to a target's norm."""


@dataclass(frozen=True)
class Balance:
    """Scales s by which updates are multiplied and gradients are divided before projection.

    <s x, y / s> = <x, y> for every s > 0. The projection's error is proportional to |s x| |y / s|,
    which is smallest if s^2 = |y| / |x| in each coordinate (Cauchy-Schwarz). Adam's updates x have
    about the same size everywhere and gradients y are about sqrt(v), so s = v^(1/4): it is known
    before any target and is the same for all targets.

    Attributes:
        exp_avg_sq: Adam's second moments v at the checkpoint, by weight name.
        added: Added to v: eps if Adam's eps is inside the root (`official`), else 0.
        unit: About the mean of sqrt(v + added), so that scales are about 1. It is a power of 2,
            so it doesn't depend on the order of summation.
        inverse: Whether scales are 1 / s, for gradients.
    """

    exp_avg_sq: Mapping[str, Tensor]
    added: float
    unit: float
    inverse: bool = False

    @classmethod
    def of(cls, exp_avg_sq: Mapping[str, Tensor], added: float = 0.0) -> Balance:
        """The scales of updates."""
        roots = [(v.float() + added).sqrt() for v in exp_avg_sq.values()]
        values = sum(root.numel() for root in roots)
        mean = math.fsum(float(root.double().sum()) for root in roots) / max(1, values)
        usable = 0 < mean < math.inf
        return cls(exp_avg_sq, added, 2.0 ** round(math.log2(mean)) if usable else 1.0)

    def of_targets(self) -> Balance:
        """The scales of gradients, inverse to those of updates."""
        return replace(self, inverse=True)

    def scale(self, name: str) -> Float[Tensor, " p"]:
        """One weight's scales."""
        squares = (self.exp_avg_sq[name].flatten().float() + self.added).sqrt_().div_(self.unit)
        squares.clamp_min_(SMALLEST_SCALE**2)
        return squares.rsqrt_() if self.inverse else squares.sqrt_()


@dataclass
class Projection:
    """A random projection, the same for every checkpoint, source and target.

    Attributes:
        dim: Number of projected values, a multiple of 8; unused by `none`.
        balance: Scales of the values at one checkpoint; None means unscaled.
    """

    kind: Kind = "sketch"
    dim: int = 8192
    seed: int = 0
    balance: Balance | None = None
    _signs: dict[tuple[str, int, torch.device], Tensor] = field(
        default_factory=dict, init=False, repr=False
    )
    _kept_bytes: int = field(default=0, init=False, repr=False)

    def project(self, values: Mapping[str, Float[Tensor, "B ..."]]) -> Float[Tensor, "B d"]:
        """Project values, given by weight name; with `none`, d is P."""
        first = next(iter(values.values()))
        total = Accumulator(self, len(first), first.device)
        for name, piece in values.items():
            total.add(name, piece)
        return total.result()

    def key(self, name: str) -> int:
        """The hash key of a weight, a signed 64-bit integer."""
        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        return int.from_bytes(digest[:8], "little", signed=True)

    def add_(
        self, out: Float[Tensor, "B d"], name: str, x: Float[Tensor, "B p"], overwrite: bool
    ) -> None:
        """Add one weight's projection to `out`; `overwrite` allows using `x` as scratch memory."""
        if self.kind == "sketch":
            self._add_sketch(out, name, x if overwrite else x.clone())
        else:
            self._add_rademacher(out, name, x * self.balance.scale(name) if self.balance else x)

    def _add_sketch(self, out: Float[Tensor, "B d"], name: str, x: Float[Tensor, "B p"]) -> None:
        x.mul_(self._sketch_signs(name, x.shape[1], x.device))
        blocks = math.ceil(x.shape[1] / self.dim)
        rotations = random_words(~self.key(name), 0, blocks, torch.device("cpu")) % self.dim
        for block, rotation in enumerate(rotations.tolist()):
            piece = x[:, block * self.dim : (block + 1) * self.dim]
            to_end = min(piece.shape[1], self.dim - rotation)
            out[:, rotation : rotation + to_end] += piece[:, :to_end]
            out[:, : piece.shape[1] - to_end] += piece[:, to_end:]

    def _add_rademacher(
        self, out: Float[Tensor, "B d"], name: str, x: Float[Tensor, "B p"]
    ) -> None:
        rows = max(1, TILE_VALUES.get(x.device.type, TILE_VALUES["cpu"]) // self.dim)
        for start in range(0, x.shape[1], rows):
            piece = x[:, start : start + rows]
            words = self._dense_words(name, start, piece.shape[1], x.device)
            signs = unpack_signs(words).view(piece.shape[1], -1)[:, : self.dim]
            out.addmm_(piece, signs, alpha=self.dim**-0.5)

    def _dense_words(
        self, name: str, start: int, rows: int, device: torch.device
    ) -> Int64[Tensor, " words"]:
        """The packed signs of some rows of the dense matrix, cached up to KEPT_BYTES."""
        words = self._signs.get((name, start, device))
        if words is None:
            a_row = math.ceil(self.dim / 64)
            words = random_words(self.key(name), start * a_row, rows * a_row, device)
            if self._kept_bytes + words.nbytes <= KEPT_BYTES:
                self._signs[name, start, device] = words
                self._kept_bytes += words.nbytes
        return words

    def _sketch_signs(self, name: str, p: int, device: torch.device) -> Shaped[Tensor, " p"]:
        """Signs (int8), or signs times scales (float32): scaling then takes no pass of its own."""
        signs = self._signs.get((name, p, device))
        if signs is None:
            words = random_words(self.key(name), 0, math.ceil(p / 64), device)
            signs = unpack_signs(words)[:p]
            signs = signs.mul_(self.balance.scale(name)) if self.balance else signs.to(torch.int8)
            self._signs[name, p, device] = signs
        return signs


class ExactProducts:
    """Inner products with fixed directions, weight by weight.

    Args:
        directions: [S, P], the weights' values concatenated in order of the weights' names, as
            `Projection("none")` returns them.
        sizes: Number of values of each weight, by name.
    """

    kind, balance = "exact", None

    def __init__(self, directions: Float[Tensor, "S P"], sizes: Mapping[str, int]) -> None:
        names = sorted(sizes)
        parts = directions.split([sizes[name] for name in names], dim=1)
        self.directions, self.dim = dict(zip(names, parts, strict=True)), len(directions)

    def add_(
        self, out: Float[Tensor, "B S"], name: str, x: Float[Tensor, "B p"], overwrite: bool
    ) -> None:
        """Add one weight's products to `out`."""
        out.addmm_(x, self.directions[name].T)


class Accumulator:
    """Sums the rows of a batch weight by weight."""

    def __init__(
        self, projection: Projection | ExactProducts, batch: int, device: torch.device
    ) -> None:
        self.projection = projection
        self._pieces: dict[str, Tensor] = {}
        width = 0 if projection.kind == "none" else projection.dim
        self._out = torch.zeros(batch, width, device=device)

    def add(self, name: str, values: Float[Tensor, "B ..."], overwrite: bool = False) -> None:
        """Add one weight's values; `overwrite` allows using them as scratch memory."""
        values, balance = values.flatten(1), self.projection.balance
        if self.projection.kind != "none":
            self.projection.add_(self._out, name, values, overwrite)
        elif balance:
            self._pieces[name] = values * balance.scale(name)
        else:
            self._pieces[name] = values if overwrite else values.clone()

    def result(self) -> Float[Tensor, "B d"]:
        """The sum so far; for `none`, all values in order of the weights' names."""
        if self.projection.kind != "none":
            return self._out
        return torch.cat([self._pieces[name] for name in sorted(self._pieces)], dim=1)


def random_words(key: int, start: int, count: int, device: torch.device) -> Int64[Tensor, " count"]:
    """64 random bits for each position, beginning at `start`: SplitMix64 (Steele et al., 2014)."""
    state = torch.arange(start + 1, start + count + 1, dtype=torch.int64, device=device)
    state.mul_(_signed(0x9E3779B97F4A7C15)).add_(key)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state.bitwise_xor_(_shift_right(state, shift)).mul_(_signed(factor))
    return state.bitwise_xor_(_shift_right(state, 31))


def unpack_signs(words: Int64[Tensor, " count"]) -> Float[Tensor, " values"]:
    """+1 or -1 for each of the 64 bits of each word, lowest bit first: [count * 64].

    Each bit becomes the sign bit of a float32 1.0: seven times as fast as a table lookup.
    """
    to_sign_bit = 31 - torch.arange(32, dtype=torch.int32, device=words.device)
    bits = words.view(torch.int32).unsqueeze(1) << to_sign_bit
    return bits.bitwise_and_(_SIGN_BIT).bitwise_xor_(_MINUS_ONE).view(torch.float32).flatten()


_SIGN_BIT, _MINUS_ONE = -(1 << 31), 0xBF800000 - (1 << 32)
"""0x80000000, and the bits of -1.0, as signed 32-bit integers."""


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _shift_right(words: Tensor, by: int) -> Tensor:
    """Logical right shift; torch's shift of int64 extends the sign bit."""
    return (words >> by) & ((1 << (64 - by)) - 1)
