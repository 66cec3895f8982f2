"""The card: a ticket folder's README.md and pictures, made of what lies in the folder and of nothing else.

Beside the tickets a folder may hold ``card.json``, what no file can measure, written by a person, and ``results/``,
what recipes/benchmark.py and recipes/transfer.py wrote, unchanged. ``card_template.md`` is the page.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCardData

from .config import read_config
from .errors import SettingsError
from .files import check_fetched, given_path, reading, write_files
from .gathered import (
    Folder,
    all_measured,
    gather,
    lifts_of,
    of_set,
    of_ticket,
    over_seeds,
    rank,
    rank_in_set,
    read_folder,
    runs_of,
    shares_of,
)
from .paper import compared, paper
from .pictures import DRAW, PICTURES, picture_digest, to_draw
from .results import (
    DRAWS_ONE,
    REPOSITORY,
    Measured,
    Result,
    check_about,
    place,
    read_about,
    read_result,
    read_results,
    searched_result,
)
from .wording import (
    Verbatim,
    and_last,
    budget,
    code,
    escaped,
    fenced,
    human,
    listed,
    look,
    or_unknown,
    plain,
    thousands,
)

TAGS = ["rst", "timm", "adversarial-robustness", "image-classification"]

_SIGNED = re.compile(r"(?P<text>.*\n)<!-- rst-hub: .* SHA-256 of all above: (?P<sha256>[0-9a-f]{64}) -->\n?", re.DOTALL)


@dataclass(frozen=True)
class Table:
    """Rows of text on one network, and the runs that measured them, by number from 1 on.

    ``trained`` is what trained a dense network and by which command, where that is recorded.
    """

    title: str
    rows: tuple[tuple[str, ...], ...]
    runs: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...] = ()
    trained: tuple[str, str] | None = None


@dataclass(frozen=True)
class SeedsTable:
    """Accuracies of one network's search with several seeds; and of the others seed, circumstances and commands."""

    title: str
    seeds: tuple[int, ...]
    rows: tuple[tuple[str, ...], ...]
    others: tuple[tuple[int, str, tuple[str, ...]], ...]


def render(folder: str | Path) -> dict[str, bytes]:
    """Return README.md and the pictures of a ticket folder by their names; the same folder gives the same README.md.

    Raises:
        TicketError: the folder, a ticket or a result cannot be read, or a result was measured on another ticket.
        SettingsError: card.json is wrong, or there is something to draw and no matplotlib.
    """
    return _rendered(read_folder(given_path(folder)))


