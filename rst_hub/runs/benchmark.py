"""Measure a ticket, an R2S or a dense model under attack: one JSON, with all that its numbers must carry.

The run's folder holds ``results.json``, ``settings.json`` and ``journal/``, which ``--resume`` continues from. A folder
of several tickets is measured as an R2S (switched.py): accuracies are the exact expectation over its members. The
adaptive attacks, by one who knows them all, are made whether asked for or not; PGD-20 is crafted on their ensemble too,
and on each member, in full and stopped early, for the paper's protocol of an attacker who draws one.
"""

import functools

from .commands import leave, run_recipe

if __name__ == "__main__":
    leave("benchmark")  # which imports this file under its own name, once the settings are right

import hashlib
import json
import logging
import re
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

from ..attacks.autoattack import require
from ..attacks.common import ThreatModel
from ..attacks.names import ADAPTIVE, NamedAttack, named_attack
from ..data.images import Images, name_of
from ..data.images import fingerprint as fingerprint_of_images
from ..errors import SettingsError
from ..evaluation.accuracy import Outcomes, evaluate, interval, join, percent, read_journal, worst_case
from ..evaluation.sanity import inspect_model, judge, probes
from ..files import append_line, write_json
from .folder import WHERE_DATA_LIE, check_output, has_data, make_folder, to_resume
from .found import Found
from .guard import claim, letting_go
from .naming import command, hash_unless
from .own import load_own, own_attack
from .parsing import checked
from .run import share
from .settings import BenchmarkSettings, budgets, is_own
from .switched import Crafting, drawn, judges_of, of_judges, on_all, on_each, on_ensemble, worst_of
from .switched import in_words as compared_in_words
from .targets import (
    Victim,
    accuracy,
    batches_of,
    circumstances,
    decoded,
    encoded,
    fingerprint,
    load_test_images,
    load_victim,
    place,
    several_processes,
)

FREE_ON_RESUME = ("resume", "output", "attacks", "eps", "flag_samples")


@dataclass(frozen=True)
class Bench:
    """One network to measure, by which processes; and the folder of journals, which is that network's and data's."""

    settings: BenchmarkSettings
    accelerator: Accelerator
    victim: Victim
    journal: Path

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return int(self.victim.input_cfg["input_size"][-1])

    def say(self, text: str) -> None:
        """Print on the main process."""
        if self.accelerator.is_main_process:
            tqdm.write(text)


@letting_go
def benchmark(settings: BenchmarkSettings) -> Found:
    """Load, attack, flag, write; say how much each attack leaves, and return it.

    Args:
        settings: of the benchmark; ``ticket`` is to be given.

    Returns:
        The run's folder, and what its results.json holds; in every process.

    Raises:
        RstHubError: a kind of it. SettingsError for settings that are wrong, before anything is written.
    """
    settings = checked(BenchmarkSettings, settings)
    accelerator = several_processes()
    with accelerator.main_process_first():
        victim = load_victim(settings.ticket, settings.name)
    precision = accelerator.mixed_precision
    output = Path(settings.output or default_output(victim, settings, precision))
    check = functools.partial(check_output, output, "benchmark", settings, precision)
    claim(accelerator, output, functools.partial(check, free=(*FREE_ON_RESUME, *WHERE_DATA_LIE)))
    settings = with_earlier(settings, output)  # after which nothing is imported by a name in that folder
    eps = budgets(settings)
    attacks = planned(settings, eps, victim)
    dataset, images = load_test_images(settings, [victim], accelerator)
    data = {"test": fingerprint_of_images(images)}
    moved = WHERE_DATA_LIE if has_data(output, data) else ()
    check(free=(*FREE_ON_RESUME, *moved))
    journal = output / "journal" / fingerprint([victim], images)
    place([victim], accelerator.device)
    make_folder(accelerator, output, "benchmark", settings, data)
    bench = Bench(settings, accelerator, victim, journal)
    bench.say(f"{victim.kind} {victim.label}, {len(images)} test images of {dataset}; run folder {output}")

    # What every attack leaves of every sample, and what all of them together leave.
    clean = measured(bench, "clean", None, images)
    bench.say(in_words("clean", clean))
    rows = []
    for key, crafting in attacks.items():
        left = measured(bench, key, crafting, images)
        rows.append(row(key, crafting, victim, clean, left, warnings_of(bench, key, crafting.attack)))
        bench.say(in_words(key if crafting.on is None or "-on-" in key else f"{key} on {crafting.on}", left))
    found = concluded(settings.norm, eps, victim, clean, rows)
    for line in concluded_in_words(victim, found):
        bench.say(line)

    # Signs that the attacks failed where the network seems strong.
    flags = raised(bench, ThreatModel(settings.norm, eps[0] / 255), images)
    for flag in flags["checks"]:
        word = {True: "passed", False: "FAILED", None: "too few to say"}[flag["passed"]]
        bench.say(f"{word}  {flag['check']}: {flag['found']}")

    result = {
        "kind": victim.kind,
        "network": victim.about,
        "origins": victim.origins,
        **circumstances(settings, dataset, images, bench.image_size, accelerator, command("benchmark", settings)),
        **found,
        "flags": flags,
    }
    if accelerator.is_main_process:
        write_json(output / "results.json", result)
    bench.say(f"wrote {output / 'results.json'}")
    accelerator.wait_for_everyone()  # a process that leaves early can hang another one's leave-taking (torch 2.6)
    accelerator.end_training()
    return Found(output, None, result)


