"""The command ``rst-hub``: info, verify and export, in words."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import RstHubError
from .export import FORMATS, export
from .hub import fetch
from .models import TIMM_VERSION, is_ours
from .ticket import Ticket, ticket_names


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return 0, or 2 after printing what is wrong."""
    parser = argparse.ArgumentParser(prog="rst-hub", description="Robust scratch tickets: look into them, check them.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("info", "say what a ticket folder holds"),
        ("verify", "make every ticket's weights anew and compare them with what was drawn"),
    ):
        commands.add_parser(name, help=text, description=text).add_argument("folder", type=Path)
    text = "write a ticket as a dense checkpoint, for those without rst_hub"
    exporter = commands.add_parser("export", help=text, description=text)
    exporter.add_argument("folder", help="a ticket folder, or a repository on the Hub, org/name")
    exporter.add_argument("--to", required=True, choices=FORMATS)
    exporter.add_argument("--ticket", help="which one, when there are several")
    exporter.add_argument("--output", type=Path, help="a new folder; default: <architecture>-<ticket>-<format>")
    options = vars(parser.parse_args(arguments))
    run: dict[str, Callable[..., None]] = {"info": info, "verify": verify, "export": export_dense}
    try:
        run[options.pop("command")](**options)
    except (RstHubError, OSError) as error:  # OSError: a path that cannot be one
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def export_dense(folder: str, to: str, ticket: str | None = None, output: Path | None = None) -> None:
    """Write one ticket as a dense checkpoint into a new folder, ``output``, and say where and how exact it is."""
    drawn = Ticket.load(*fetch(folder, ticket))
    output = output or Path(f"{drawn.architecture}-{drawn.name}-{to}")
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


def info(folder: Path) -> None:
    """Print what every ticket in ``folder`` is: architecture, seed, masks, size, measured accuracies."""
    for name in ticket_names(folder):
        ticket = Ticket.load(folder, name)
        total = sum(mask.numel() for mask in ticket.masks.values())
        tensors = ticket.state_dict().values()
        dense = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        size = (folder / ticket.file).stat().st_size
        print(f"{folder}: ticket {name} of {ticket.architecture} {_arguments(ticket.timm_kwargs)}")
        print(f"  random network   seed {ticket.init.seed}, {ticket.init.distribution}")
        share = f"{ticket.kept:,} of {total:,} weights kept ({ticket.kept / total:.2%})"
        print(f"  masks            {ticket.pattern}, {share}")
        print(f"  size             {size:,} bytes, dense {dense:,} ({dense / size:.0f} times as many)")
        for line in _results(ticket.provenance):
            print(line)


def verify(folder: Path) -> None:
    """Check every ticket in ``folder``: its file, its masks, and the weights made anew; raise at the first fault."""
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
