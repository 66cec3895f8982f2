"""Init(seed, distribution): any named tensor of random numbers, bit-exact on any machine.

The bits come from Philox4x64-10 (Salmon et al., 2011), as numpy's ``Philox.random_raw`` gives them (NEP 19 fixes that
stream), keyed by SHA-256 of (format, purpose, seed, tensor name). Everything behind them is integer arithmetic, one
table, and one rounded float32 multiplication; element ``i`` of a tensor in row-major order takes the ``i``-th bits.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import torch

from ..choices import DISTRIBUTIONS
from ..errors import SettingsError, nearest, printable

GENERATOR = "philox4x64-10"
_ROWS_AT_ONCE = 8192
TABLE_STD = 0.02
"""Standard deviation of what is random besides the weights (tokens, position tables), as transformers have it."""


@dataclass(frozen=True)
class SeededTensor:
    """A tensor that a seed makes; ``Init(seed, distribution).tensor(spec)`` gives its values.

    Attributes:
        name: which random bits it takes, with the seed: in a model its name in the state dict, else any text. Two
            tensors of one name and seed take the same bits.
        shape: its sides; () is a single number.
        scale: as :meth:`Init.scale` gives it for a weight: the size of a constant, the half width of what is uniform,
            the standard deviation of what is normal. It is rounded to float32 when it is used.
        masked: whether it is a weight, of the Init's distribution, which a mask may cover; else it is a table (tokens,
            positions), normal whatever the distribution, of other bits than a weight of the same name.
    """

    name: str
    shape: tuple[int, ...]
    scale: float
    masked: bool = True


@dataclass(frozen=True)
class Init:
    """A random network's weights: a seed in [0, 2**64) and one of the paper's four distributions (section 4.1).

    ``signed_kaiming_constant``: the sign is random, the size is gain / sqrt(fan_in) (Ramanujan et al., 2020).
    ``kaiming_normal``, ``kaiming_uniform``: standard deviation gain / sqrt(fan_in) (He et al., 2015).
    ``xavier_normal``: standard deviation sqrt(2 / (fan_in + fan_out)) (Glorot and Bengio, 2010).
    The gain is that of ReLU, sqrt(2).

    The values are the same bits on every machine, with every version of torch and numpy, and they depend on nothing but
    this, a tensor's name, shape and scale: not on torch's seed, on the device, or on what was made before.

        >>> init = Init(7)
        >>> init.tensor(SeededTensor("adapter.down", (2, 3), init.scale(fan_in=3, fan_out=2)))
        tensor([[ 0.8165,  0.8165, -0.8165],
                [-0.8165, -0.8165, -0.8165]])

    Raises:
        SettingsError: the seed is out of range or the distribution is not one of the four.
    """

    seed: int
    distribution: str = "signed_kaiming_constant"

    def __post_init__(self) -> None:
        """Check both fields."""
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**64:
            raise SettingsError(f"init seed {self.seed!r}: give a whole number from 0 to 2**64 - 1")
        if self.distribution not in DISTRIBUTIONS:
            known = nearest(str(self.distribution), DISTRIBUTIONS)
            raise SettingsError(f"init distribution {self.distribution!r} is not known. {known}")

    def scale(self, fan_in: int, fan_out: int) -> float:
        """Return the size, half width or standard deviation of a weight of these fans, exact in float32.

        Args:
            fan_in: how many inputs each output is a sum over: for a Linear in_features, for a convolution
                in_channels / groups x kernel height x kernel width.
            fan_out: likewise of the outputs; only ``xavier_normal`` asks for it.

        Raises:
            SettingsError: fan_in is no whole number from 1, or fan_out none from 0.
        """
        for name, fan, least in (("fan_in", fan_in, 1), ("fan_out", fan_out, 0)):
            if isinstance(fan, bool) or not isinstance(fan, int) or fan < least:
                raise SettingsError(f"{name}={fan!r}: give a whole number from {least}")
        if self.distribution == "xavier_normal":
            scale = math.sqrt(2.0 / (fan_in + fan_out))
        elif self.distribution == "kaiming_uniform":
            scale = math.sqrt(6.0 / fan_in)
        else:
            scale = math.sqrt(2.0 / fan_in)
        return float(np.float32(scale))

    def tensor(self, spec: SeededTensor) -> torch.Tensor:
        """Return the dense values of ``spec``, a weight or a table: float32, on the CPU, contiguous.

        Element ``i`` in row-major order takes the ``i``-th of the name's random bits, so a longer tensor of one name
        and scale begins with the shorter one.

        Raises:
            SettingsError: the name is no text of whole characters, a side is no whole number from 0, or the scale is
                not a positive number of float32.
        """
        _check(spec)
        return self._made(spec)

    def _made(self, spec: SeededTensor) -> torch.Tensor:
        if not spec.masked:
            return normal("table", self.seed, spec.name, spec.shape, spec.scale)
        if self.distribution == "signed_kaiming_constant":
            return self._signed_constant(spec).tensor()
        draw = uniform if self.distribution == "kaiming_uniform" else normal
        return draw("weight", self.seed, spec.name, spec.shape, spec.scale)

    def masked(self, spec: SeededTensor, packed: np.ndarray) -> "torch.Tensor | Ternary":
        """Return :meth:`tensor` where a mask's packed bits (:mod:`rst_hub.masks`) are 1, and +0.0 where they are 0.

        What has one size is not made a tensor yet: its bits are all that a digest has to see.
        """
        if self.distribution == "signed_kaiming_constant":
            return self._signed_constant(spec, packed)
        values = self.tensor(spec)
        mask = torch.from_numpy(np.unpackbits(packed, count=values.numel(), bitorder="little").view(np.bool_))
        return values.masked_fill_(~mask.view(spec.shape), 0)

    def _signed_constant(self, spec: SeededTensor, packed: np.ndarray | None = None) -> "Ternary":
        """Return +scale or -scale by one random bit a weight, and 0 where a packed mask has 0."""
        count = math.prod(spec.shape)
        signs = random_bytes("weight", self.seed, spec.name, (count + 7) // 8)
        kept = np.packbits(np.ones(count, np.bool_), bitorder="little") if packed is None else packed
        plus = signs & kept
        return Ternary(spec.shape, spec.scale, plus, plus ^ kept)


def _check(spec: SeededTensor) -> None:
    """Raise SettingsError for a tensor that cannot be made."""
    where, in_float32 = f"seeded tensor {printable(repr(spec.name))}", np.finfo(np.float32)
    if not isinstance(spec.name, str) or spec.name.encode(errors="replace").decode() != spec.name:
        raise SettingsError(f"{where}: give its name as a text that can be written in UTF-8")
    if not isinstance(spec.shape, list | tuple) or not all(type(n) is int and n >= 0 for n in spec.shape):
        raise SettingsError(f"{where} of shape {printable(repr(spec.shape))}: give whole numbers from 0 in a tuple")
    is_number = isinstance(spec.scale, int | float) and not isinstance(spec.scale, bool)
    if not is_number or not float(in_float32.tiny) <= spec.scale <= float(in_float32.max):
        raise SettingsError(f"{where} of scale {spec.scale!r}: give a positive number of float32, see Init.scale")


@dataclass(frozen=True, eq=False)
class Ternary:
    """A float32 tensor of +scale, -scale and +0.0: the bits of either sign, uint8 (size / 8, rounded up) as a mask's.

    The bits are in row-major order, the first of eight in the lowest bit of its byte, the padding 0.
    """

    shape: tuple[int, ...]
    scale: float
    plus: np.ndarray
    minus: np.ndarray

    @classmethod
    def of(cls, values: torch.Tensor, scale: float) -> "Ternary | None":
        """Return a tensor as such bits; None if any value of it is another, -0.0 among them."""
        if values.dtype != torch.float32:
            return None
        patterns = values.detach().cpu().contiguous().view(torch.int32).reshape(-1).numpy()
        up = np.int32(torch.tensor(scale, dtype=torch.float32).view(torch.int32))  # numpy would warn of an infinite one
        plus, minus = np.empty((2, (patterns.size + 7) // 8), np.uint8)
        for start in range(0, patterns.size, 8 * _ROWS_AT_ONCE):
            part = patterns[start : start + 8 * _ROWS_AT_ONCE]
            signs = part == up, part == np.bitwise_or(up, np.int32(-(2**31)))
            if np.count_nonzero(part) != sum(np.count_nonzero(sign) for sign in signs):
                return None
            for bits, sign in zip((plus, minus), signs, strict=True):
                bits[start // 8 : (start + part.size + 7) // 8] = np.packbits(sign, bitorder="little")
        return cls(tuple(values.shape), scale, plus, minus)

    def tensor(self) -> torch.Tensor:
        """Return the values, contiguous, on the CPU."""
        count = math.prod(self.shape)
        # torch's memory: numpy asks for huge pages, which often takes longer than to fill small ones
        values = torch.empty(len(self.plus) * 8 if count % 8 else count, dtype=torch.float32, device="cpu")
        rows = values.numpy().reshape(-1, 8)
        for start in range(0, len(rows), _ROWS_AT_ONCE):  # so few that all of it stays in the cache
            part = slice(start, start + _ROWS_AT_ONCE)
            indices = self.plus[part] | self.minus[part].astype(np.uint16) << 8
            np.take(_signs(), indices, axis=0, out=rows[part], mode="clip")
            rows[part] *= np.float32(self.scale)
        return values[:count].clone().view(self.shape) if count % 8 else values.view(self.shape)


@lru_cache(maxsize=1)
def _signs() -> np.ndarray:
    """Return eight values of -1, 0 or 1, float32 (65536, 8): an index has the bits of 1, above them those of -1."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").astype(np.float32)
    return (bits - bits[:, None]).reshape(65536, 8)


