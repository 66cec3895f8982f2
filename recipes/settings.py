"""Settings of the recipes: one frozen dataclass each, made from a preset, a TOML file and the command line.

Later ones win: the defaults (the paper's, for CIFAR), the preset, ``--config file.toml``, the command line. The names
are the same everywhere, with ``-`` for ``_`` on the command line.
"""

import argparse
import dataclasses
import hashlib
import itertools
import json
import math
import os
import shlex
import sys
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from rst_hub.attacks.common import NORMS
from rst_hub.attacks.names import NAMES
from rst_hub.data.augment import AUGMENTATIONS
from rst_hub.errors import SettingsError, nearest
from rst_hub.masks.patterns import LAYER_RATIOS, PATTERNS, check_remaining_ratio
from rst_hub.networks.weights import DISTRIBUTIONS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

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

ADAMW_RATE = 1e-3
"""AdamW's rate unless one is given: on the digits a vit_tiny learned nothing with 0.01, and less with 0.003."""


def _setting(default: Any, text: str, choices: tuple[str, ...] | None = None) -> Any:
    return field(default=default, metadata={"help": text, "choices": choices})


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
    attack: str = _setting("pgd", "attack to train against", ("pgd", "fgsm", "fgsm-rs"))
    eps: float = _setting(8.0, "Linf budget in pixels over 255")
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
    loss: str = _setting("cross_entropy", "trades: clean, plus beta times the divergence", ("cross_entropy", "trades"))
    trades_beta: float = _setting(6.0, "weight of the divergence in trades")
    ema: float = _setting(0.0, "decay of an average of what is learned, which is measured and kept: 0.995; 0: none")
    climb: float = _setting(0.0, "share of its norm that what is learned climbs first (AWP, S2AP): 0.005; 0: none")
    compile: bool = _setting(False, "compile the network by torch.compile, for GPUs that wait for the host")
    output: str | None = _setting(None, "folder of the run; default: runs/<recipe>-<model>-<dataset>-...")
    resume: bool = _setting(False, "continue the run in --output from its last whole epoch")


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

    attack: str = _setting("pgd", "attack to train against; none: natural training", ("none", "pgd", "fgsm", "fgsm-rs"))


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


@dataclass(frozen=True)
class BenchmarkSettings(MeasureSettings):
    """Settings of benchmark.py."""

    ticket: str = _setting("", "ticket folder or org/name on the Hub; or a dense model's folder, or its name in timm")
    name: str | None = _setting(
        None, "of several tickets one, or some with commas between; some, or all without it, are one R2S"
    )
    attacks: str = _setting("pgd20,margin20,square1000", "names, with commas between: " + ", ".join(NAMES))
    eps: str = _setting("8", "budgets in pixels over 255, with commas between")
    flag_samples: int = _setting(200, "images of those to raise the honesty flags on, at the first eps; 0: no flags")


@dataclass(frozen=True)
class TransferSettings(MeasureSettings):
    """Settings of transfer.py."""

    tickets: str = _setting("", "what benchmark.py takes as --ticket, with commas between; a folder gives all of its")
    attack: str = _setting("pgd20", "what to craft the examples with")
    eps: float = _setting(8.0, "budget in pixels over 255")
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


Settings = TypeVar("Settings", bound=RunSettings | MeasureSettings | PublishSettings)


