"""Settings of the recipes: one frozen dataclass each, made from a preset, a TOML file and the command line.

Later ones win: the defaults (the paper's, for CIFAR), the preset, ``--config file.toml``, the command line. The names
are the same everywhere, with ``-`` for ``_`` on the command line.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from ..choices import (
    AUGMENTATIONS,
    DISTRIBUTIONS,
    LAYER_RATIOS,
    NAMES,
    NORMS,
    PATTERNS,
    check_remaining_ratio,
)
from ..errors import SettingsError, nearest
from ..spelling import advice, over_255, spelled, spelled_attack, spelled_budget

PRESETS: dict[str, dict[str, Any]] = {
    # The paper, section 4.1 and appendix B: the defaults of RunSettings.
    "cifar": {},
    # The paper's ImageNet settings; momentum, weight decay and warm-up as in its published configuration.
    "imagenet": {
        "model": "resnet50",
        "image_size": 224,
        "augment": "imagenet",
        "attack": "fgsm-rs",
        "eps": 4.0,
        "epochs": 100,
        "lr": 0.256,
        "schedule": "cosine",
        "warmup_epochs": 5,
        "momentum": 0.875,
        "weight_decay": 3.05e-5,
    },
    # Minutes on two cores: ours, chosen on the held-out digits.
    "digits": {
        "model": "resnet10t",
        "augment": "none",
        "holdout": 200,
        "attack": "fgsm-rs",
        "epochs": 12,
        "batch_size": 128,
        "schedule": "cosine",
        "remaining_ratio": 0.1,
    },
}

_TINY = 0.1
"""A budget below that many pixels over 255 is nobody's: 0.0314 is 8/255 on pixels from 0 to 1."""

ADAMW_RATE = 1e-3
"""AdamW's rate unless one is given: on the digits a vit_tiny learned nothing with 0.01, and less with 0.003."""


def _setting(default: Any, text: str, choices: tuple[str, ...] | None = None, *, own: bool = False) -> Any:
    """Return a field; ``own`` says that "module:function" is taken too, see :mod:`rst_hub.runs.own`."""
    return field(default=default, metadata={"help": text, "choices": choices, "own": own})


def is_own(word: str) -> bool:
    """Say whether a name is that of a user's own function, "module:function" or "my_attack.py:function"."""
    return ":" in word


def own_name(word: str) -> str:
    """Return such a name without the folder that its file lies in; another name as it is."""
    return re.split(r"[\\/]", word)[-1] if is_own(word) else word


def _spell(settings: Any) -> None:
    """Give names and budgets of settings, wherever they come from, the one spelling that is recorded."""
    for f in fields(settings):
        value = getattr(settings, f.name)
        if isinstance(value, str) and f.metadata["choices"]:
            object.__setattr__(settings, f.name, spelled(value, f.metadata["choices"]))
        elif isinstance(value, str) and f.name in ("attack", "attacks", "eps"):
            words = [spelled_budget(w) if f.name == "eps" else spelled_attack(w, NAMES) for w in value.split(",")]
            object.__setattr__(settings, f.name, ",".join(words))


