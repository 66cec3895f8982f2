"""The pictures of a card: what there is to draw, as JSON, and how it is drawn."""

import hashlib
import io
import json
import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..errors import SettingsError
from .gathered import Folder, all_measured, rank, runs_of
from .measured import DRAWS_ONE, Measured, Result, in_words
from .wording import and_last, budget, plain

_FEW_LINES, _MANY_LINES = 6, 8
"""Lines in a picture that bands can stand beside, and that can be told apart; the tables have the rest."""


def picture_digest(png: bytes) -> str:
    """Return the SHA-256 of the numbers that are drawn in a card's picture, which stands in its metadata.

    Raises:
        SettingsError: it is no picture of a card.
    """
    try:
        with Image.open(io.BytesIO(png)) as image:
            found = image.info.get("Description")
    except (OSError, ValueError, SyntaxError) as error:
        raise SettingsError(f"this is no picture that can be read ({error}): give a card's PNG file") from error
    if not isinstance(found, str) or not re.fullmatch("[0-9a-f]{64}", found):
        raise SettingsError("this picture has no digest of its numbers: give a PNG file that a card was rendered with")
    return found


def to_draw(folder: Folder) -> dict[str, dict[str, Any]]:
    """Return what there is to draw, by the picture's name."""
    found = {
        "robust_accuracy.png": _against_eps(folder),
        "remaining_ratio.png": _against_ratio(folder),
        "transfer.png": _matrices(folder),
    }
    return {name: json.loads(json.dumps(data)) for name, data in found.items() if data}


