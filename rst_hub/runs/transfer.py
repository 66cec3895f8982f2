"""Measure how attacks transfer between tickets (paper, sections 6.1 and E): a matrix as JSON and as a heat map.

Row i, column j is the accuracy of network j on the examples crafted on network i. The paper's code stops each sample as
soon as it fools the network that it is crafted on, which makes it transfer worse; ``--paper-protocol`` measures that
beside the full attack. The run's folder holds ``transfer.json``, ``transfer.png`` and a journal for ``--resume``.
"""

import functools

from .commands import leave, run_recipe

if __name__ == "__main__":
    leave("transfer")  # which imports this file under its own name, once the settings are right

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

from ..attacks.common import ThreatModel
from ..attacks.names import NamedAttack, named_attack
from ..data.images import Images
from ..data.images import fingerprint as fingerprint_of_images
from ..errors import DataError, SettingsError
from ..evaluation.accuracy import percent
from ..evaluation.transfer import transfer_outcomes
from ..files import write_file, write_json
from .folder import WHERE_DATA_LIE, check_output, has_data, make_folder, to_resume
from .found import Found
from .guard import claim, letting_go
from .naming import command, filed, hash_unless
from .own import load_own, own_attack
from .parsing import checked
from .run import share
from .settings import TransferSettings, budgets, is_own
from .targets import (
    Victim,
    batches_of,
    circumstances,
    each_alone,
    fingerprint,
    load_test_images,
    load_victim,
    place,
    several_processes,
)

FREE_ON_RESUME = ("resume", "output", "paper_protocol")
PROTOCOLS = {"full": "full attack", "paper": "each sample stopped once it fools its source (the paper's code)"}

TITLES = {"full": "full attack", "paper": "paper protocol"}


@letting_go
def transfer(settings: TransferSettings) -> Found:
    """Load the networks, craft on each and test on all; write, draw and return what is left.

    Args:
        settings: of the measurement; ``tickets`` are to be given.

    Returns:
        The run's folder, and what its transfer.json holds; in every process.

    Raises:
        RstHubError: a kind of it. SettingsError for settings that are wrong, before anything is written.
    """
    settings = checked(TransferSettings, settings)
    (eps,) = budgets(settings)
    check_matplotlib()
    accelerator = several_processes()
    with accelerator.main_process_first():
        sources = [load_victim(source.strip()) for source in settings.tickets.split(",")]
    victims = [alone for source in sources for alone in each_alone(source)]
    if len(victims) < 2:
        raise SettingsError(f"--tickets {settings.tickets}: give two networks or more, or a folder of several tickets")
    size = victims[0].input_cfg["input_size"][-1]
    limits = ThreatModel(settings.norm, eps / 255)
    if is_own(settings.attack):
        attack = own_attack(load_own(settings.attack, "attack"), limits)
    else:
        attack = named_attack(settings.attack, limits, size)
    precision = accelerator.mixed_precision
    output = Path(settings.output or default_output(settings, eps, precision))
    check = functools.partial(check_output, output, "transfer", settings, precision)
    claim(accelerator, output, functools.partial(check, free=(*FREE_ON_RESUME, *WHERE_DATA_LIE)))
    if (output / "journal").exists():  # what it had is measured again, which costs nothing
        paper = any((output / "journal").glob("*/paper"))
        settings = replace(settings, paper_protocol=paper or settings.paper_protocol)
    protocols = ["full", "paper"] if settings.paper_protocol else ["full"]
    if "paper" in protocols and ("keep" not in attack.settings or attack.settings["restarts"] > 1):
        raise SettingsError(f"--paper-protocol stops an attack early, which {settings.attack} cannot: give pgd20, say")
    dataset, images = load_test_images(settings, victims, accelerator)
    data = {"test": fingerprint_of_images(images)}
    moved = WHERE_DATA_LIE if has_data(output, data) else ()
    check(free=(*FREE_ON_RESUME, *moved))
    place(victims, accelerator.device)
    make_folder(accelerator, output, "transfer", settings, data)

    labels = labelled(victims)
    result: dict[str, Any] = {
        "networks": [{"label": label, "kind": v.kind, **v.about} for label, v in zip(labels, victims, strict=True)],
        "attack": attack.described(),
        "rows": "crafted on",
        "columns": "tested on",
        **circumstances(settings, dataset, images, size, accelerator, command("transfer", settings)),
        "accuracy": {},
    }
    journal = output / "journal" / (fingerprint(victims, images) + (attack.source_sha256 or "")[:8])
    for protocol in protocols:
        right = crossed(victims, attack, protocol, images, settings, accelerator, journal / protocol)
        matrix = [[percent(right[i, j]) for j in range(len(victims))] for i in range(len(victims))]
        result["accuracy"][protocol] = matrix
        if accelerator.is_main_process:
            tqdm.write(in_words(labels, matrix, PROTOCOLS[protocol]))
    if accelerator.is_main_process:
        write_json(output / "transfer.json", result)
        draw(result, labels, output / "transfer.png")
        tqdm.write(f"wrote {output / 'transfer.json'} and {output / 'transfer.png'}")
    accelerator.wait_for_everyone()  # a process that leaves early can hang another one's leave-taking (torch 2.6)
    accelerator.end_training()
    return Found(output, None, result)


