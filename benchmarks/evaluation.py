"""PGD-20 accuracy (Linf, eps 8/255): images a second by the published formulation and by ours, with and without drops.

    python benchmarks/evaluation.py                      preact_resnet18, 100 digits, one thread; six minutes
    python benchmarks/evaluation.py --device cuda --batch-size 1000 --published-steps 20

A ticket is searched first, for so few steps that PGD-20 breaks a good part of the images: the more it breaks, and the
earlier, the less "enough" has to do. The published formulation (benchmarks/published.py) takes all images through all
steps, each of which costs the same; --published-steps of them are timed, and counted as 20. Each round does every kind
of evaluation one after the other, and a ratio is the median of the rounds' ratios. The exit status is 1 if "enough"
leaves another accuracy than "best" by more than one image.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Literal

import published
import torch
from timing import interleaved, ratio
from torch.nn import functional

from rst_hub import EdgePopup, Init, PixelModel, ThreatModel, create_model, pgd
from rst_hub.data.images import load_images
from rst_hub.evaluation.accuracy import outcomes
from rst_hub.networks.inputs import describe_input

STEPS, LINF, SIZE = 20, ThreatModel("Linf", 8 / 255), 32
PRECISIONS = ("fp32", "bf16")
KEEPS: tuple[Literal["best", "enough"], ...] = ("best", "enough")


def main() -> int:
    """Search, measure, print a table and the ratios; return 1 if the accuracies differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="preact_resnet18")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=100, help="test digits, attacked together")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--search-steps", type=int, default=40)
    parser.add_argument("--published-steps", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.backends.cudnn.allow_tf32 = False
    network, popup = searched(arguments.model, arguments.search_steps, arguments.device)
    x, y = digits("test", torch.arange(arguments.batch_size), arguments.device)
    finish = torch.cuda.synchronize if arguments.device == "cuda" else lambda: None
    right: dict[str, int] = {}
    works = works_of(network, popup, x, y, arguments.published_steps, right)
    seconds = interleaved(works, arguments.rounds, finish)
    for name, times in seconds.items():
        if name.startswith("published"):
            seconds[name] = [STEPS / arguments.published_steps * one for one in times]
    clean = int(outcomes(network, [(x, y)]).sum())
    about = f"{arguments.threads} thread(s), torch {torch.__version__}, medians of {arguments.rounds} rounds"
    print(f"{arguments.model}, {len(x)} digits of {SIZE} x {SIZE} ({clean} right), {arguments.device}, {about}")
    return table(seconds, right, len(x))


def searched(architecture: str, steps: int, device: str) -> tuple[PixelModel, EdgePopup]:
    """Return a network that some steps of natural search on the digits, in bf16, have made better than chance."""
    init = Init(0)
    model = create_model(architecture, init, num_classes=10)
    describe_input(model, SIZE, (0.3,) * 3, (0.3,) * 3, tuple("0123456789"))
    model.to(device).to(memory_format=torch.channels_last)
    network, popup = PixelModel(model), EdgePopup(model, init, 0.1)
    optimizer = torch.optim.SGD(popup.scores.values(), 0.1, momentum=0.9)
    network.train()
    for step in range(steps):
        x, y = digits("train", torch.arange(32 * step, 32 * step + 32), device)
        popup.apply()
        with torch.autocast(device, torch.bfloat16):
            loss = functional.cross_entropy(network(x).float(), y)
        loss.backward()
        popup.collect_gradients()
        optimizer.step()
        optimizer.zero_grad()
    popup.apply()
    return network.eval().requires_grad_(False), popup


def digits(split: str, positions: torch.Tensor, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pixels in channels_last and labels; after the last one the first comes again."""
    images = load_images("digits", split, image_size=SIZE)
    images = images.subset(positions % len(images))
    assert isinstance(images.rows, torch.Tensor)
    return (images.rows.to(device) / 255).to(memory_format=torch.channels_last), images.labels.to(device)


def works_of(
    network: PixelModel, popup: EdgePopup, x: torch.Tensor, y: torch.Tensor, steps: int, right: dict[str, int]
) -> dict[str, Callable[[], None]]:
    """Return every kind of evaluation; ours write into ``right`` how many images are right at the end."""
    plainly = published.Published(network, popup).eval()
    plain, generator = x.contiguous(), torch.Generator(x.device)

    def theirs(precision: str) -> None:
        with autocast(x, precision):
            published.attacked(plainly, plain, y, LINF, steps=steps, step_size=2 / 255, generator=generator)

    def ours(keep: Literal["best", "enough"], precision: str) -> None:
        attack = partial(pgd, threat_model=LINF, steps=STEPS, keep=keep)
        with autocast(x, precision):
            right[f"{keep} {precision}"] = int(outcomes(network, [(x, y)], attack).sum())

    works: dict[str, Callable[[], None]] = {}
    for precision in PRECISIONS:
        works[f"published {precision}"] = partial(theirs, precision)
        for keep in KEEPS:
            works[f"{keep} {precision}"] = partial(ours, keep, precision)
    return works


def autocast(x: torch.Tensor, precision: str) -> AbstractContextManager[None]:
    """Return the context of a precision."""
    return torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16")


def table(seconds: dict[str, list[float]], right: dict[str, int], images: int) -> int:
    """Print what was found, ratios last; return 1 if the accuracies of "best" and "enough" differ."""
    for name, times in seconds.items():
        speed = f"{images / statistics.median(times):9.2f} images/s"
        left = f"   {100 * right[name] / images:6.2f} % right after PGD-20" if name in right else ""
        print(f"  {name:16}{statistics.median(times):9.2f} s{speed}{left}")
    print("\nRatios:")
    unequal = []
    for precision in PRECISIONS:
        best, enough = f"best {precision}", f"enough {precision}"
        for one, other in ((best, "published fp32"), (enough, "published fp32"), (enough, best)):
            print(f"  {one:12} {ratio(seconds[other], seconds[one]):5.2f} times as fast as {other}")
        unequal += [precision] if abs(right[best] - right[enough]) > 1 else []
    print(f"Accuracies differ in {' and '.join(unequal)}" if unequal else '"best" and "enough" leave equal accuracies')
    return int(bool(unequal))


if __name__ == "__main__":
    sys.exit(main())
