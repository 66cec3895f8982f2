"""How small a ticket is: its masks beside the Shannon bound, its folder beside the dense network.

    python benchmarks/size.py                  tickets of random scores; then searched ones, and what a code could save
    python benchmarks/size.py --run runs/x     what a code could save on a search's masks, after its last whole epoch
    python benchmarks/size.py --run runs/x --checkpoints a.pt b.pt     ... and after earlier ones, whose files were kept

The bound is the sum over tensors of log2 C(n, k): what a code takes that knows nothing of a mask but how many of its n
weights are kept. A folder is config.json and one ticket, without provenance and card; the dense network is its state
dict in float32, as safetensors writes it. Batch-norm statistics are random, because equal ones would be stored as one.

What a code could save: the lengths of codes that know more, as shares of the bound. Each sorts a tensor's weights into
groups, says how many of each are kept (every possibility as likely), then which of each; or does without, and says so.
Groups are made of what costs no bytes: initial scores, which a seed makes (ordered by size, cut in equal parts), also
together with the next sparser ticket of the folder, signs of the random weights, positions in the kernel, channels.
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import undescribed

from rst_hub import EdgePopup, Init, Ticket, create_model
from rst_hub.console import print_anything
from rst_hub.masks.patterns import kept_counts, top_k_mask
from rst_hub.networks.weights import SeededTensor, uniform
from rst_hub.tickets.ticket import ticket_names

MODELS = ("resnet18", "resnet50", "resnet101", "wide_resnet34_10", "vit_small_patch16_224")
RATIOS = (0.01, 0.05, 0.1, 0.2, 0.3, 0.5)
OF_BOUND = {0.05: 1.06, 0.1: 1.02, 0.2: 1.02, 0.3: 1.02, 0.5: 1.02}
"""At most so many times the bound, by the ratio kept; below 5% there is no limit."""
TIMES_SMALLER = {("resnet101", 0.05): 80, ("resnet101", 0.1): 55}
"""At least so many times smaller than the dense network."""
SEARCHED = Path(__file__).parents[1] / "model_cards" / "rst-r2s-resnet10t-digits"
PARTS = (4, 16, 64, 256)
"""Into how many parts the initial scores of a tensor may be cut."""


@dataclass(frozen=True)
class Size:
    """What a ticket's folder takes, in bytes; ``bound`` is the Shannon bound of its masks, not rounded.

    ``masks`` are codes with their headers, ``mask_heads``, of ten bytes each; ``rest`` is what is stored besides, most
    of it batch-norm statistics; ``file_head`` is the safetensors file's: its tensors' names, shapes and offsets.
    """

    bound: float
    masks: int
    mask_heads: int
    rest: int
    file_head: int
    config: int
    dense: int

    @property
    def folder(self) -> int:
        """All that a load reads."""
        return self.masks + self.rest + self.file_head + self.config

    @property
    def of_bound(self) -> float:
        """How many times the bound the masks take, with their headers."""
        return self.masks / self.bound

    @property
    def smaller(self) -> float:
        """How many times smaller the folder is than the dense network."""
        return self.dense / self.folder


def main() -> int:
    """Print the tables, or those of a run; return 1 if a limit is missed."""
    print_anything()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, help="names of timm")
    parser.add_argument("--run", type=Path, help="the folder of one search, under way or ended")
    parser.add_argument("--checkpoints", nargs="+", type=Path, help="copies of its checkpoint.pt; default: its own")
    arguments = parser.parse_args()
    if arguments.run:
        show_run(arguments.run, arguments.checkpoints or [arguments.run / "checkpoint.pt"])
        return 0
    found = show_sizes(arguments.models)
    show_searched(SEARCHED)
    return int(missed(found))


def show_sizes(models: Sequence[str]) -> dict[tuple[str, float], Size]:
    """Print and return what a ticket of each model and ratio takes."""
    columns = ("masks", "of bound", "mask heads", "rest", "file head", "config", "folder", "dense", "smaller")
    print(f"{'ticket of random scores, bytes':30}" + "".join(f"{column:>12}" for column in columns))
    found = {}
    for architecture in models:
        for ratio in RATIOS:
            with tempfile.TemporaryDirectory() as scratch:
                size = measured(random_ticket(architecture, ratio).save(Path(scratch) / "ticket"))
            cells = (size.mask_heads, size.rest, size.file_head, size.config, size.folder, size.dense)
            numbers = "".join(f"{number:12,}" for number in cells)
            print(f"{architecture:24}{ratio:6}{size.masks:12,}{size.of_bound:12.4f}{numbers}{size.smaller:12.1f}")
            found[architecture, ratio] = size
    return found


def random_ticket(architecture: str, ratio: float) -> Ticket:
    """Return a ticket of initial scores: to the masks' codes, all choices of so many weights are alike."""
    model = create_model(architecture, Init(0))
    generator = torch.Generator().manual_seed(0)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(torch.rand(buffer.shape, generator=generator))
    return undescribed.draw(EdgePopup(model, Init(0), ratio))


