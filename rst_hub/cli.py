"""The command ``rst-hub``: tickets searched and measured; what is on the Hub and in a folder, checked and published.

What a command needs is imported when it runs, since torch and timm take seconds that --help need not take.
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .choices import FORMATS
from .console import print_anything
from .errors import RstHubError, printable
from .files import given_path
from .runs.commands import RECIPES, start
from .version import __version__


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return 0, or 2 after printing what is wrong."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in RECIPES:  # which have options of their own
        return start(arguments[0], arguments[1:])
    print_anything()
    options = vars(_parser().parse_args(arguments))
    run: dict[str, Callable[..., None]] = {
        "info": info,
        "verify": verify,
        "export": export_dense,
        "card": card,
        "push": push,
        "list": list_tickets,
        "attacks": list_attacks,
    }
    try:
        run[options.pop("command")](**options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, head say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (RstHubError, OSError) as error:  # OSError: a path that cannot be one
        print(f"error: {_plain(error)}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rst-hub", description="Robust scratch tickets: search, measure, find, check, publish them."
    )
    parser.add_argument("--version", action="version", version=f"rst-hub {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text)

    for name, recipe in RECIPES.items():  # for --help, which lists them; main has started them before this
        does = recipe.does.partition(": ")[0].partition(" (")[0]
        command(name, does[0].lower() + does[1:])
    one = command("info", "say what tickets a folder or repository holds, without downloading them")
    one.add_argument("source", help="a ticket folder, or a repository on the Hub, org/name")
    one.add_argument("--revision", help="a branch, tag or commit of the repository")
    one = command("verify", "make every ticket's weights anew and compare them with what was drawn")
    one.add_argument("folder", type=Path)
    one = command("export", "write a ticket as a dense checkpoint, for those without rst_hub")
    one.add_argument("folder", help="a ticket folder, or a repository on the Hub, org/name")
    one.add_argument("--to", required=True, choices=FORMATS)
    one.add_argument("--ticket", help="which one, when there are several")
    one.add_argument("--output", type=Path, help="a new folder; default: <architecture>-<ticket>-<format>")
    one = command("card", "write README.md and pictures of a ticket folder from what was measured")
    one.add_argument("folder", type=Path)
    one.add_argument(
        "--results", type=Path, nargs="*", default=[], help="results.json and transfer.json files to take in"
    )
    one = command("push", "check a ticket folder, write its card, and publish both as one commit on the Hub")
    one.add_argument("folder", type=Path)
    one.add_argument("repo_id", metavar="org/name")
    one.add_argument("--private", action="store_true", default=None, help="make the repository private")
    one.add_argument("--revision", help="the branch; default: main")
    one.add_argument("--create-pr", action="store_true", help="open a pull request instead")
    one.add_argument("--message", help="of the commit")
    one.add_argument("--replace", action="store_true", help="allow tickets there to be deleted or changed")
    one.add_argument("--dry-run", action="store_true", help="check all, compare with the Hub, print, send nothing")
    one = command("list", "list the tickets on the Hub, as their cards describe them")
    one.add_argument("--author", help="a user or organisation")
    one.add_argument("--search", help="part of the name")
    one.add_argument("--limit", type=int, default=100, help="the most repositories; default: 100")
    command("attacks", "list the attacks, objectives and sparsity patterns there are, and how to give your own")
    return parser


def list_attacks() -> None:
    """Print the built-in attacks, objectives and patterns by the option that takes them."""
    from .choices import IN_A_SEARCH, NAMES
    from .masks.patterns import PATTERNS
    from .runs.objectives import OBJECTIVES

    tables = {
        "benchmark.py --attacks, transfer.py --attack": NAMES,
        "search.py and train.py --attack": IN_A_SEARCH,
        "search.py and train.py --loss": OBJECTIVES,
        "search.py --pattern": dict.fromkeys(PATTERNS, "each weight is kept or removed on its own"),
    }
    for options, table in tables.items():
        print(f"{options}:")
        for name, text in table.items():
            print(f"  {name:24}{text}")
    print("An attack or objective of your own: module:function or my_attack.py:function, with")
    print("  attack(model, x, y, threat_model, *, generator=None) -> pixels")
    print("  objective(network, x, attacked, y) -> (loss, logits)")


def export_dense(folder: str, to: str, ticket: str | None = None, output: Path | None = None) -> None:
    """Write one ticket as a dense checkpoint into a new folder, ``output``, and say where and how exact it is."""
    from .hub.loading import load_ticket
    from .networks.architectures import is_ours
    from .tickets.export import export

    drawn = load_ticket(folder, ticket)
    output = given_path(output or f"{drawn.architecture}-{drawn.name}-{to}")
    difference = export(drawn, output, to)
    compared = (
        "not compared with the ticket: that needs onnxruntime"
        if difference != difference
        else f"its outputs are the ticket's to {difference:.1e} of the largest, on one random batch"
    )
    print(f"wrote {output} ({sum(path.stat().st_size for path in output.iterdir()):,} bytes); {compared}")
    if to == "safetensors":
        needs = "after import rst_hub, whose architecture it is" if is_ours(drawn.architecture) else "without rst_hub"
        print(f'timm.create_model("local-dir:{output}", pretrained=True)  # {needs}; by a timm that knows local-dir:')


def info(source: str, revision: str | None = None) -> None:
    """Print what a folder or repository says of its tickets: architecture, seed, masks, size, accuracies.

    Nothing of it is checked but config.json's form: ``rst-hub verify`` checks the rest.
    """
    from .hub.loading import look
    from .networks.build import dense_bytes
    from .tickets.config import layer_ratios_of
    from .tickets.format import claimed_layout

    config, sizes = look(source, revision=revision)
    rst = config["rst"]
    try:
        dense = dense_bytes(claimed_layout(config))
    except RstHubError as error:
        dense = 0
        print(f"its dense size is not known here: {_plain(error)}")
    for entry in rst["tickets"]:
        size = sizes.get(entry["file"])
        print(_plain(f"{source}: ticket {entry['name']} of {rst['architecture']} {_arguments(rst['timm_kwargs'])}"))
        print(f"  random network   seed {rst['init']['seed']}, {rst['init']['distribution']}")
        whose = "each layer" if layer_ratios_of(entry) == "uniform" else "the network, small layers more"
        share = f"{entry['kept']:,} weights kept, {entry['remaining_ratio']:.2%} of {whose}"
        print(f"  masks            {entry['pattern']}, {share}")
        if size is None:
            print("  size             not known: its file was not found, or the Hub not asked")
        else:
            beside = f", dense {dense:,} ({dense / size:.0f} times as many)" if dense else ""
            print(f"  size             {size:,} bytes{beside}")
        for line in _results(entry["provenance"]):
            print(_plain(line))


def verify(folder: Path) -> None:
    """Check every ticket in ``folder``: its file, its masks, and the weights made anew; raise at the first fault."""
    from .networks.architectures import TIMM_VERSION
    from .tickets.ticket import Ticket, ticket_names

    names = ticket_names(folder)
    for name in names:
        ticket = Ticket.load(folder, name)
        ticket.verify()
        print(f"{folder / ticket.file}: the file is the one that config.json lists (SHA-256)")
        print(f"  {len(ticket.masks)} masks decode and keep {ticket.kept:,} weights, as many as were drawn")
        print(f"  the weights made from seed {ticket.init.seed} are those it was drawn with, bit for bit")
        print(
            f"  with {len(ticket.state)} stored tensors they fill {ticket.architecture} of timm {TIMM_VERSION} exactly"
        )
    print(f"verified: {len(names)} of {len(names)} tickets")


def card(folder: Path, results: list[Path]) -> None:
    """Write a folder's README.md and pictures, with ``results`` taken in, and say what was written."""
    from .cards.card import write_card

    for path in write_card(folder, results):
        print(f"wrote {path} ({path.stat().st_size:,} bytes)")


