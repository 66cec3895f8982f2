"""How long ResNet-101's 44.5 million seeded weights take on one core, beside filling them with torch's generators.

    python benchmarks/weights.py

Medians of 7 runs, in milliseconds; the weights are generated anew and discarded, tensor by tensor.
"""

import functools

import torch
from timing import median

from rst_hub import Init
from rst_hub.networks.build import build_model
from rst_hub.networks.roles import MaskableWeight, maskable_weights
from rst_hub.networks.weights import DISTRIBUTIONS, normal_quantiles


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    normal_quantiles()  # made once a process
    with torch.device("meta"):
        weights = maskable_weights(build_model("resnet101", {}))
    count = sum(weight.parameter.numel() for weight in weights)
    print(f"resnet101, {count:,} weights in {len(weights)} tensors, one core, median of 7:")
    reference = median(lambda: [torch.empty(weight.parameter.shape).normal_() for weight in weights])
    print(f"  {'torch normal_':26}{reference:8.1f} ms")
    for distribution in DISTRIBUTIONS:
        taken = median(functools.partial(generate, Init(0, distribution), weights))
        print(f"  {distribution:26}{taken:8.1f} ms   {reference / taken:5.2f} times as fast as torch's normal_")


def generate(init: Init, weights: list[MaskableWeight]) -> None:
    """Make every weight and forget it."""
    for weight in weights:
        init.tensor(weight.seeded(init))


if __name__ == "__main__":
    main()