def measured(folder: Path, name: str | None = None) -> Size:
    """Return what a saved ticket takes, from its files."""
    ticket = Ticket.load(folder, name)
    content = (folder / ticket.file).read_bytes()
    stored = {key: tensor.nbytes for key, tensor in safetensors.torch.load(content).items()}
    masks = sum(size for key, size in stored.items() if key.startswith("mask."))
    return Size(
        bound=sum(shannon(mask) for mask in ticket.masks.values()) / 8,
        masks=masks,
        mask_heads=10 * len(ticket.masks),
        rest=sum(stored.values()) - masks,
        file_head=len(content) - sum(stored.values()),
        config=(folder / "config.json").stat().st_size,
        dense=len(safetensors.torch.save(ticket.state_dict())),
    )


def missed(found: Mapping[tuple[str, float], Size]) -> bool:
    """Print the limits beside what was found, and return whether one is missed."""
    print("\nlimits")
    failed = []
    for ratio in sorted({ratio for _, ratio in found} & set(OF_BOUND)):
        limit = OF_BOUND[ratio]
        worst, of = max((size.of_bound, of) for of, size in found.items() if of[1] == ratio)
        failed.append(worst > limit)
        said = " MISSED" * failed[-1]
        print(f"  masks at {ratio:g}: at most {worst:.4f} times the bound ({of[0]}), limit {limit}{said}")
    for of, limit in TIMES_SMALLER.items():
        if of in found:
            failed.append(found[of].smaller < limit)
            said = " MISSED" * failed[-1]
            print(f"  {of[0]} at {of[1]:g}: {found[of].smaller:.1f} times smaller than dense, limit {limit}{said}")
    return any(failed)


def show_searched(folder: Path) -> None:
    """Print what a code could save on the masks of a folder of searched tickets, the sparsest first."""
    tickets = sorted((Ticket.load(folder, name) for name in ticket_names(folder)), key=lambda one: one.remaining_ratio)
    rows: dict[str, dict[str, float]] = {}
    sparser = None
    for ticket in tickets:
        steps, seed = ticket.provenance["optimizer_steps"], ticket.provenance["settings"]["score_seed"]
        found = shares(ticket.masks, ticket.init, seed, sparser)
        rows[f"{ticket.remaining_ratio:g} kept, {steps} steps"] = {
            "as stored": measured(folder, ticket.name).of_bound,
            **found,
        }
        sparser = ticket.masks
    show_shares(f"searched {tickets[0].architecture}, {folder.name}", rows)


def show_run(folder: Path, checkpoints: Sequence[Path]) -> None:
    """Print what a code could save on the masks of a search, after the last checkpoint also tensor by tensor.

    "decayed to" is what weight decay alone has left of the initial scores. Scores that no gradient reaches, as those of
    kernel positions that only ever see padding, decay alike: they lose to all others, but keep their order.
    """
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))["settings"]
    init, rows = Init(settings["seed"], settings["distribution"]), {}
    for checkpoint in checkpoints:
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        metrics = saved["metrics"]
        label = f"epoch {metrics[-1]['epoch']}, {metrics[-1]['steps']:,} steps"
        left = {"decayed to": decayed(settings, metrics)} if settings["optimizer"] == "sgd" else {}
        scores = saved.get("average") or of_scores(saved["state"])
        masks = searched_masks(scores, settings["remaining_ratio"], settings.get("layer_ratios", "uniform"))
        rows[label] = {**left, **shares(masks, init, settings["score_seed"])}
    rows |= {f"  {name}": shares({name: mask}, init, settings["score_seed"]) for name, mask in masks.items()}
    show_shares(f"search of {settings['model']}, {settings['remaining_ratio']:g} kept, {folder.name}", rows)