@dataclass(frozen=True)
class RunSettings:
    """What a search and the training of a dense baseline have in common. The defaults are the paper's for CIFAR."""

    model: str = _setting("preact_resnet18", "architecture, by its timm name")
    dataset: str = _setting("digits", "'digits', a folder, or a data set name on the Hub")
    dataset_name: str | None = _setting(None, "what the data set is called beside numbers; default: its folder's name")
    image_size: int | None = _setting(
        None, "side of the square images; default: as they are, or what fits most of them"
    )
    image_column: str | None = _setting(None, "image column, where the data set has several")
    label_column: str | None = _setting(None, "label column, where the data set has several")
    skip_broken: bool = _setting(False, "leave out images that cannot be decoded, and list them")
    augment: str = _setting("cifar", "augmentation of the training images", AUGMENTATIONS)
    holdout: int = _setting(
        1000, "training images held out to choose the best epoch; the default gives way to few images"
    )
    attack: str = _setting("pgd", "attack to train against, or module:function", ("pgd", "fgsm", "fgsm-rs"), own=True)
    eps: float = _setting(8.0, "Linf budget in pixels over 255: 8, or 8/255")
    step_size: float | None = _setting(None, "attack step in pixels over 255; default: 2 for pgd, 1.25 eps for fgsm-rs")
    steps: int = _setting(7, "attack steps of pgd")
    epochs: int = _setting(160, "passes over the training images")
    max_steps: int | None = _setting(None, "stop after so many optimizer steps, for a trial")
    batch_size: int = _setting(256, "images an optimizer step, over all processes and accumulation steps; so does it")
    accumulation_steps: int = _setting(1, "parts that each process takes its share of a batch in")
    optimizer: str = _setting("sgd", "adamw suits transformers, mixers and ConvNeXts", ("sgd", "adamw"))
    lr: float = _setting(0.1, "learning rate; 0.001 with adamw")
    schedule: str = _setting("step", "step: a tenth at 50 and 75%% of the epochs", ("step", "cosine", "constant"))
    warmup_epochs: int = _setting(0, "epochs of linear warm-up before a cosine schedule")
    momentum: float = _setting(0.9, "momentum of SGD, beta1 of AdamW")
    weight_decay: float = _setting(5e-4, "weight decay of the optimizer")
    eval_batch_size: int = _setting(100, "images a batch in evaluation")
    test_samples: int | None = _setting(None, "test images to measure on; default: all")
    seed: int = _setting(0, "of the random network, the data order and the attacks")
    loss: str = _setting(
        "cross_entropy",
        "trades: clean, plus beta times the divergence; or module:function",
        ("cross_entropy", "trades"),
        own=True,
    )
    trades_beta: float = _setting(6.0, "weight of the divergence in trades")
    ema: float = _setting(0.0, "decay of an average of what is learned, which is measured and kept: 0.995; 0: none")
    climb: float = _setting(0.0, "share of its norm that what is learned climbs first (AWP, S2AP): 0.005; 0: none")
    compile: bool = _setting(False, "compile the network by torch.compile, for GPUs that wait for the host")
    output: str | None = _setting(None, "folder of the run; default: runs/<recipe>-<model>-<dataset>-...")
    resume: bool = _setting(False, "continue the run in --output from its last whole epoch")

    def __post_init__(self) -> None:
        """Spell names as they are recorded."""
        _spell(self)


@dataclass(frozen=True)
class SearchSettings(RunSettings):
    """Settings of a search for a robust scratch ticket."""

    remaining_ratio: float = _setting(0.05, "share of the weights that the ticket keeps")
    remaining_ratios: str | None = _setting(None, "several such shares, with commas between: a set of tickets")
    distribution: str = _setting("signed_kaiming_constant", "of the random weights", DISTRIBUTIONS)
    layer_ratios: str = _setting("uniform", "erk: small layers keep more (Erdos-Renyi kernel)", LAYER_RATIOS)
    pattern: str = _setting("element", "what is kept or removed as one", PATTERNS)
    score_seed: int = _setting(0, "of the initial scores")


@dataclass(frozen=True)
class TrainSettings(RunSettings):
    """Settings of the training of a dense baseline."""

    attack: str = _setting(
        "pgd",
        "attack to train against, or module:function; none: natural training",
        ("none", "pgd", "fgsm", "fgsm-rs"),
        own=True,
    )


@dataclass(frozen=True)
class MeasureSettings:
    """What benchmark.py and transfer.py have in common."""

    dataset: str | None = _setting(None, "'digits', a folder, or a name on the Hub; default: the ticket's own")
    dataset_name: str | None = _setting(None, "what the data set is called beside numbers; default: its folder's name")
    image_column: str | None = _setting(None, "image column, where the data set has several")
    label_column: str | None = _setting(None, "label column, where the data set has several")
    skip_broken: bool = _setting(False, "leave out images that cannot be decoded, and list them")
    samples: int | None = _setting(None, "test images, chosen at random, the same each time; default: all")
    norm: str = _setting("Linf", "norm of the budget", NORMS)
    batch_size: int = _setting(100, "images a batch")
    seed: int = _setting(0, "of the attacks")
    output: str | None = _setting(None, "folder of the result; default: runs/<recipe>-<what>-<data set>-...")
    resume: bool = _setting(False, "continue in --output; attacks and budgets may be added")

    def __post_init__(self) -> None:
        """Spell names and budgets as they are recorded."""
        _spell(self)