def parse(kind: type[Settings], arguments: list[str], description: str) -> Settings:
    """Return settings of ``kind`` from the command line ``arguments``.

    Raises:
        SettingsError: unknown names (the nearest right ones are said), wrong types, or values out of range: all of them
            in one message.
    """
    given, wrong = _command_line(kind, description, arguments)
    config, preset = given.pop("config", None), given.pop("preset", None)
    from_file, wrong_in_file = _read_toml(config, kind) if config else ({}, [])
    wrong += wrong_in_file
    own = {key: _at_home(key, value) for key, value in {**from_file, **given}.items()}
    if not issubclass(kind, RunSettings):
        settings = kind(**own)
        report_all([*wrong, *(_wrong_in_measure(settings) if isinstance(settings, MeasureSettings) else [])])
        return settings
    preset_in_file = own.pop("preset", None)
    preset = preset or preset_in_file or _preset_for(own.get("dataset", "digits"))
    if not isinstance(preset, str) or preset not in PRESETS:
        wrong.append(f"preset {preset!r} is not known. {nearest(str(preset), PRESETS)}")
    names = {f.name for f in dataclasses.fields(kind)}
    chosen = {key: value for key, value in PRESETS.get(str(preset), {}).items() if key in names}
    if "remaining_ratio" in own and "remaining_ratios" in own:
        wrong.append("give --remaining-ratio for one ticket or --remaining-ratios for a set, not both")
    if own.get("optimizer") == "adamw":
        chosen["lr"] = ADAMW_RATE
    run_settings = kind(**{**chosen, **own})
    report_all([*wrong, *wrong_in(run_settings)])
    return run_settings


def _preset_for(dataset: Any) -> str:
    return "digits" if dataset == "digits" else "cifar"


_PATHS = ("dataset", "output", "ticket", "tickets", "folder", "results")
"""Settings that name a place, or several with commas between."""


def _at_home(name: str, value: Any) -> Any:
    """Return a path with its home folder in place of "~", which a shell leaves alone behind "--dataset="."""
    if name not in _PATHS or not isinstance(value, str):
        return value
    return ",".join(os.path.expanduser(part) for part in value.split(","))


def report_all(wrong: Sequence[str]) -> None:
    """Raise SettingsError for all that is wrong, in one line; do nothing if nothing is."""
    if len(wrong) == 1:
        raise SettingsError(wrong[0])
    if wrong:
        numbered = "; ".join(f"({number}) {message}" for number, message in enumerate(wrong, 1))
        raise SettingsError(f"{len(wrong)} things are wrong: {numbered}")