def show_shares(title: str, rows: Mapping[str, Mapping[str, float]]) -> None:
    """Print rows of shares of the bound, empty where a row has no such column."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    width = max(map(len, (*rows, "a code that knows the")))
    print(f"\n{title}\n{'a code that knows the':{width}}" + "".join(f"{column:>17}" for column in columns))
    for label, row in rows.items():
        print(f"{label:{width}}" + "".join(f"{row[c]:17.4f}" if c in row else " " * 17 for c in columns).rstrip())


def of_scores(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the scores in a checkpoint's state, by weight name."""
    return {key.removeprefix("learned."): value for key, value in state.items() if key.startswith("learned.")}


def searched_masks(scores: Mapping[str, torch.Tensor], ratio: float, layer_ratios: str) -> dict[str, torch.Tensor]:
    """Return the masks, by weight name, that scores choose."""
    kept = kept_counts({name: tuple(values.shape) for name, values in scores.items()}, ratio, layer_ratios)
    return {name: top_k_mask(values, kept[name]) for name, values in scores.items()}


def decayed(settings: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> float:
    """Return to what share of its size weight decay alone brings a score by SGD: exp(-rate decay steps / (1 - m))."""
    ends = [0, *(record["steps"] for record in metrics)]
    travelled = sum(record["lr"] * (record["steps"] - begun) for record, begun in zip(metrics, ends[:-1], strict=True))
    return math.exp(-travelled * settings["weight_decay"] / (1 - settings["momentum"]))


def shares(
    masks: Mapping[str, torch.Tensor],
    init: Init,
    score_seed: int,
    sparser: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, float]:
    """Return, by what a code knows, its length for all masks as a share of the Shannon bound.

    Args:
        masks: bool tensors by weight name.
        init: what makes the random weights.
        score_seed: the seed of the scores that the search began with.
        sparser: the masks of a sparser ticket of the same network.
    """
    bits: dict[str, float] = {}
    for name, mask in masks.items():
        known = groupings(name, mask, init, score_seed)
        if sparser is not None:
            below = sparser[name].reshape(-1).long()
            known["and the sparser"] = [2 * groups + below for groups in known["initial scores"]]
        for what, alternatives in known.items():
            bits[what] = bits.get(what, 0.0) + shortest(mask, alternatives)
    bound = sum(shannon(mask) for mask in masks.values())
    return {what: length / bound for what, length in bits.items()}


def groupings(name: str, mask: torch.Tensor, init: Init, score_seed: int) -> dict[str, list[torch.Tensor]]:
    """Return, by what is known, ways to sort a weight's elements into groups: int64 numbers in row-major order."""
    shape, size = tuple(mask.shape), mask.numel()
    kernel = math.prod(shape[2:])
    scores = uniform("scores", score_seed, name, shape, 1.0)  # any bound gives the same order
    weights = init.tensor(SeededTensor(name, shape, 1.0, masked=True))
    index, rank = torch.arange(size), torch.empty(size, dtype=torch.int64)
    rank[scores.abs().reshape(-1).argsort(stable=True)] = index
    return {
        "initial scores": [rank * parts // size for parts in PARTS],
        "weights' signs": [(weights.reshape(-1) > 0).long()],
        "kernel position": [index % kernel],
        "output channel": [index // math.prod(shape[1:])],
        "input channel": [index // kernel % shape[1]],
    }


def shortest(mask: torch.Tensor, alternatives: Sequence[torch.Tensor]) -> float:
    """Return the bits of the shortest code that knows one of these groupings, or none, and says which."""
    lengths = [shannon(mask), *(code_length(mask, groups) for groups in alternatives)]
    return min(lengths) + math.log2(len(lengths))


def code_length(mask: torch.Tensor, groups: torch.Tensor) -> float:
    """Return the bits of a code of a mask with k ones that knows to which of G groups each element belongs.

    That is log2 C(k + G - 1, G - 1) for the ones in every group, and log2 C(n, k) in each.
    """
    sizes = torch.bincount(groups)
    kept = torch.bincount(groups, mask.reshape(-1).double(), len(sizes))
    counts = log2_choose(kept.sum() + len(sizes) - 1, torch.tensor(len(sizes) - 1))
    return float(log2_choose(sizes, kept).sum() + counts)


def shannon(mask: torch.Tensor) -> float:
    """Return log2 C(n, k), in bits."""
    return float(log2_choose(torch.tensor(mask.numel()), mask.sum()))


def log2_choose(n: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Return log2 C(n, k), element by element, as float64."""
    n, k = n.double(), k.double()
    return (torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)) / math.log(2)


if __name__ == "__main__":
    sys.exit(main())