def with_earlier(settings: BenchmarkSettings, output: Path) -> BenchmarkSettings:
    """Return the settings of a resumed benchmark: attacks and budgets are added to what it had, never taken away."""
    path = output / "settings.json"
    if not path.exists():
        return settings
    earlier = json.loads(path.read_text(encoding="utf-8"))["settings"]

    def both(key: str) -> str:
        words = [word.strip() for word in str(earlier[key]).split(",")]
        words = [f"{word}/255" if key == "eps" and re.fullmatch(r"0?\.\d*[1-9]\d*", word) else word for word in words]
        return ",".join(dict.fromkeys([*words, *(word.strip() for word in getattr(settings, key).split(","))]))

    given = settings.attacks.split(",")
    for name in [word.strip() for word in earlier["attacks"].split(",")]:
        if is_own(name) and name not in given:  # a folder's file is nobody's command line
            raise SettingsError(f"{output} was measured with an attack of your own: give it again, --attacks {name}")
    return replace(settings, attacks=both("attacks"), eps=both("eps"))


def planned(settings: BenchmarkSettings, eps: list[float], victim: Victim) -> dict[str, Crafting]:
    """Return every attack at every budget, by a key of both; one that has no budget once."""
    found = {}
    classes: Any = victim.members[0].model.num_classes
    names = [*(ADAPTIVE if victim.kind == "r2s" else ()), *(part.strip() for part in settings.attacks.split(","))]
    own = {name: load_own(name, "attack") for name in names if is_own(name)}
    for name in dict.fromkeys(names):
        if name.startswith("autoattack"):
            require(classes)
        for budget in eps:
            limits, size = ThreatModel(settings.norm, budget / 255), victim.input_cfg["input_size"][-1]
            attack = own_attack(own[name], limits) if name in own else named_attack(name, limits, size)
            key = attack.name if attack.threat_model is None else f"{attack.name}-eps{shown(budget)}"
            if key in found:
                raise SettingsError(f"--attacks has {attack.name} twice, of two files: give one of them another name")
            # One network answers its own examples only, while those of an R2S are put to its ensemble too.
            found[key] = on_all(victim, attack if victim.kind == "r2s" else attack.keeping("enough"))
    if victim.kind != "r2s":
        return found
    return {**found, **on_ensemble(victim, found), **on_each(victim, found)}