def push(
    folder: Path,
    repo_id: str,
    private: bool | None,
    revision: str | None,
    create_pr: bool,
    message: str | None,
    replace: bool,
    dry_run: bool,
) -> None:
    """Publish a folder, or say what would be sent."""
    from .hub.push import plan_push, pushed_to_hub

    how: dict[str, Any] = {"private": private, "revision": revision, "create_pr": create_pr, "replace": replace}
    if not dry_run:
        pushed = pushed_to_hub(folder, repo_id, commit_message=message, **how)
        if pushed.sent or pushed.deleted:
            print(f"published {folder}: {pushed.url}")
        else:
            made = f"the {pushed.made} was made; " if pushed.made else ""
            so = ", no pull request was opened" if create_pr else ""
            print(f"{made}nothing to send{so}: {pushed.holder} of {repo_id} holds all of {folder}: {pushed.url}")
        return
    plan = plan_push(folder, repo_id, **how)
    new = "would be made, private" if private else "would be made, public if its owner's default is"
    what = "is there" if plan.exists else new
    onto = "a pull request" if create_pr else f"branch {revision or 'main'}"
    if plan.held is None:
        print(f"{repo_id} {what}; one commit on {onto} would have:")
    elif plan.branch_exists:
        print(f"{repo_id} {what}; nothing to send: its {plan.held.what} holds all of {folder}: {plan.held.url}")
    else:
        print(f"{repo_id} {what}; {onto} would be made of main, which holds all of {folder}; nothing else to send")
    for name, content in plan.files.items():
        word = "send  " if plan.held is None and name in plan.changed else "same  "
        print(f"  {word} {len(content):>12,} bytes  {name}")
    for name in plan.deleted if plan.held is None else ():
        print(_plain(f"  delete {'':>12}        {name}"))
    print("every ticket was loaded and compared; nothing was sent")


