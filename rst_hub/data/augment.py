"""Augmentation per sample, from random numbers that do not depend on how a batch is shared."""

import math
import os
from concurrent.futures import ThreadPoolExecutor

import torch
from torch.nn import functional
from torchvision.transforms.v2 import functional as transforms

from ..choices import AUGMENTATIONS as AUGMENTATIONS
from .decoding import resize
from .images import Images
from .order import fold_seed


def draws_of(seed: int, epoch: int, step: int, batch_size: int, shard: tuple[int, int]) -> torch.Tensor:
    """Return the random numbers of this process's samples of one batch, float32 (samples, 24) in [0, 1), on the CPU.

    Those of the whole batch are drawn on every process, so that they do not depend on how it is shared.
    """
    rank, processes = shard
    noise = torch.Generator().manual_seed(fold_seed("augment", seed, epoch, step))
    return torch.rand(batch_size, 24, dtype=torch.float32, generator=noise)[rank::processes]


def pixels_of(
    images: Images, indices: torch.Tensor, augment: str, size: int, draws: torch.Tensor | None
) -> torch.Tensor:
    """Return images as float32 pixels in [0, 1], augmented if there are ``draws`` to do it by."""
    if isinstance(images.rows, torch.Tensor) and augment != "imagenet" and images.rows.shape[-2:] == (size, size):
        batch = images.rows[indices]
    else:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            rows = pool.map(lambda i: images.rows[int(i)], indices)
            if augment == "imagenet" and draws is not None:
                batch = torch.stack(list(pool.map(lambda row, draw: _resized_crop(row, draw, size), rows, draws)))
            else:
                batch = torch.stack([resize(row, size) for row in rows])
    # By a tensor on the device: a plain number's reciprocal would be multiplied by on CUDA, which rounds otherwise.
    pixels = batch.float() / torch.full((), 255.0, device=batch.device)
    if draws is not None and augment in ("crop", "cifar"):
        pixels = _random_crop(pixels, draws[:, 0], draws[:, 1])
    if draws is not None and augment in ("cifar", "imagenet"):
        pixels = torch.where((draws[:, 2] < 0.5).view(-1, 1, 1, 1), pixels.flip(3), pixels)
    return pixels


def _random_crop(pixels: torch.Tensor, down: torch.Tensor, right: torch.Tensor, padding: int = 4) -> torch.Tensor:
    """Pad with black and cut each sample at its own offset, all in one gather."""
    _, channels, height, width = pixels.shape
    padded = functional.pad(pixels, [padding] * 4)
    top = (down * (2 * padding + 1)).long().view(-1, 1) + torch.arange(height, device=down.device)
    left = (right * (2 * padding + 1)).long().view(-1, 1) + torch.arange(width, device=right.device)
    rows = padded.gather(2, top.view(-1, 1, height, 1).expand(-1, channels, -1, padded.shape[3]))
    return rows.gather(3, left.view(-1, 1, 1, width).expand(-1, channels, height, -1))


def _resized_crop(row: torch.Tensor, draws: torch.Tensor, size: int) -> torch.Tensor:
    """Cut a random area of 8 to 100% and aspect 3/4 to 4/3, the first of ten tries that fits, and resize it."""
    height, width = row.shape[-2:]
    for area, aspect in zip(draws[3:13].tolist(), draws[13:23].tolist(), strict=True):
        pixels, ratio = height * width * (0.08 + 0.92 * area), (4 / 3) ** (2 * aspect - 1)
        h, w = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
        if 0 < h <= height and 0 < w <= width:
            top, left = int(draws[0] * (height - h + 1)), int(draws[1] * (width - w + 1))
            return transforms.resized_crop(row, top, left, h, w, [size, size], antialias=True)
    return resize(row, size)