def measured(bench: Bench, key: str, crafting: Crafting | None, images: Images) -> Outcomes:
    """Return what an attack leaves of the images, over all processes; what the journal has is not measured again."""
    accelerator, settings, victim = bench.accelerator, bench.settings, bench.victim
    attack = None if crafting is None else crafting.attack
    folder = journal_of(bench, key, attack)
    with autoattack_warnings(folder / f"{accelerator.process_index}.warnings"):
        parts = evaluate(
            victim.model if crafting is None else crafting.model,
            batches_of(images, settings, bench.image_size, accelerator),
            attack,
            judges=judges_of(victim),
            seed=settings.seed,
            done=[part for path in sorted(folder.glob("*.jsonl")) for part in read_journal(path)],
            journal=folder / f"{accelerator.process_index}.jsonl",
            progress=key if accelerator.is_main_process else None,
            total=share(images, settings.batch_size, accelerator),
        )
    left = join(gather_object(parts))
    return replace(left, correct=left.each[: len(victim.members)].mean(0))  # who judges last is the ensemble


def journal_of(bench: Bench, key: str, attack: NamedAttack | None) -> Path:
    """Return the folder of an attack's journals, made if need be; one for each of its settings."""
    described = json.dumps(None if attack is None else attack.described(), sort_keys=True)
    folder = bench.journal / f"{key.replace(':', '-')}-{hashlib.sha256(described.encode()).hexdigest()[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def warnings_of(bench: Bench, key: str, attack: NamedAttack) -> list[str]:
    """Return what AutoAttack warned of in any process, also before an interruption."""
    files = sorted(journal_of(bench, key, attack).glob("*.warnings"))
    lines = [line for path in files for line in path.read_text(encoding="utf-8").splitlines()]
    return sorted(set(gather_object(lines)))


def row(
    key: str, crafting: Crafting, victim: Victim, clean: Outcomes, left: Outcomes, warnings: list[str]
) -> dict[str, Any]:
    """Return what one attack left, with its settings, for JSON."""
    attack = crafting.attack
    broken = (clean.correct > 0) & (left.correct == 0)
    found = {
        "key": key,
        "attack": attack.described(),
        **({} if crafting.on is None else {"crafted_on": crafting.on}),
        **accuracy(left.correct),
        "seconds": round(left.seconds, 1),
        "images_per_second": round(left.images_per_second, 2),
        "largest_linf_over_255": round(255 * float(left.linf.max()), 4),
        "largest_l2": round(float(left.l2.max()), 4),
        "warnings": warnings,
    }
    if attack.threat_model is None:  # without a budget, what counts is how far the attack had to go
        found["mean_l2_of_broken"] = _mean(left.l2[broken])
        found["median_l2_of_broken"] = _median(left.l2[broken])
    if attack.counts_queries:
        found["mean_queries"] = _mean(left.queries[clean.correct > 0])
        found["median_queries_of_broken"] = _median(left.queries[broken])
    return {**found, **answers(victim, left)}


def answers(victim: Victim, left: Outcomes) -> dict[str, Any]:
    """Return what became of every sample; of an R2S, for each member and their ensemble."""
    return of_judges(victim.names, left.each) if victim.kind == "r2s" else {"outcomes": encoded(left.correct)}