def write_card(
    folder: str | Path, results: Iterable[str | Path] = (), about: Mapping[str, Any] | None = None
) -> list[Path]:
    """Add results and what a person says to a ticket folder, render its card, and write all of it; return the paths.

    Args:
        folder: a ticket folder.
        results: files of recipes/benchmark.py or recipes/transfer.py, copied into ``results/``. One that holds all of
            an earlier one's numbers, as a resumed run's does, takes its place.
        about: keys of card.json; they replace those that it has.

    Raises:
        TicketError: as for :func:`render`.
        SettingsError: as for :func:`render`; or README.md is not as it was rendered, or cannot be written.
    """
    folder = given_path(folder)
    config = read_config(folder)
    with reading(folder, SettingsError):
        _check_untouched(folder / "README.md")
    said = {**read_about(folder), **(about or {})}
    check_about(said)
    present = read_results(folder)
    placed = dict(present)
    for path in map(given_path, results):
        result = read_result(path.resolve(), path, config)
        placed[place(result, placed)] = result
    contents = {folder / "results" / name: placed[name].content for name in placed if placed[name] != present.get(name)}
    if about is not None:
        contents[folder / "card.json"] = (json.dumps(said, indent=2, ensure_ascii=False) + "\n").encode()
    rendered = _rendered(gather(folder, config, said, placed))
    # another matplotlib draws the same numbers in other bytes: such a picture stays as it is
    new = {name: content for name, content in rendered.items() if not _is_drawn(folder / name, content)}
    contents |= {folder / name: content for name, content in sorted(new.items(), reverse=True)}
    try:
        if placed:
            (folder / "results").mkdir(exist_ok=True)
        write_files(contents)
        for name in DRAW:
            if name not in rendered:
                (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise SettingsError(f"{folder} cannot be written: {error}") from error
    return list(contents)


def _is_drawn(path: Path, picture: bytes) -> bool:
    """Say whether this file is a picture of the same numbers as ``picture``."""
    if path.name not in DRAW or not path.is_file():
        return False
    try:
        return picture_digest(path.read_bytes()) == picture_digest(picture)
    except (SettingsError, OSError):
        return False


def is_rendered(text: str) -> bool:
    """Say whether a README.md is as it was rendered: its last line has the SHA-256 of all above it."""
    found = _SIGNED.fullmatch(text.replace("\r\n", "\n"))
    return found is not None and hashlib.sha256(found["text"].encode()).hexdigest() == found["sha256"]


def _check_untouched(path: Path) -> None:
    """Raise SettingsError for a README.md that somebody wrote or edited: it is not ours to overwrite."""
    if not path.exists():
        return
    check_fetched(path)
    try:
        ours = is_rendered(path.read_text(encoding="utf-8"))
    except ValueError:
        ours = False
    if not ours:
        raise SettingsError(
            f"{path} was written or edited by hand: move what you need of it into card.json's notes, then delete it or "
            "move it elsewhere, and write the card again"
        )


def _rendered(folder: Folder) -> dict[str, bytes]:
    drawn = {name: DRAW[name](data) for name, data in to_draw(folder).items()}
    environment = jinja2.Environment(
        finalize=escaped, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"code": code, "fenced": fenced, "human": human, "verbatim": Verbatim}
    template = resources.files(__package__).joinpath("card_template.md").read_text(encoding="utf-8")
    body = environment.from_string(template).render(**_page(folder), pictures=list(drawn))
    text = f"---\n{_metadata(folder).to_yaml()}\n---\n\n{body.strip()}\n\n"
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    last = f"<!-- rst-hub: made from the files beside it; edit card.json instead. SHA-256 of all above: {sha256} -->\n"
    return {"README.md": (text + last).encode(), **drawn}


def _page(folder: Folder) -> dict[str, Any]:
    """Return what the template names."""
    rst, entries, about = folder.config["rst"], folder.entries, folder.about
    cfg = folder.config["pretrained_cfg"]
    always = ("clean", "pgd20", "autoattack")
    together = _table(folder, "R2S, all tickets together", of_set(folder), always)
    tables = [] if len(entries) == 1 else [together]
    for entry in entries:
        title = f"Ticket {entry['name']}: {shares_of([entry])}"
        tables.append(_table(folder, title, of_ticket(folder, entry), always))
    dense = [_dense_table(folder, run) for run in runs_of(folder, "dense")]
    here = f"model_cards/{plain(folder.name)}"  # where such folders lie, in a clone
    names = [result.dataset for result in folder.results.values()]
    names += [searched.dataset for searched in map(searched_result, entries) if searched]
    return {
        "name": folder.name,
        "architecture": rst["architecture"],
        "arguments": ", ".join(f"{key}={value}" for key, value in rst["timm_kwargs"].items()),
        "seed": rst["init"]["seed"],
        "distribution": rst["init"]["distribution"],
        "entries": entries,
        "shares": shares_of(entries),
        "download": sum(size.file for size in folder.sizes) / len(entries),
        "input": " x ".join(str(side) for side in cfg.get("input_size", ("unknown",))),
        "classes": folder.config.get("num_classes"),
        "data": and_last([folder.data(name) for name in dict.fromkeys(names)]) or "no recorded data set",
        "lead": _lead(folder),
        "tables": [table for table in tables if table.rows],
        "seeds": _seeds_tables(folder),
        "dense": dense,
        "where": Verbatim(json.dumps(about.get("repo_id") or here, ensure_ascii=False)),
        "timm_where": Verbatim(
            json.dumps(
                f"hf-hub:{about['repo_id']}" if about.get("repo_id") else f"local-dir:{here}", ensure_ascii=False
            )
        ),
        "ticket": Verbatim(json.dumps(entries[0]["name"])),
        "sizes": folder.sizes,
        "facts": _search_facts(folder),
        "commands": _commands(entries),
        "flags": _flags(folder),
        "compared": compared(folder),
        "notes": about.get("notes") or [],
        "license": about.get("license"),
        "base_model": _base_models(folder),
        "paper": paper(),
        "picture_titles": PICTURES,
    }


def _table(folder: Folder, title: str, runs: Sequence[Result], required: Sequence[str]) -> Table:
    """Return the table of one network: clean, PGD-20, AutoAttack and the worst case first; what is missing is said.

    Of an R2S the worst case by who knows the members comes first, and next to it the paper's protocol.
    """
    words = {"clean": "clean", "pgd20": "PGD-20", "autoattack": "AutoAttack (standard)"}
    together = any(row.is_set for run in runs for row in run.rows)

    def order(line: tuple[str, Measured | None, int]) -> tuple[Any, ...]:
        name, row, _ = line
        place = rank_in_set(name, row) if together else rank(name)
        return (place, row is not None and row.norm != "Linf", (row.eps or 0) if row else 0)

    lines: list[tuple[str, Measured | None, int]] = [
        (row.name, row, number) for number, run in enumerate(runs, 1) for row in run.rows
    ]
    lines += [(name, None, 0) for name in required if name not in {line[0] for line in lines}]
    rows = []
    for name, row, number in sorted(lines, key=order):
        if row is None:
            rows.append((words[name], "", "not measured", "", "", ""))
            continue
        found = "not recorded" if row.interval is None else f"{row.interval[0]:.2f} to {row.interval[1]:.2f}"
        what = row.words + (f" ({row.remark})" if row.remark else "")
        what += f", {row.of}" if row.is_set and row.of != "R2S" else ""
        limits = "not attacked" if row.name == "clean" else budget(row.norm, row.eps)
        rows.append((what, limits, f"{row.accuracy:.2f}", found, f"{row.samples:,}", str(number)))
    warnings = [line for run in runs for found in listed(run.said, "attacks") for line in listed(found, "warnings")]
    ran = tuple((_circumstances(folder, run), _command_of(run.said)) for run in runs)
    return Table(plain(title), tuple(rows), ran, tuple(dict.fromkeys(plain(line) for line in warnings)))


def _dense_table(folder: Folder, run: Result) -> Table:
    """Return the table of a dense network, with what is recorded of its training."""
    table = _table(folder, f"Dense network {run.rows[0].of}", [run], required=())
    origin = next(iter(listed(run.said, "origins")), None)
    if not isinstance(origin, dict) or not isinstance(origin.get("settings"), dict):
        return table
    facts = _facts_of(folder, origin, learned="all weights")
    told = "; ".join(f"{what}: {how}" for what, how in facts.items() if what not in ("Mask", "Versions"))
    return replace(table, trained=(told, _command_of(origin)))


def _seeds_tables(folder: Folder) -> list[SeedsTable]:
    """Return a table of every network that the same search found with other seeds too."""
    tables = []
    for one in [of_set(folder), *(of_ticket(folder, entry) for entry in folder.entries)]:
        found = [(row, over_seeds(folder, run, row)) for run in one for row in run.rows]
        found = [(row, by_seed) for row, by_seed in found if by_seed]
        if not found:
            continue
        whose = found[0][0]
        seeds = sorted({seed for _, by_seed in found for seed in by_seed})
        found.sort(key=lambda one: rank_in_set(one[0].name, one[0]) if one[0].is_set else rank(one[0].name))
        rows = [
            (
                row.words,
                "not attacked" if row.name == "clean" else budget(row.norm, row.eps),
                *(f"{by_seed[seed].accuracy:.2f}" if seed in by_seed else "not measured" for seed in seeds),
                _mean(by_seed) if len(by_seed) == len(seeds) else "",
                f"{row.samples:,}",
            )
            for row, by_seed in found
        ]
        told = [
            (seed, _circumstances(folder, run), _commands_of(run))
            for seed, _, run in folder.other_seeds
            if run.rows[0].of == whose.of
        ]
        title = whose.of if whose.is_set else f"Ticket {whose.of}"
        tables.append(SeedsTable(f"{plain(title)}: {len(seeds)} seeds", tuple(seeds), tuple(rows), tuple(told)))
    return tables


def _mean(by_seed: Mapping[int, Measured]) -> str:
    return f"{math.fsum(row.accuracy for row in by_seed.values()) / len(by_seed):.2f}"


def _commands_of(run: Result) -> tuple[str, ...]:
    """Return the commands of a result: those that searched its tickets, and the one that measured them."""
    return tuple(dict.fromkeys(_command_of(said) for said in [*listed(run.said, "origins"), run.said]))


def _command_of(said: Any) -> str:
    """Return the command that is recorded of a run or search, as one that a shell takes."""
    command = or_unknown(look(said, "command"), 4000)
    return f"python {command}" if command.startswith("recipes/") else command


def _circumstances(folder: Folder, run: Result) -> str:
    """Return which samples were measured, with which seed, where and by what."""
    said = run.said
    if run.kind == "search":
        chosen = "measured by the search itself, with the ticket it kept, after it"
        seed = look(said, "settings", "seed")
    else:
        found = look(said, "dataset", "chosen")
        chosen = "all of the split" if found == "all" else f"chosen: {or_unknown(found)}"
        seed = said.get("seed")
    precision = "float32" if said.get("precision") == "no" else or_unknown(said.get("precision"))
    processes = or_unknown(said.get("processes")).strip("[]")
    return (
        f"{run.rows[0].samples:,} samples of the {plain(run.split, 40)} split of {folder.data(run.dataset)}, "
        f"{plain(chosen)}; seed {or_unknown(seed)}, {precision}, {or_unknown(said.get('device'))}, "
        f"processes: {plain(processes, 40)}; {_versions(said)}"
    )


def _versions(said: Mapping[str, Any]) -> str:
    found = said.get("versions")
    return ", ".join(f"{k} {plain(v, 40)}" for k, v in found.items()) if isinstance(found, dict) else "versions unknown"


def _lead(folder: Folder) -> list[str]:
    """Return a sentence for each accuracy that a card leads with, each budget's on the most samples first."""
    leading = _leading(folder)
    most: dict[tuple[Any, ...], tuple[Result, Measured]] = {}
    for run, row in leading:
        most.setdefault((row.of, row.norm, row.eps), (run, row))
    return [
        _sentence(folder, run, row) + _easier_or_harder(run, row, *most[row.of, row.norm, row.eps])
        for run, row in leading
    ]


def _leading(folder: Folder) -> list[tuple[Result, Measured]]:
    """Return the lowest accuracy of a ticket at each budget; of an R2S each worst case by who knows it.

    A number on few samples is no lead over one on many, be it lower or higher: each number of samples has its own.
    """
    alone = len(folder.entries) == 1
    runs = of_ticket(folder, folder.entries[0]) if alone else runs_of(folder, "r2s")
    runs = [run for run in runs if run.kind != "search"] or runs  # whose one attack is no lead beside several
    measured = [(run, row) for run in runs for row in run.rows if row.eps and not row.beside]
    measured = [(run, row) for run, row in measured if alone or row.name == "worst"]
    measured.sort(key=lambda one: (one[1].norm, one[1].eps, -one[1].samples, one[1].accuracy, one[1].name != "worst"))
    lowest: dict[tuple[Any, ...], tuple[Result, Measured]] = {}
    for run, row in measured:
        lowest.setdefault((row.of, row.norm, row.eps, row.samples), (run, row))
    return list(lowest.values())


def _sentence(folder: Folder, run: Result, row: Measured) -> str:
    low, high = row.interval or (0.0, 100.0)
    how = f"in the {row.words}" if row.name == "worst" else f"under {row.words}"
    if row.name == "worst" and row.is_set:  # the table has their names
        attacks = (row.settings or {})["of"]
        without = "" if any(key.startswith("autoattack") for key in attacks) else ", none of them AutoAttack"
        how = f"in the worst of {len(attacks)} attacks{without}"
    spread = ""
    if seeds := over_seeds(folder, run, row):
        found = [one.accuracy for one in seeds.values()]
        names = and_last([str(seed) for seed in sorted(seeds)])
        spread = f"; over seeds {names} {_mean(seeds)}% on average, {min(found):.2f} to {max(found):.2f}"
    return (
        f"{row.accuracy:.2f}% ({low:.2f} to {high:.2f}) {how}, {budget(row.norm, row.eps)}, {row.samples:,} samples of "
        f"{folder.data(run.dataset)}" + ("" if row.of == "R2S" or not row.is_set else f", {row.of}") + spread
    )


def _easier_or_harder(run: Result, row: Measured, most: Result, on_most: Measured) -> str:
    """Return what one attack leaves of these samples and of the most that were measured: few may be easier ones."""
    if row.samples == on_most.samples:
        return ""

    def comparable(one: Measured) -> bool:
        return (one.norm, one.eps) == (row.norm, row.eps) and one.name != "worst" and one.attacker != DRAWS_ONE

    found = {one.words: one for one in most.rows if comparable(one)}
    both = [(one, found[one.words]) for one in run.rows if comparable(one) and one.words in found]
    if not both:
        return ""
    here, there = min(both, key=lambda pair: rank(pair[0].name))
    return (
        f"; of these samples {here.words} leaves {here.accuracy:.2f}%, of those {there.samples:,} {there.accuracy:.2f}%"
    )


def _flags(folder: Folder) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Return (of what, its checks) of every run that raised honesty flags."""
    words = {True: "passed", False: "FAILED", None: "too few to say"}
    found = []
    for run in [*runs_of(folder, "r2s"), *runs_of(folder, "ticket")]:
        flags = run.said["flags"]
        if flags["checks"]:
            name = run.rows[0].of if run.kind == "r2s" else f"Ticket {run.rows[0].of}"
            limits = f"{or_unknown(flags.get('norm'))}, eps {or_unknown(flags.get('eps_over_255'))}/255"
            title = f"{name}, {limits}, on {or_unknown(flags.get('samples'))} samples of {folder.data(run.dataset)}"
            checks = [(check["check"], words[check["passed"]], plain(check["found"])) for check in flags["checks"]]
            found.append((title, checks))
    return found


def _search_facts(folder: Folder) -> list[tuple[str, str]]:
    """Return (what, how) of the searches; where the tickets differ, each with its name."""
    by_ticket = {entry["name"]: _facts_of(folder, entry["provenance"]) for entry in folder.entries}
    facts = []
    for what in dict.fromkeys(what for found in by_ticket.values() for what in found):
        values = {name: found.get(what, "not recorded") for name, found in by_ticket.items()}
        if len(set(values.values())) == 1:
            facts.append((what, next(iter(values.values()))))
        else:
            facts.append((what, "; ".join(f"{name}: {value}" for name, value in values.items())))
    return facts


def _facts_of(folder: Folder, origin: Mapping[str, Any], learned: str = "the scores") -> dict[str, str]:
    """Return (what, how) of a search, or of the training of a dense network."""

    def of(*keys: str) -> str:
        return or_unknown(look(origin, *keys))

    def setting(key: str) -> str:
        return of("settings", key)

    if not isinstance(origin.get("settings"), dict):
        return {"Settings": "not recorded", "Versions": _versions(origin)}
    steps = f"{setting('steps')} steps, " if setting("attack") == "pgd" else ""
    step_size = look(origin, "settings", "step_size")
    own = "the default step" if step_size is None else f"step {or_unknown(step_size)}/255"
    attack = f"{setting('attack')}, {steps}Linf, eps {setting('eps')}/255, {own}"
    attack += ", on the divergence" if setting("loss") == "trades" else ""
    stopped = look(origin, "settings", "max_steps")
    images = [or_unknown(thousands(look(origin, "dataset", f"{which}_samples"))) for which in ("training", "heldout")]
    held = f"{of('heldout', 'clean')}% clean and {of('heldout', 'pgd20')}% under PGD-20 there"
    return {
        "Data": f"{folder.data(of('dataset', 'name'))}, training split, augmentation {setting('augment')}",
        "Images": f"{images[0]} to learn from, {images[1]} held out",
        "Attack in the loop": "none" if setting("attack") == "none" else attack,
        "Epochs": setting("epochs")
        + ("" if stopped is None else f", stopped after {or_unknown(stopped)} optimizer steps"),
        "Epoch kept": f"{of('epoch')}, after {of('optimizer_steps')} optimizer steps: the best one on the held-out "
        f"images, {held}; the test images were not looked at",
        "Optimizer": f"{setting('optimizer')} of {learned}, learning rate {setting('lr')}, schedule "
        f"{setting('schedule')}, momentum {setting('momentum')}, weight decay {setting('weight_decay')}, batch "
        f"{setting('batch_size')}",
        **({"Beyond the paper": "; ".join(lifts_of(origin))} if lifts_of(origin) else {}),
        "Mask": f"pattern {setting('pattern')}, scores of seed {setting('score_seed')}",
        "Precision": "float32" if of("precision") == "no" else of("precision"),
        "Device": f"{of('device')}; processes: {of('processes').strip('[]')}",
        "Time": f"{of('seconds')} s",
        "Versions": _versions(origin),
    }


def _commands(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(_command_of(entry["provenance"]) for entry in entries))


def _base_models(folder: Folder) -> list[str]:
    """Return the models that card.json or the tickets say they are made from."""
    given = [folder.about.get("base_model"), *(entry["provenance"].get("base_model") for entry in folder.entries)]
    return list(dict.fromkeys(one for one in given if isinstance(one, str) and REPOSITORY.fullmatch(one)))


def _metadata(folder: Folder) -> ModelCardData:
    rst, about = folder.config["rst"], folder.about
    dataset = folder.dataset.get("id")
    base = _base_models(folder)
    measured = all_measured(folder)
    size = {one.name: one.file for one in folder.sizes}
    return ModelCardData(
        library_name="rst-hub",
        tags=TAGS,
        pipeline_tag="image-classification",
        license=plain(about["license"], 100) if about.get("license") else None,
        datasets=[dataset] if dataset else None,
        base_model=(base[0] if len(base) == 1 else base) or None,
        model_name=plain(folder.name, 100),
        eval_results=[_eval_result(folder, run, row) for run, row in measured] or None,
        rst={
            "architecture": rst["architecture"],
            "seed": rst["init"]["seed"],
            "distribution": rst["init"]["distribution"],
            "tickets": [
                {"name": one["name"], "remaining_ratio": one["remaining_ratio"], "bytes": size[one["name"]]}
                for one in folder.entries
            ],
        },
    )


def _eval_result(folder: Folder, run: Result, row: Measured) -> EvalResult:
    ratios = [entry["remaining_ratio"] for entry in folder.entries if entry["name"] in row.members]
    whose = {"tickets": list(row.members)} if row.is_set else {"ticket": row.of}
    whom = f"{row.of if row.is_set else f'ticket {row.of}'}, {row.samples:,} samples"
    arguments: dict[str, Any] = {
        **whose,
        "remaining_ratio": ratios if row.is_set else ratios[0],
        "samples": row.samples,
        "unit": "percent",
    }
    if row.interval is not None:
        arguments["interval_95"] = list(row.interval)
    if row.name != "clean":
        known = {
            key: value for key, value in (row.settings or {}).items() if isinstance(value, str | int | float | list)
        }
        limits = {"norm": row.norm} | ({} if row.eps is None else {"eps_over_255": row.eps})
        attacker = {} if row.attacker is None else {"attacker": row.attacker}
        arguments |= {"attack": known, **limits, **attacker}
    return EvalResult(
        task_type="image-classification",
        dataset_type=folder.dataset.get("id") or plain(run.dataset, 100),
        dataset_name=folder.data(run.dataset),
        dataset_split=plain(run.split, 40),
        metric_type="accuracy" if row.name == "clean" else "robust_accuracy",
        metric_value=row.accuracy,
        metric_name=plain(f"clean accuracy, {whom}" if row.name == "clean" else f"{_metric(row)}, {whom}", 500),
        metric_args=_clean(arguments),
    )


def _metric(row: Measured) -> str:
    return f"{row.words}, {budget(row.norm, row.eps)}"


def _clean(value: Any) -> Any:
    """Return JSON whose texts are single lines, so that YAML says the same to every reader."""
    if isinstance(value, dict):
        return {plain(key, 60): _clean(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_clean(one) for one in value[:100]]
    return plain(value) if isinstance(value, str) else value