def _against_eps(folder: Folder) -> dict[str, Any] | None:
    """Return a line for each network and attack of two budgets or more; of a dense one, if a ticket has that line.

    The worst case of an R2S is among them: what is left of it under one attack alone says little.
    """
    own = [(run, row) for run, row in all_measured(folder) if row.attacker != DRAWS_ONE]
    rows = [*own, *((run, row) for run in runs_of(folder, "dense") for row in run.rows)]
    lines: list[tuple[str, bool, dict[str, Any]]] = []
    attacks = dict.fromkeys((row.name, row.words, row.norm) for _, row in own if row.eps)
    for name, words, norm in sorted(attacks, key=lambda attack: rank(attack[0])):
        for of, members in dict.fromkeys((row.of, row.members) for _, row in rows):
            whose = [(run, row) for run, row in rows if (row.of, row.members) == (of, members)]
            points = [one for one in whose if (one[1].name, one[1].words, one[1].norm) == (name, words, norm)]
            if len({row.eps for _, row in points}) < (2 if members else 1):
                continue
            points += [one for one in whose if one[1].name == "clean"]
            points.sort(key=lambda one: one[1].samples)
            chosen = {row.eps or 0.0: (run, row) for run, row in points}  # of two for one budget that of more samples
            line = [chosen[eps][1] for eps in sorted(chosen)]
            of_set = name == "worst" and len(members) > 1
            shown_as = words.partition(" (")[0] if of_set else words  # the table has the attacks' names
            label = {
                "network": of if members else f"dense {of}",
                "attack": shown_as,
                "norm": norm,
                "dense": not members,
            }
            found = {**label, **_line(line), **_on({folder.data(run.dataset) for run, _ in chosen.values()}, line)}
            lines.append((name, of_set, found))
    own_lines = {(one["attack"], one["norm"]) for _, _, one in lines if not one["dense"]}
    lines = [line for line in lines if (line[2]["attack"], line[2]["norm"]) in own_lines]
    networks = {one["network"] for _, _, one in lines}
    series = []
    for norm in dict.fromkeys(one["norm"] for _, _, one in lines):
        shown = list(dict.fromkeys(name for name, _, one in lines if one["norm"] == norm))
        few = shown[: max(1, min(3, _MANY_LINES // len(networks)))]
        series += [one for name, always, one in lines if one["norm"] == norm and (name in few or always)]
    return {"title": f"Accuracy under attack, {folder.name}", "series": series} if series else None


def _line(rows: Sequence[Measured]) -> dict[str, Any]:
    ranges = [row.interval or (row.accuracy, row.accuracy) for row in rows]
    return {
        "eps": [row.eps or 0.0 for row in rows],
        "accuracy": [row.accuracy for row in rows],
        "low": [low for low, _ in ranges],
        "high": [high for _, high in ranges],
    }


def _on(data: Iterable[str], rows: Iterable[Measured]) -> dict[str, Any]:
    return {"data": sorted(data), "samples": sorted({row.samples for row in rows})}


def _against_ratio(folder: Folder) -> dict[str, Any] | None:
    """Return a line for each attack and budget that two tickets of different ratios or more were measured with."""
    ratio = {entry["name"]: entry["remaining_ratio"] for entry in folder.entries}
    measured = [(run, row) for run, row in all_measured(folder) if not row.is_set]
    found: dict[tuple[Any, ...], dict[str, tuple[Result, Measured]]] = {}
    for run, row in sorted(measured, key=lambda one: one[1].samples):
        found.setdefault((row.name, row.words, row.norm, row.eps), {})[row.of] = (run, row)
    series: list[dict[str, Any]] = []
    for (name, words, norm, eps), by_ticket in sorted(found.items(), key=lambda one: (rank(one[0][0]), one[0][3] or 0)):
        points = sorted(by_ticket.values(), key=lambda one: ratio[one[1].of])
        if len({ratio[row.of] for _, row in points}) < 2 or len(series) > _MANY_LINES:
            continue
        rows = [row for _, row in points]
        label = "clean" if name == "clean" else f"{words}, {budget(norm, eps)}"
        data = {folder.data(run.dataset) for run, _ in points}
        line = {**_line(rows), "ratio": [ratio[row.of] for row in rows]}
        series.append({"label": label, **line, **_on(data, rows)})
    return {"title": f"Accuracy and remaining ratio, {folder.name}", "series": series} if len(series) > 1 else None


def _matrices(folder: Folder) -> dict[str, Any] | None:
    """Return every matrix, of transfer.py and of what benchmark.py crafted on the members of an R2S, none twice."""
    titles = {"full": "full attack", "paper": "paper protocol"}
    matrices = []
    for run in folder.own:
        for attack, protocol, labels, matrix in _matrices_of(run):
            one = {
                "title": f"{in_words(attack)}, {budget(attack['norm'], attack['eps_over_255'])}",
                "protocol": titles[protocol],
                "data": f"{run.said['dataset']['samples']:,} test images of {folder.data(run.dataset)}",
                "labels": [plain(label, 24) for label in labels],
                "accuracy": matrix,
            }
            matrices += [one] if one not in matrices else []
    return {"matrices": matrices} if matrices else None


def _matrices_of(run: Result) -> list[tuple[Mapping[str, Any], str, list[str], list[list[float]]]]:
    """Return (attack, protocol, labels, matrix) of each matrix in a result."""
    said = run.said
    if run.kind == "transfer":
        labels = [network["label"] for network in said["networks"]]
        return [(said["attack"], protocol, labels, matrix) for protocol, matrix in said["accuracy"].items()]
    protocols = said["protocols"] if run.kind == "r2s" else ()
    return [(one["attack"], one["protocol"], one["tickets"], one["matrix"]) for one in protocols]


_MARKERS, _DASHES = "osD^vPX*<>", ("--", ":", "-.")


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SettingsError('the pictures of a card need matplotlib: pip install "rst-hub[plots]"') from error
    return Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")


def _png(figure: Any, data: Mapping[str, Any]) -> bytes:
    """Return a PNG of 256 colours, a third of matplotlib's own in bytes, with the digest of ``data`` in it."""
    drawn, content, about = io.BytesIO(), io.BytesIO(), PngInfo()
    figure.savefig(drawn, format="png")
    about.add_text("Description", hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest())
    few = Image.Quantize.MAXCOVERAGE  # which leaves a scale of colours alone
    image = Image.open(drawn).convert("RGB").quantize(256, few, dither=Image.Dither.NONE)
    image.save(content, "png", pnginfo=about, optimize=True)
    return content.getvalue()


def _ink(text: str, width: int = 90) -> str:
    """Return text that matplotlib can draw: in letters that its font has, and no formula."""
    return textwrap.fill(text.encode("ascii", "replace").decode(), width, break_on_hyphens=False).replace("$", r"\$")


def _heading(data: Mapping[str, Any]) -> str:
    samples = sorted({count for one in data["series"] for count in one["samples"]})
    counted = f"{samples[0]:,}" + (f" to {samples[-1]:,}" if len(samples) > 1 else "")
    names = and_last(sorted({name for one in data["series"] for name in one["data"]}))
    shown = "bands" if len(data["series"]) <= _FEW_LINES else "bars"
    return _ink(f"{data['title']}: {counted} test images of {names}; {shown}: 95% intervals", 84)


def _draw_eps(data: dict[str, Any]) -> bytes:
    """Draw accuracy against eps, a panel for each norm; a colour stands for what there are several of.

    Dense networks are dashed, each in its own way: where colours stand for attacks, nothing else tells them apart.
    """
    series = data["series"]
    norms = sorted({one["norm"] for one in series}, key=lambda norm: (norm != "Linf", norm))
    networks = list(dict.fromkeys(one["network"] for one in series))
    attacks = list(dict.fromkeys(one["attack"] for one in series))
    dense = list(dict.fromkeys(one["network"] for one in series if one["dense"]))
    by_attack = len({one["network"] for one in series if not one["dense"]}) == 1 and len(attacks) > 1
    legends = [math.ceil(sum(one["norm"] == norm for one in series) / 2) for norm in norms]
    figure = _figure(8, 4.2 * len(norms) + 0.25 * sum(legends))
    panels = figure.subplots(len(norms), 1, squeeze=False)[:, 0]
    for axes, norm in zip(panels, norms, strict=True):
        for one in (one for one in series if one["norm"] == norm):
            position = attacks.index(one["attack"]) if by_attack else networks.index(one["network"])
            marker = _MARKERS[attacks.index(one["attack"]) % len(_MARKERS)]
            label = _ink(f"{one['network']}, {one['attack']}", 60)
            style = _DASHES[dense.index(one["network"]) % len(_DASHES)] if one["dense"] else "-"
            _plot(axes, one["eps"], one, label, f"C{position % 10}", marker, len(series), style)
        _finish(axes, f"eps, {norm}, in pixels over 255 (0: not attacked)")
    figure.suptitle(_heading(data), fontsize=11)
    return _png(figure, data)


def _draw_ratio(data: dict[str, Any]) -> bytes:
    """Draw accuracy against the remaining ratio, on a logarithmic axis."""
    series = data["series"]
    figure = _figure(8, 4.6 + 0.25 * math.ceil(len(series) / 2))
    axes = figure.subplots()
    for position, one in enumerate(series):
        marker = _MARKERS[position % len(_MARKERS)]
        share = [100 * ratio for ratio in one["ratio"]]
        _plot(axes, share, one, _ink(one["label"], 60), f"C{position % 10}", marker, len(series))
    ticks = sorted({100 * ratio for one in series for ratio in one["ratio"]})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    _finish(axes, "remaining ratio: weights kept in each layer, in %")
    figure.suptitle(_heading(data), fontsize=11)
    return _png(figure, data)


def _plot(
    axes: Any,
    x: list[float],
    one: Mapping[str, Any],
    label: str,
    colour: str,
    marker: str,
    lines: int,
    style: str = "-",
) -> None:
    axes.plot(x, one["accuracy"], style, color=colour, marker=marker, markersize=5, label=label)
    if lines <= _FEW_LINES:
        axes.fill_between(x, one["low"], one["high"], color=colour, alpha=0.12, linewidth=0)
    else:
        axes.vlines(x, one["low"], one["high"], color=colour, alpha=0.6, linewidth=1)


def _finish(axes: Any, xlabel: str) -> None:
    axes.set(xlabel=xlabel, ylabel="accuracy in %", ylim=(-2, 102))
    axes.grid(alpha=0.3)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, fontsize="small", frameon=False)


def _draw_matrices(data: dict[str, Any]) -> bytes:
    """Draw every matrix as an annotated heat map, all on one scale, as recipes/transfer.py does."""
    matrices = data["matrices"]
    count = max(len(matrix["labels"]) for matrix in matrices)
    columns = 2 if len(matrices) > 1 and count <= 6 else 1
    lines = math.ceil(len(matrices) / columns)
    figure = _figure(8, 0.5 + lines * (3.9 if columns == 2 else 2.2 + 0.55 * count))
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    image: Any = None
    names = list(dict.fromkeys(matrix["data"] for matrix in matrices))
    for axes, matrix in zip(panels, matrices, strict=False):
        image = axes.imshow(matrix["accuracy"], vmin=0, vmax=100, cmap="viridis")
        for i, row in enumerate(matrix["accuracy"]):
            for j, value in enumerate(row):
                colour = "white" if value < 60 else "black"
                axes.text(j, i, f"{value:.1f}", ha="center", va="center", color=colour, fontsize=9)
        labels = [_ink(label) for label in matrix["labels"]]
        axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
        axes.set_yticks(range(len(labels)), labels)
        axes.set(xlabel="tested on", ylabel="crafted on")
        of = f"; {matrix['data']}" if len(names) > 1 else ""
        axes.set_title(_ink(f"{matrix['title']}, {matrix['protocol']}{of}", 84 // columns), fontsize=9)
    for axes in panels[len(matrices) :]:
        axes.set_axis_off()
    figure.suptitle(_ink(f"Transfer of attacks: accuracy in % on {and_last(names)}", 84), fontsize=11)
    figure.colorbar(image, ax=list(panels), shrink=0.8, fraction=0.04)
    return _png(figure, data)


PICTURES = {
    "robust_accuracy.png": "Accuracy against the budget of the attack",
    "remaining_ratio.png": "Accuracy against the remaining ratio",
    "transfer.png": "Accuracy under attacks crafted on another network",
}
"""The pictures of a card, in words."""

DRAW = {"robust_accuracy.png": _draw_eps, "remaining_ratio.png": _draw_ratio, "transfer.png": _draw_matrices}
"""The pictures of a card, and what draws each."""