def wrong_in(settings: RunSettings) -> list[str]:
    """Return what is wrong with values out of range, or that contradict each other."""
    wrong = []
    positive = ("steps", "epochs", "batch_size", "accumulation_steps", "holdout", "eval_batch_size", "lr")
    for name in (*positive, "max_steps", "test_samples", "image_size"):
        value = getattr(settings, name)
        if value is not None and not 0 < value < float("inf"):
            wrong.append(f"--{_dashed(name)} {value}: give a number above 0")
    for name in ("eps", "step_size", "momentum", "weight_decay", "warmup_epochs", "trades_beta", "ema", "climb"):
        value = getattr(settings, name)
        if value is not None and not 0 <= value < float("inf"):
            wrong.append(f"--{_dashed(name)} {value}: give 0 or more")
    for name in ("seed", "score_seed"):
        value = getattr(settings, name, 0)
        if not 0 <= value < 2**64:
            wrong.append(f"--{_dashed(name)} {value}: give a whole number from 0 to 2**64 - 1")
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
            settings.loss == "trades" and settings.attack in ("none", "fgsm")
        ),
        f"--warmup-epochs goes with --schedule cosine, not {settings.schedule}": (
            settings.warmup_epochs > 0 and settings.schedule != "cosine"
        ),
        f"--step-size goes with --attack pgd or fgsm-rs; {settings.attack} has no step of its own": (
            settings.step_size is not None and settings.attack in ("none", "fgsm")
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


def _wrong_in_measure(settings: MeasureSettings) -> list[str]:
    """Return what is wrong with values out of range, or what is to be measured and not given."""
    wrong = []
    for name in ("samples", "batch_size"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            wrong.append(f"--{_dashed(name)} {value}: give a number above 0")
    for name in ("seed", "flag_samples"):
        if not 0 <= getattr(settings, name, 0) < 2**64:
            wrong.append(f"--{_dashed(name)} {getattr(settings, name)}: give a whole number from 0 on")
    for name in ("ticket", "tickets", "attacks", "attack"):
        value = getattr(settings, name, "given")
        if not value.strip() or not all(part.strip() for part in value.split(",")):
            wrong.append(f"--{_dashed(name)} {value!r}: give a name, or several with commas between")
    if settings.dataset_name is not None and not settings.dataset_name.strip():
        wrong.append(f"--dataset-name {settings.dataset_name!r}: give a name")
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


def default_name(recipe: str, settings: RunSettings) -> str:
    """Return the name of a run's folder: what is read first, and a hash of all settings where those do not say all."""
    parts = [recipe, settings.model, Path(settings.dataset).resolve().name, settings.attack, f"eps{settings.eps:g}"]
    ratios = [f"{ratio:g}" for ratio in ratios_of(settings)] if isinstance(settings, SearchSettings) else []
    said: dict[str, Any] = {"model": settings.model, "attack": settings.attack, "seed": settings.seed}
    said |= {"dataset": parts[2], "eps": float(f"{settings.eps:g}")}
    if isinstance(settings, SearchSettings):
        exact = [float(ratio) for ratio in ratios]
        several = settings.remaining_ratios is not None
        said |= {"remaining_ratios": _listed(exact)} if len(exact) > 1 else {"remaining_ratio": exact[0]}
        settings = dataclasses.replace(settings, remaining_ratios=_listed(ratios_of(settings)) if several else None)
    if len("-".join([*parts, *ratios])) > 120:  # of a long list the first and the last
        ratios, said = [ratios[0], "to", ratios[-1], "of", str(len(ratios))], {}
    parts += ["r" + "-".join(ratios)] if ratios else []
    names = {f.name for f in dataclasses.fields(settings)}
    preset = {key: value for key, value in PRESETS[_preset_for(settings.dataset)].items() if key in names}
    usual = dataclasses.replace(type(settings)(), **{**preset, **said})
    return "-".join([*parts, f"s{settings.seed}", *hash_unless(settings, usual)])


def _listed(ratios: Sequence[float]) -> str:
    return ",".join(repr(ratio) for ratio in ratios)


def hash_unless(settings: Any, usual: Any) -> list[str]:
    """Return some digits of a hash of all settings but where a run lies, or nothing where they are the usual ones."""
    own, other = ({**dataclasses.asdict(each), "output": None, "resume": False} for each in (settings, usual))
    if own == other:
        return []
    return [hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:6]]


def budgets(settings: BenchmarkSettings | TransferSettings) -> list[float]:
    """Return the budgets in pixels over 255.

    Raises:
        SettingsError: one is no number, or out of range.
    """
    words = str(settings.eps).split(",")
    highest = 255 if settings.norm == "Linf" else math.inf
    try:
        values = [float(word) for word in words]
    except ValueError:
        values = [-1.0]
    if not all(0 <= value <= highest and math.isfinite(value) for value in values):
        raise SettingsError(f"--eps {settings.eps}: give budgets in pixels over 255, for Linf at most 255")
    return list(dict.fromkeys(values))


def command(recipe: str, settings: MeasureSettings) -> str:
    """Return the command line that measures this, whether it was measured at once or added to bit by bit."""
    words = []
    for f in dataclasses.fields(settings):
        value = getattr(settings, f.name)
        if value != f.default:
            words += [f"--{_dashed(f.name)}"] if value is True else [f"--{_dashed(f.name)}", str(value)]
    return repeatable(recipe, words)


def repeatable(recipe: str, arguments: Sequence[str], precision: str = "no", processes: int = 1) -> str:
    """Return a command line for others to repeat: nothing of where things lie on this machine, or are written.

    --output and --resume are left out. Of a data set's folder the last name is given, of other paths too unless they
    lead from here downwards.
    """
    launched = [] if precision == "no" else ["--mixed_precision", precision]
    launched += [] if processes == 1 else ["--num_processes", str(processes)]
    found = [*(["accelerate", "launch", *launched] if launched else []), f"recipes/{recipe}.py"]
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--") else [word])]
    for name, value in itertools.pairwise([*words, ""]):
        if name.startswith("--") and name not in ("--output", "--resume"):
            given = [] if value.startswith("--") or not value else [_placeless(value, name == "--dataset")]
            found += [name, *given]
    return shlex.join(found).encode(errors="replace").decode()  # JSON holds no half characters, of a name say


def _placeless(value: str, is_data: bool) -> str:
    """Return names with commas between, of the paths among them the last part where they lead elsewhere."""
    parts = []
    for part in value.split(","):
        path = Path(part)
        leads_away = path.is_absolute() or ".." in path.parts or part.startswith("~")
        parts.append(path.resolve().name if leads_away or (is_data and path.is_dir()) else part)
    return ",".join(parts)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"command line: {message}")


