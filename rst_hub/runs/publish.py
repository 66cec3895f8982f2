"""Put tickets and what was measured of them into one folder, write its card, publish it on the Hub.

    python recipes/publish.py --tickets runs/A/ticket,runs/B/ticket --folder model_cards/rst-x
    python recipes/benchmark.py --ticket model_cards/rst-x --output runs/C
    python recipes/publish.py --folder model_cards/rst-x --results runs/C/results.json --repo org/rst-x --dry-run
    python recipes/publish.py --folder model_cards/rst-x --repo org/rst-x   one commit, with the card
    python recipes/publish.py --help                                        every setting

Steps can be given one by one, as here, or in one line. The folder is the same here and on the Hub.
"""

import sys
from pathlib import Path

from ..cards.card import write_card
from ..cli import push
from ..errors import SettingsError
from ..files import given_path
from ..hub.loading import load_tickets
from .launch import main_of
from .parsing import parse
from .settings import PublishSettings


def main(arguments: list[str]) -> None:
    """Gather, describe, send."""
    settings = parse(PublishSettings, arguments, __doc__ or "")
    if not settings.folder:
        raise SettingsError("--folder: give the folder to publish, model_cards/<repository's name> by custom")
    folder = given_path(settings.folder)

    # Tickets of one random network; every one is made anew and compared before the first is copied.
    tickets = [ticket for source in listed(settings.tickets) for ticket in load_tickets(source)[1]]
    for ticket in tickets:
        ticket.verify()
    for ticket in tickets:
        ticket.save(folder)
        print(f"ticket {ticket.name} of {ticket.architecture}: {folder / ticket.file}")

    # The card says what was measured, and nothing else.
    for path in write_card(folder, [Path(path) for path in listed(settings.results)], about_of(settings)):
        print(f"wrote {path}")

    # One commit on the Hub, or what it would be.
    if settings.repo is not None:
        push(
            folder,
            settings.repo,
            private=settings.private or None,
            revision=settings.revision,
            create_pr=settings.create_pr,
            message=settings.message,
            replace=settings.replace,
            dry_run=settings.dry_run,
        )


def about_of(settings: PublishSettings) -> dict[str, object]:
    """Return what card.json gets: what was given and no file can tell."""
    dataset = {"id": settings.dataset_id, "note": settings.dataset_note}
    given = {
        "repo_id": settings.repo,
        "license": settings.license,
        "dataset": dataset if any(dataset.values()) else None,
        "base_model": settings.base_model,
        "notes": None if settings.note is None else [settings.note],
    }
    return {key: value for key, value in given.items() if value is not None}


def listed(names: str | None) -> list[str]:
    """Return names that stand with commas between."""
    return [name.strip() for name in (names or "").split(",") if name.strip()]


if __name__ == "__main__":
    sys.exit(main_of(main))