def concluded(
    norm: str, eps: list[float], victim: Victim, clean: Outcomes, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return all rows and what follows from them, for JSON: worst cases; of an R2S, the paper's protocol too."""
    first = {**accuracy(clean.correct), **answers(victim, clean)}
    some = [budget for budget in eps if within(budget, rows)]
    if victim.kind != "r2s":
        worst = [worst_at(norm, budget, clean, rows) for budget in some]
        return {"clean": first, "attacks": rows, "worst_case": worst}
    worst = [worst_of(norm, budget, victim.names, first, within(budget, rows)) for budget in some]
    return {"clean": first, "attacks": rows, "protocols": drawn(victim.names, rows), "worst_case": worst}


def concluded_in_words(victim: Victim, found: dict[str, Any]) -> list[str]:
    """Return lines for what :func:`concluded` found beyond the rows."""
    if victim.kind == "r2s":
        both = [f"{one['accuracy']:6.2f} %  {one['key']}: attacker and defender draw" for one in found["protocols"]]
        return [*both, *(line for worst in found["worst_case"] for line in compared_in_words(worst))]
    return [
        f"{worst['accuracy']:6.2f} %  worst case at eps {worst['eps_over_255']:g}/255, {worst['norm']}"
        for worst in found["worst_case"]
    ]


def worst_at(norm: str, budget: float, clean: Outcomes, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what all attacks of one budget together leave: each sample must withstand every one of them."""
    worst = worst_case([clean.correct, *(decoded(found["outcomes"]) for found in within(budget, rows))])
    return {
        "norm": norm,
        "eps_over_255": budget,
        "attacks": [found["key"] for found in within(budget, rows)],
        **accuracy(worst),
        "outcomes": encoded(worst),
    }


def within(budget: float, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of the attacks that had this budget."""
    return [found for found in rows if found["attack"]["eps_over_255"] == round(budget, 6)]


def raised(bench: Bench, threat_model: ThreatModel, images: Images) -> dict[str, Any]:
    """Return the honesty flags at one budget, on the first of the images."""
    count = min(bench.settings.flag_samples, len(images))
    eps = round(255 * threat_model.eps, 6)
    about = {"norm": threat_model.norm, "eps_over_255": eps, "samples": count}
    if not count:
        return {**about, "checks": []}
    few, attacks = images.subset(torch.arange(count)), probes(threat_model, bench.image_size)
    found = {
        name: measured(bench, f"flag{count}-{name}-eps{shown(eps)}".replace(" ", "-"), on_all(bench.victim, probe), few)
        for name, probe in attacks.items()
    }
    local = next(batches_of(few, bench.settings, bench.image_size, bench.accelerator, alone=True))
    checks = [*judge(found), *inspect_model(bench.victim.model, *local[1:])]
    described = [probe.described() for probe in attacks.values()]
    return {**about, "checks": [asdict(flag) for flag in checks], "attacks": described}


def shown(budget: float) -> str:
    """Return a budget as short as it can be written and read back."""
    return repr(budget).removesuffix(".0")


def in_words(key: str, left: Outcomes) -> str:
    """Return a line of the table."""
    low, high = interval(left.correct)
    speed = f"{left.seconds:.0f} s, {left.images_per_second:.1f} img/s"
    return f"{percent(left.correct):6.2f} %  {key:20} ({low:.1f} to {high:.1f}, {speed})"


def default_output(victim: Victim, settings: BenchmarkSettings, precision: str) -> str:
    """Return a folder named after what is measured, and on what; to be resumed, that of the run to continue."""
    dataset = settings.dataset or victim.about.get("dataset") or "data"
    parts = ["benchmark", victim.label.replace("/", "-").replace(":", "-"), name_of(dataset), settings.norm]
    parts += [f"eps{settings.eps.replace('/255', '')}"] + ([] if settings.samples is None else [f"n{settings.samples}"])
    said = {key: getattr(settings, key) for key in ("name", "norm", "eps", "samples", "seed")}
    said |= {"ticket": settings.ticket} if victim.label.startswith(settings.ticket) else {}
    said |= {"dataset": settings.dataset} if settings.dataset in (None, name_of(dataset)) else {}
    named = Path("runs", "-".join([*parts, f"s{settings.seed}", *hash_unless(settings, BenchmarkSettings(**said))]))
    return str(to_resume(named, "benchmark", settings, precision, free=(*FREE_ON_RESUME, *WHERE_DATA_LIE)) or named)


class Lines(logging.Handler):
    """Adds warnings to a file; one that cannot be written ends the attack, so that --resume makes it again."""

    def __init__(self, path: Path) -> None:
        super().__init__(logging.WARNING)
        self.path = path

    def emit(self, record: logging.LogRecord) -> None:
        """Add one warning."""
        append_line(self.path, self.format(record).encode())


@contextmanager
def autoattack_warnings(path: Path) -> Iterator[None]:
    """Add AutoAttack's warnings to a file: they belong into the result rather than between the bars."""
    logger, handler = logging.getLogger("auto-attack"), Lines(path)
    logger.addHandler(handler)
    propagate, logger.propagate = logger.propagate, False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
        logger.propagate = propagate


def _mean(values: torch.Tensor) -> float | None:
    return round(float(values.double().mean()), 4) if len(values) else None


def _median(values: torch.Tensor) -> float | None:
    return round(float(statistics.median(values.tolist())), 4) if len(values) else None


main = functools.partial(run_recipe, "benchmark")
"""Run the recipe by a command line, a list of words."""