@dataclass(frozen=True)
class BenchmarkSettings(MeasureSettings):
    """Settings of benchmark.py."""

    ticket: str = _setting("", "ticket folder or org/name on the Hub; or a dense model's folder, or its name in timm")
    name: str | None = _setting(
        None, "of several tickets one, or some with commas between; some, or all without it, are one R2S"
    )
    attacks: str = _setting(
        "pgd20,margin20,square1000", "names or module:function, with commas between: " + ", ".join(NAMES)
    )
    eps: str = _setting("8", "budgets in pixels over 255, with commas between: 8,12 or 8/255,12/255")
    flag_samples: int = _setting(200, "images of those to raise the honesty flags on, at the first eps; 0: no flags")


@dataclass(frozen=True)
class TransferSettings(MeasureSettings):
    """Settings of transfer.py."""

    tickets: str = _setting("", "what benchmark.py takes as --ticket, with commas between; a folder gives all of its")
    attack: str = _setting("pgd20", "what to craft the examples with, one of benchmark.py's --attacks")
    eps: float = _setting(8.0, "budget in pixels over 255: 8, or 8/255")
    paper_protocol: bool = _setting(False, "measure again with each sample stopped once it fools the network it is for")


@dataclass(frozen=True)
class PublishSettings:
    """Settings of publish.py."""

    folder: str = _setting("", "folder to publish, made or added to; model_cards/<repository's name> by custom")
    tickets: str | None = _setting(None, "ticket folders to take in, of one random network, with commas between")
    results: str | None = _setting(None, "results.json and transfer.json files to take in, with commas between")
    license: str | None = _setting(None, "of the tickets, by the Hub's name of it: apache-2.0")
    dataset_id: str | None = _setting(None, "the data set's name on the Hub: org/name")
    dataset_note: str | None = _setting(None, "what stands beside every number: in what the data differ from the set")
    base_model: str | None = _setting(None, "the checkpoint on the Hub that the weights come from, where one was used")
    note: str | None = _setting(None, "a paragraph for the card")
    repo: str | None = _setting(None, "org/name on the Hub; without it the folder is only written")
    private: bool = _setting(False, "make the repository private")
    revision: str | None = _setting(None, "the branch; default: main")
    create_pr: bool = _setting(False, "open a pull request instead")
    message: str | None = _setting(None, "of the commit")
    replace: bool = _setting(False, "allow tickets there to be deleted or changed")
    dry_run: bool = _setting(False, "check all, compare with the Hub, print, send nothing")


_GROUPS = {
    "data": "dataset dataset_name image_size image_column label_column skip_broken augment holdout samples "
    "test_samples",
    "network or ticket": "model ticket tickets name",
    "ticket to search": "remaining_ratio remaining_ratios distribution layer_ratios pattern score_seed",
    "attack": "attack attacks norm eps step_size steps paper_protocol flag_samples",
    "optimisation": "epochs batch_size accumulation_steps optimizer lr schedule warmup_epochs momentum weight_decay "
    "loss trades_beta ema climb",
    "run": "output resume seed max_steps eval_batch_size compile",
    "publishing": "folder results license dataset_id dataset_note base_model note repo private revision create_pr "
    "message replace dry_run",
}
GROUPS = {title: names.split() for title, names in _GROUPS.items()}
"""The settings as ``--help`` has them; each is in one group."""

AnyRun = TypeVar("AnyRun", bound=RunSettings)
Settings = TypeVar("Settings", bound=RunSettings | MeasureSettings | PublishSettings)


def preset_for(dataset: Any) -> str:
    """Return the preset of a data set for which none is given."""
    return "digits" if dataset == "digits" else "cifar"