def list_tickets(author: str | None, search: str | None, limit: int) -> None:
    """Print a table of the tickets on the Hub, from their cards."""
    from .hub.listing import list_models

    found = list_models(author=author, search=search, limit=limit)
    head = ("repository", "ticket", "architecture", "ratio", "bytes", "data set", "clean %", "robust %", "against")
    rows = [
        (
            row.repo,
            row.ticket,
            row.architecture or "not said",
            _or_unknown(row.remaining_ratio, "g"),
            _or_unknown(row.bytes, ","),
            row.dataset or "not said",
            _or_unknown(row.clean_accuracy, ".2f"),
            _or_unknown(row.robust_accuracy, ".2f"),
            row.robust_against or "",
        )
        for row in found
    ]
    lines = [head, *(tuple(_plain(cell) for cell in row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    for line in lines:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())
    print(f"{len(rows)} tickets of {len({row.repo for row in found})} repositories; the numbers are their cards' own")


def _or_unknown(value: float | None, form: str) -> str:
    return "not measured" if value is None else format(value, form)


def _plain(text: object) -> str:
    """Return text from elsewhere as one line without control characters, which a terminal would obey."""
    return printable(text, 10_000)


def _arguments(timm_kwargs: dict[str, Any]) -> str:
    return "(" + ", ".join(f"{key}={value}" for key, value in timm_kwargs.items()) + ")"


def _results(provenance: dict[str, Any]) -> list[str]:
    """Return the lines on measured accuracies; a field that is not there is 'not measured' or 'not recorded'."""
    try:
        results, attack = provenance["results"], provenance["results"]["attack"]
        where = f"{provenance['dataset']['name']}, {results['split']} split, {results['samples']} samples"
        how = (
            f"{attack['name'].upper()}-{attack['steps']}, {attack['norm']}, eps {attack['eps_over_255']:g}/255, step "
            f"{attack['step_size_over_255']:g}/255, {attack['restarts']} restart, seed {attack['seed']}"
        )
        return [
            f"  clean accuracy   {results['clean_accuracy']:.2f} % ({where})",
            f"  robust accuracy  {results['robust_accuracy']:.2f} % ({how})",
            f"  searched by      {provenance['command']}",
        ]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return ["  accuracy         not measured"]


if __name__ == "__main__":
    sys.exit(main())
