"""What a card says of searches, attacks, data and commands."""

from collections.abc import Mapping, Sequence
from typing import Any

from .gathered import Folder, lifts_of, runs_of
from .measured import Result
from .wording import listed, look, or_unknown, plain, thousands


def commands_of(run: Result) -> tuple[str, ...]:
    """Return the commands of a result: those that searched its tickets, and the one that measured them."""
    return tuple(dict.fromkeys(command_of(said) for said in [*listed(run.said, "origins"), run.said]))


def command_of(said: Any) -> str:
    """Return the command that is recorded of a run or search, as one that a shell takes."""
    command = or_unknown(look(said, "command"), 4000)
    return f"python {command}" if command.startswith("recipes/") else command


def circumstances_of(folder: Folder, run: Result) -> str:
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


def flags_of(folder: Folder) -> list[tuple[str, list[tuple[str, str, str]]]]:
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


def search_facts(folder: Folder) -> list[tuple[str, str]]:
    """Return (what, how) of the searches; where the tickets differ, each with its name."""
    by_ticket = {entry["name"]: facts_of(folder, entry["provenance"]) for entry in folder.entries}
    facts = []
    for what in dict.fromkeys(what for found in by_ticket.values() for what in found):
        values = {name: found.get(what, "not recorded") for name, found in by_ticket.items()}
        if len(set(values.values())) == 1:
            facts.append((what, next(iter(values.values()))))
        else:
            facts.append((what, "; ".join(f"{name}: {value}" for name, value in values.items())))
    return facts


def facts_of(folder: Folder, origin: Mapping[str, Any], learned: str = "the scores") -> dict[str, str]:
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
        **_own_code(origin),
        **({"Beyond the paper": "; ".join(lifts_of(origin))} if lifts_of(origin) else {}),
        "Mask": f"pattern {setting('pattern')}, scores of seed {setting('score_seed')}",
        "Precision": "float32" if of("precision") == "no" else of("precision"),
        "Device": f"{of('device')}; processes: {of('processes').strip('[]')}",
        "Time": f"{of('seconds')} s",
        "Versions": _versions(origin),
    }


def _own_code(origin: Mapping[str, Any]) -> dict[str, str]:
    """Return the functions of the searcher's own, with the digests of their files."""
    own = look(origin, "own_code")
    found = [
        f"{setting} {or_unknown(look(own, setting, 'name'))}, source file's SHA-256 "
        f"{or_unknown(look(own, setting, 'source_sha256'))}"
        for setting in (own if isinstance(own, dict) else {})
    ]
    return {"Own code": "; ".join(found)} if found else {}


def commands_used(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the commands of the searches, each once."""
    return list(dict.fromkeys(command_of(entry["provenance"]) for entry in entries))