def preset(kind: type[AnyRun], name: str, **given: Any) -> AnyRun:
    """Return settings of a search or training that has a preset's values but for those that are given.

    Args:
        kind: SearchSettings or TrainSettings.
        name: "cifar", "imagenet" or "digits": what ``--preset`` takes.
        given: settings by their names.

    Raises:
        SettingsError: there is no such preset, or no setting of such a name.
    """
    if not isinstance(name, str) or name not in PRESETS:
        raise SettingsError(f"preset {name!r} is not known. {nearest(str(name), PRESETS)}")
    names = {f.name for f in fields(kind)}
    for unknown in given.keys() - names:
        raise SettingsError(f"{unknown!r} is no setting of {kind.__name__}. {nearest(unknown, names)}")
    chosen = {key: value for key, value in PRESETS[name].items() if key in names}
    if given.get("optimizer") == "adamw":
        chosen["lr"] = ADAMW_RATE
    return kind(**{**chosen, **given})


def report_all(wrong: Sequence[str]) -> None:
    """Raise SettingsError for all that is wrong, in one line; do nothing if nothing is."""
    if len(wrong) == 1:
        raise SettingsError(wrong[0])
    if wrong:
        numbered = "; ".join(f"({number}) {message}" for number, message in enumerate(wrong, 1))
        raise SettingsError(f"{len(wrong)} things are wrong: {numbered}")


def _wrong_names(settings: Any) -> list[str]:
    """Return what is wrong with names of which there is a list; settings made in Python come without a parser."""
    owned = {f.name: f.metadata["own"] for f in fields(settings)}
    listed = {f.name: f.metadata["choices"] for f in fields(settings) if f.metadata["choices"]}
    return [
        f"--{dashed(name)} {getattr(settings, name)!r}: choose from {', '.join(choices)}"
        for name, choices in listed.items()
        if getattr(settings, name) not in choices and not (owned[name] and is_own(getattr(settings, name)))
    ]


def wrong_in(settings: RunSettings) -> list[str]:
    """Return what is wrong with values out of range, or that contradict each other."""
    wrong = _wrong_names(settings)
    wrong += [f"--eps {advice(settings.eps)}"] if 0 < settings.eps < _TINY else []
    positive = ("steps", "epochs", "batch_size", "accumulation_steps", "holdout", "eval_batch_size", "lr")
    for name in (*positive, "max_steps", "test_samples", "image_size"):
        value = getattr(settings, name)
        if value is not None and not 0 < value < float("inf"):
            wrong.append(f"--{dashed(name)} {value}: give a number above 0")
    for name in ("eps", "step_size", "momentum", "weight_decay", "warmup_epochs", "trades_beta", "ema", "climb"):
        value = getattr(settings, name)
        if value is not None and not 0 <= value < float("inf"):
            wrong.append(f"--{dashed(name)} {value}: give 0 or more")
    for name in ("seed", "score_seed"):
        value = getattr(settings, name, 0)
        if not 0 <= value < 2**64:
            wrong.append(f"--{dashed(name)} {value}: give a whole number from 0 to 2**64 - 1")
    if settings.dataset_name is not None and not settings.dataset_name.strip():
        wrong.append(f"--dataset-name {settings.dataset_name!r}: give a name")
    if isinstance(settings, SearchSettings):
        try:
            ratios_of(settings)
        except SettingsError as error:
            wrong.append(str(error))
    contradictions = {
        f"--eps {settings.eps}: give a budget in pixels over 255, at most 255": settings.eps > 255,
        f"--momentum {settings.momentum}: give a share below 1": settings.momentum >= 1,
        f"--ema {settings.ema}: give a decay below 1": settings.ema >= 1,
        f"--climb {settings.climb}: give a share below 1": settings.climb >= 1,
        f"--trades-beta {settings.trades_beta} goes with --loss trades": (
            settings.trades_beta != RunSettings.trades_beta and settings.loss != "trades"
        ),
        "--climb goes with one accumulation step, since it moves once a batch": (
            settings.climb > 0 and settings.accumulation_steps > 1
        ),
        f"--loss trades goes with --attack pgd or fgsm-rs, not {settings.attack}": (
            settings.loss == "trades" and (settings.attack in ("none", "fgsm") or is_own(settings.attack))
        ),
        f"--warmup-epochs goes with --schedule cosine, not {settings.schedule}": (
            settings.warmup_epochs > 0 and settings.schedule != "cosine"
        ),
        f"--step-size goes with --attack pgd or fgsm-rs; {settings.attack} has no step of its own": (
            settings.step_size is not None and (settings.attack in ("none", "fgsm") or is_own(settings.attack))
        ),
    }
    return wrong + [message for message, applies in contradictions.items() if applies]