def uniform(purpose: str, seed: int, name: str, shape: Sequence[int], bound: float) -> torch.Tensor:
    """Return float32 values of ``shape``, uniform in (-bound, bound), symmetric around 0, from 24 random bits each."""
    count = math.prod(shape)
    words = random_bytes(purpose, seed, name, 4 * count).view("<u4")
    # Odd numbers below 2**24 in size are exact in float32, and so is their 2**-24-th part.
    odd = (words >> 8).astype(np.int32) * 2 + (1 - 2**24)
    values = odd.astype(np.float32) * np.float32(2**-24) * np.float32(bound)
    return torch.from_numpy(values).reshape(tuple(shape))


def normal(purpose: str, seed: int, name: str, shape: Sequence[int], std: float) -> torch.Tensor:
    """Return float32 values of ``shape``, normal with mean 0 and this standard deviation, from 16 random bits each."""
    count = math.prod(shape)
    words = random_bytes(purpose, seed, name, 2 * count).view("<u2")
    values = np.take(normal_quantiles(), words) * np.float32(std)
    return torch.from_numpy(values).reshape(tuple(shape))


@lru_cache(maxsize=1)
def normal_quantiles() -> np.ndarray:
    """Return the 65536 mid-quantiles of N(0, 1) as float32, scaled to variance 1 and rounded to multiples of 2**-16.

    The rounding is a million times coarser than the difference between two machines' logarithms, so the table is
    the same everywhere; its SHA-256 is a test.
    """
    inverse = NormalDist().inv_cdf
    upper = [inverse((i + 0.5) / 65536) for i in range(32768, 65536)]
    deviation = math.sqrt(math.fsum(q * q for q in upper) / 32768)
    half = np.array([round(q / deviation * 65536) for q in upper], np.float32) / np.float32(65536)
    return np.concatenate([-half[::-1], half])


def random_bytes(purpose: str, seed: int, name: str, count: int) -> np.ndarray:
    """Return ``count`` random bytes as uint8, a multiple of 8 generated, the rest cut."""
    key = hashlib.sha256(f"rst-hub/1/{purpose}/{seed}/{name}".encode()).digest()
    philox = np.random.Philox(key=np.frombuffer(key[:16], "<u8").astype(np.uint64), counter=0)
    return philox.random_raw((count + 7) // 8).astype("<u8", copy=False).view(np.uint8)[:count]