def _command_line(kind: type[Any], description: str, arguments: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Return (settings that are given and right, what is wrong with the others)."""
    parser = _Parser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--config", help="TOML file of settings, by the names below")
    if issubclass(kind, RunSettings):
        parser.add_argument("--preset", choices=tuple(PRESETS), help="default: digits for digits, else cifar")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for f in fields.values():
        shown = "" if f.default is None else f" ({f.default})"
        options: dict[str, Any] = {"help": f.metadata["help"] + shown, "dest": f.name}
        if _type_of(kind, f.name) is bool:
            options["action"] = "store_true"
        elif f.metadata["choices"]:
            options["metavar"] = "{" + ",".join(f.metadata["choices"]) + "}"
        parser.add_argument(f"--{_dashed(f.name)}", **options)
    known, unknown = parser.parse_known_args(arguments)
    names = [option for action in parser._actions for option in action.option_strings]
    stray = [word for before, word in zip(["", *unknown], unknown, strict=False) if not _is_value(before, word)]
    wrong = [f"command line: {word!r} is not known. {nearest(word.split('=')[0], names)}" for word in stray]
    given = vars(known)
    for name in [name for name in given if name in fields]:
        try:
            given[name] = _converted(given[name], _type_of(kind, name), fields[name].metadata["choices"])
        except ValueError as error:
            wrong.append(f"command line: argument --{_dashed(name)}: {error}")
            del given[name]
    return given, wrong


def _is_value(before: str, word: str) -> bool:
    """Say whether a word that argparse leaves over is the value of the unknown option in front of it."""
    return before.startswith("--") and "=" not in before and not word.startswith("--")


def _converted(value: Any, wanted: type, choices: Sequence[str] | None) -> Any:
    """Return a word of the command line as what it must be; raise ValueError if it is not."""
    if choices and value not in choices:
        raise ValueError(f"invalid choice: {value!r}; choose from {', '.join(choices)}")
    if wanted is bool:
        return value
    try:
        return wanted(value)
    except ValueError:
        raise ValueError(f"invalid {wanted.__name__} value: {value!r}") from None


def _read_toml(path: str, kind: type[Any]) -> tuple[dict[str, Any], list[str]]:
    """Return (settings that are right, what is wrong with the others) of a file."""
    try:  # with or without the mark that editors on Windows put first
        values = tomllib.loads(Path(os.path.expanduser(path)).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read as TOML: {error}") from error
    fields, right, wrong = {f.name: f for f in dataclasses.fields(kind)}, {}, []
    for name, value in values.items():
        if name == "preset" and issubclass(kind, RunSettings):
            right[name] = value
            continue
        if name not in fields:
            wrong.append(f"{path}: {name!r} is not known. {nearest(name, fields)}")
            continue
        wanted, choices = _type_of(kind, name), fields[name].metadata["choices"]
        if wanted is float and type(value) is int and abs(value) < 2**53:
            value = float(value)
        if type(value) is not wanted or (choices and value not in choices):
            expected = f"one of {', '.join(choices)}" if choices else f"of type {wanted.__name__}"
            wrong.append(f"{path}: {name} = {value!r} must be {expected}")
        else:
            right[name] = value
    return right, wrong


def _type_of(kind: type[Any], name: str) -> type:
    hint = typing.get_type_hints(kind)[name]
    if isinstance(hint, types.UnionType):
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    return hint


def _dashed(name: str) -> str:
    return name.replace("_", "-")