def ratios_of(settings: SearchSettings) -> list[float]:
    """Return the remaining ratios of the tickets to search: one, or those of a set.

    Raises:
        SettingsError: one is no number, out of range, or given twice (to six digits, which make a ticket's name).
    """
    text = settings.remaining_ratios
    try:
        ratios = [settings.remaining_ratio] if text is None else [float(word) for word in text.split(",")]
    except ValueError:
        said = f"--remaining-ratios {text!r}: give shares of weights to keep, with commas between: 0.05,0.1,0.3"
        raise SettingsError(said) from None
    for ratio in ratios:
        check_remaining_ratio(ratio)
    names = [f"{ratio:g}" for ratio in ratios]
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise SettingsError(f"--remaining-ratios {text}: {twice[0]} is there twice, and a set has a ticket for each")
    return ratios


def wrong_in_measure(settings: MeasureSettings) -> list[str]:
    """Return what is wrong with values out of range, or what is to be measured and not given."""
    wrong = _wrong_names(settings)
    eps = getattr(settings, "eps", None)
    wrong += [f"--eps {advice(eps)}"] if isinstance(eps, float) and 0 < eps < _TINY else []
    for name in ("samples", "batch_size"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            wrong.append(f"--{dashed(name)} {value}: give a number above 0")
    for name in ("seed", "flag_samples"):
        if not 0 <= getattr(settings, name, 0) < 2**64:
            wrong.append(f"--{dashed(name)} {getattr(settings, name)}: give a whole number from 0 on")
    for name in ("ticket", "tickets", "attacks", "attack"):
        value = getattr(settings, name, "given")
        if not value.strip() or not all(part.strip() for part in value.split(",")):
            wrong.append(f"--{dashed(name)} {value!r}: give a name, or several with commas between")
    if settings.dataset_name is not None and not settings.dataset_name.strip():
        wrong.append(f"--dataset-name {settings.dataset_name!r}: give a name")
    if isinstance(settings, BenchmarkSettings | TransferSettings):
        try:
            budgets(settings)
        except SettingsError as error:
            wrong.append(str(error))
    return wrong


def learning_rate(settings: RunSettings, epoch: int) -> float:
    """Return the rate of an epoch, counted from 0: constant in it, as in the paper's code."""
    if settings.schedule == "constant":
        return settings.lr
    if settings.schedule == "step":
        return settings.lr * 0.1 ** sum(epoch >= share * settings.epochs for share in (0.5, 0.75))
    if epoch < settings.warmup_epochs:
        return settings.lr * (epoch + 1) / settings.warmup_epochs
    done = (epoch - settings.warmup_epochs) / max(1, settings.epochs - settings.warmup_epochs)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * done))


def budgets(settings: BenchmarkSettings | TransferSettings) -> list[float]:
    """Return the budgets in pixels over 255.

    Raises:
        SettingsError: one is no number, or out of range.
    """
    highest = 255 if settings.norm == "Linf" else math.inf
    why = ""
    try:
        values = [over_255(w) for w in settings.eps.split(",")] if isinstance(settings.eps, str) else [settings.eps]
    except ValueError as error:
        values, why = [-1.0], "" if "could not convert" in str(error) else f"; {error}"
    if not all(0 <= value <= highest and math.isfinite(value) for value in values):
        raise SettingsError(f"--eps {settings.eps}: give budgets in pixels over 255, for Linf at most 255{why}")
    return list(dict.fromkeys(values))


def dashed(name: str) -> str:
    """Return a setting's name as the command line has it."""
    return name.replace("_", "-")