def crossed(
    victims: list[Victim],
    attack: NamedAttack,
    protocol: str,
    images: Images,
    settings: TransferSettings,
    accelerator: Accelerator,
    folder: Path,
) -> torch.Tensor:
    """Return outcomes (networks, networks, N) of one protocol, over all processes; what ``folder`` has is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    done = {number: right for path in folder.glob("*.jsonl") for number, right in read_lines(path)}
    size = victims[0].input_cfg["input_size"][-1]
    total = share(images, settings.batch_size, accelerator)
    models = [victim.members[0] for victim in victims]
    budget = {} if attack.threat_model is None else {"threat_model": attack.threat_model}
    craft = functools.partial(attack.function, **budget, **attack.settings)
    batches = batches_of(images, settings, size, accelerator)
    found = []
    with tqdm(desc=protocol, total=total, unit="img", leave=False, disable=not accelerator.is_main_process) as bar:
        for number, x, y in batches:
            if number not in done:
                paper = protocol == "paper"
                right = transfer_outcomes(models, [(number, x, y)], craft, paper_protocol=paper, seed=settings.seed)
                done[number] = right.int().tolist()
                line = json.dumps({"batch": number, "right": done[number]}).encode() + b"\n"
                path = folder / f"{accelerator.process_index}.jsonl"
                write_file(path, (path.read_bytes() if path.exists() else b"") + line)
            found.append((number, done[number]))
            bar.update(len(y))
    parts = [torch.tensor(right) for _, right in sorted(gather_object(found))]
    whole = torch.cat(parts, dim=2)
    if whole.shape[2] != len(images):
        raise DataError(f"the journal in {folder} is of other images: choose another --output")
    return whole


def read_lines(path: Path) -> list[tuple[int, Any]]:
    """Return (batch number, outcomes) of each line."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(line["batch"], line["right"]) for line in lines]


def labelled(victims: list[Victim]) -> list[str]:
    """Return a short name for each network, all different."""
    labels = [victim.label for victim in victims]
    return [f"{label} ({i})" if labels.count(label) > 1 else label for i, label in enumerate(labels)]


def in_words(labels: list[str], matrix: list[list[float]], title: str) -> str:
    """Return a matrix as a table of text."""
    width = max(len(label) for label in labels)
    head = f"{title}; rows: crafted on, columns: tested on\n{'':{width}}" + "".join(
        f"{n:>8}" for n in range(len(labels))
    )
    rows = [
        f"{label:{width}}" + "".join(f"{value:8.1f}" for value in row)
        for label, row in zip(labels, matrix, strict=True)
    ]
    return "\n".join([head, *rows])


def check_matplotlib() -> None:
    """Raise SettingsError, before the work, unless the picture can be drawn at its end."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise SettingsError('the heat map needs matplotlib: pip install "rst-hub[plots]"') from error


def draw(result: dict[str, Any], labels: list[str], path: Path) -> None:
    """Draw every matrix as an annotated heat map, all on one scale."""
    from matplotlib.figure import Figure

    matrices, count = result["accuracy"], len(labels)
    figure = Figure(figsize=((2.2 + 0.75 * count) * len(matrices), 1.8 + 0.6 * count), layout="constrained")
    panels = figure.subplots(1, len(matrices), squeeze=False)[0]
    for axes, (protocol, matrix) in zip(panels, matrices.items(), strict=True):
        image = axes.imshow(matrix, vmin=0, vmax=100, cmap="viridis")
        for i, row in enumerate(matrix):
            for j, value in enumerate(row):
                axes.text(j, i, f"{value:.1f}", ha="center", va="center", color="white" if value < 60 else "black")
        axes.set_xticks(range(count), labels, rotation=45, ha="right")
        axes.set_yticks(range(count), labels)
        axes.set(xlabel="tested on", ylabel="crafted on", title=TITLES[protocol])
    attack, data = result["attack"], result["dataset"]
    budget = "" if attack["eps_over_255"] is None else f", {attack['norm']}, eps {attack['eps_over_255']:g}/255"
    figure.suptitle(f"{attack['name']}{budget}; accuracy in % on {data['samples']} test images of {data['name']}")
    figure.colorbar(image, ax=list(panels), shrink=0.8)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=120, format="png")
    write_file(path, drawn.getvalue())


def default_output(settings: TransferSettings, eps: float, precision: str) -> str:
    """Return a folder named after what is measured; to be resumed, that of the run to continue."""
    first = Path(settings.tickets.split(",")[0].strip()).resolve().name
    name = f"transfer-{first}-{filed(settings.attack)}-{settings.norm}-eps{eps:g}-s{settings.seed}"
    said = {"attack": settings.attack, "norm": settings.norm, "eps": eps, "seed": settings.seed}
    usual = TransferSettings(**said, tickets=settings.tickets if "," not in settings.tickets else "")  # type: ignore[arg-type]
    named = Path("runs", "-".join([name, *hash_unless(settings, usual)]))
    return str(to_resume(named, "transfer", settings, precision, free=(*FREE_ON_RESUME, *WHERE_DATA_LIE)) or named)


main = functools.partial(run_recipe, "transfer")
"""Run the recipe by a command line, a list of words."""
