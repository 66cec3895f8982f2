"""push_to_hub: a folder of tickets, checked, with its card, as one commit on the Hugging Face Hub."""

import dataclasses
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError

from ..cards.card import write_card
from ..cards.values import REPOSITORY
from ..errors import HubError, RstHubError, SettingsError, cause
from ..files import called, check_listable, given_path, is_snapshot, read_inside, reading, write_files
from ..tickets.config import read_config
from ..tickets.digests import digest
from ..tickets.ticket import Ticket
from .compare import Held, Push, check_allowed, compare_with_hub, digests_there, hub_says, is_ours, is_same, of_card
from .listing import hub_api
from .loading import from_pretrained
from .source import check_revision


@dataclass(frozen=True)
class Pushed:
    """What a push has done: ``sent`` and ``deleted`` are the files of its commit; () and () where it made none.

    ``url`` is that of the commit, of the pull request, or of what holds the folder already. ``made`` is what the push
    has made for it: "repository", "branch", or nothing.
    """

    url: str
    holder: str
    sent: tuple[str, ...]
    deleted: tuple[str, ...]
    made: str


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    replace: bool = False,
) -> str:
    """Publish a folder of tickets and return the URL of its commit (or pull request).

    Where the Hub holds the whole folder already, nothing is sent, and the URL is that of what holds it.

    Every ticket is loaded and its network compared first, and the card is rendered from what the folder holds. All goes
    up in one commit, on top of the commit that was compared with: it is there whole or not at all. What the Hub has
    already is not sent, so that pushing again, also after an answer was lost, changes nothing. In the end the folder
    here has the card that was sent.

    Args:
        folder: as ``Ticket.save`` writes it, with ``card.json`` and ``results/`` for the card.
        repo_id: ``org/name``; made if it is not there.
        private: how to make a repository that is not there: private (True; one that is there must be, too), public
            (False), or as the Hub or its organisation has it by default (None).
        revision: the branch, made from main if it is not there; main when None.
        token: with the right to write; the one that is logged in when None.
        create_pr: open a pull request against the branch instead of changing it.
        commit_message: its first line.
        replace: allow tickets that are there to be deleted, or to become other ones of the same name.

    Raises:
        TicketError, ArchitectureError: a ticket of the folder is not what was drawn.
        SettingsError: the name, the card's data, or what is on the Hub does not allow it; the message says what.
        HubError: the Hub cannot be reached or refuses it.
    """
    how: dict[str, Any] = {"private": private, "revision": revision, "create_pr": create_pr, "replace": replace}
    return pushed_to_hub(folder, repo_id, token=token, commit_message=commit_message, **how).url


def pushed_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    replace: bool = False,
) -> Pushed:
    """Do what :func:`push_to_hub` does, with its arguments and errors, and say what was done."""
    folder = given_path(folder)
    with _prepared(folder, repo_id, revision) as files:
        api = hub_api(token)
        plan = compare_with_hub(files, repo_id, revision, token)
        check_allowed(api, plan, private, create_pr, replace)
        with hub_says(f"{repo_id} cannot be made ready"):
            if not plan.exists:
                api.create_repo(repo_id, private=private, exist_ok=True)
            if revision is not None and not plan.branch_exists:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
        made = "repository" if not plan.exists else "" if plan.branch_exists else "branch"
        if made:
            plan = compare_with_hub(files, repo_id, revision, token)
            check_allowed(api, plan, private, create_pr, replace)  # somebody may have been quicker
        held = _held(api, plan, revision, create_pr)
        if held is not None:
            pushed = Pushed(held.url, held.what, (), (), made)
        else:
            url = _commit(api, plan, revision, create_pr, commit_message)
            onto = "a pull request" if create_pr else _branch(revision)
            pushed = Pushed(url, onto, plan.changed, plan.deleted, made)
        card = {folder / name: content for name, content in files.items() if of_card(name)}
        try:
            write_files({path: content for path, content in card.items() if _read(path) != content})
        except OSError as error:
            where = "published as" if held is None else "nothing to send, it is there already as"
            raise SettingsError(f"{where} {pushed.url}, but the card in {folder} cannot be written: {error}") from error
        return pushed


def plan_push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    create_pr: bool = False,
    replace: bool = False,
) -> Push:
    """Return what :func:`push_to_hub` would do, after the same checks; nothing is sent, nothing written."""
    with _prepared(given_path(folder), repo_id, revision) as files:
        api = hub_api(token)
        plan = compare_with_hub(files, repo_id, revision, token)
        check_allowed(api, plan, private, create_pr, replace)
        return dataclasses.replace(plan, held=_held(api, plan, revision, create_pr))


@contextmanager
def _prepared(folder: Path, repo_id: str, revision: str | None) -> Iterator[dict[str, bytes]]:
    """Yield the files of a folder by path, verified, with a fresh card; the folder itself is left alone."""
    check_revision(revision)
    if not isinstance(repo_id, str) or not REPOSITORY.fullmatch(repo_id):
        raise SettingsError(f"{str(repo_id)[:200]!r} is not the name of a repository: give org/name")
    listed = ["config.json", *(entry["file"] for entry in read_config(folder)["rst"]["tickets"])]
    if (folder / "results").is_symlink():
        raise SettingsError(f"{folder}/results is a link, and links are not published: put the files there")
    if is_snapshot(folder):
        raise SettingsError(f"{folder} is in the Hub's cache, which is not to be changed: copy it, and push the copy")
    with reading(folder):  # a file that is overlooked here would be deleted there
        check_listable(folder / "results")
        names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*"))]
    ours = [name for name in names if name in listed or (is_ours(name) and not name.startswith("ticket-"))]
    contents = {name: _read_own(folder, name) for name in ours}
    with _scratch(folder) as copy:
        for name, content in contents.items():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes(content)
        for entry in read_config(copy)["rst"]["tickets"]:
            _check_ticket(copy, entry["name"])
        write_card(copy, about={"repo_id": repo_id})
        files = sorted(path for path in copy.rglob("*") if path.is_file())
        prepared = {path.relative_to(copy).as_posix(): path.read_bytes() for path in files}
    yield prepared


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """Yield an empty folder for a copy of ``folder``, by whose name errors call the copy."""
    try:
        with tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch) / "folder"
            copy.mkdir()
            with called(copy, folder):
                yield copy
    except OSError as error:
        raise SettingsError(
            f"{folder} cannot be copied to where temporary files go ({error.strerror}): free some space there, or set "
            "TMPDIR to another folder"
        ) from None


def _read_own(folder: Path, name: str) -> bytes:
    """Return a file's bytes, unless it is a link to what lies elsewhere: that may be anything but meant to be sent."""
    try:
        return read_inside(folder, name, 2**34)
    except (ValueError, OSError) as error:
        raise SettingsError(f"{folder} cannot be published: {error}") from error


def _check_ticket(folder: Path, name: str) -> None:
    """Raise TicketError unless a ticket loads to the state dict that its masks and its seed make."""
    ticket = Ticket.load(folder, name)
    ticket.verify()
    made, loaded = ticket.state_dict(), from_pretrained(folder, ticket=name).state_dict()
    if digest(made, made) != digest(loaded, loaded):
        raise RstHubError(f"ticket {name} of {folder} does not load to the network that was drawn: nothing was sent")


def _commit(api: HfApi, plan: Push, revision: str | None, create_pr: bool, message: str | None) -> str:
    """Make the one commit; return its URL, also if the answer was lost on its way."""
    names = ", ".join(name for name in plan.changed if name.startswith("ticket-")) or "the card"
    operations: list[Any] = [CommitOperationAdd(name, plan.files[name]) for name in plan.changed]
    operations += [CommitOperationDelete(name) for name in plan.deleted]
    try:
        made = api.create_commit(
            plan.repo_id,
            operations,
            commit_message=message or f"Publish {names}",
            revision=revision,
            create_pr=create_pr,
            parent_commit=plan.parent,
        )
    except Exception as error:
        refused = isinstance(error, HfHubHTTPError) and 400 <= error.response.status_code < 500
        if not refused:  # it may have been made all the same
            try:
                now = compare_with_hub(plan.files, plan.repo_id, revision, api.token)
                held = _held(api, now, revision, create_pr)
            except HubError as lost:
                unknown = f"whether {plan.repo_id} was published is not known, push again: {lost}"
                raise HubError(unknown) from cause(error)
            if held is not None:
                return held.url
        with hub_says(f"nothing was published to {plan.repo_id}"):
            raise
    with hub_says(f"{made.commit_url} was made, but cannot be checked"):
        there = digests_there(api, plan.repo_id, made.oid)
    wrong = [name for name, content in plan.files.items() if not is_same(content, there.get(name))]
    if wrong:
        raise HubError(f"{made.commit_url} was made without {wrong[:3]} as they are: is there a .gitignore?")
    return str(made.pr_url or made.commit_url)


def _branch(revision: str | None) -> str:
    return f"branch {revision or 'main'}"


def _held(api: HfApi, plan: Push, revision: str | None, create_pr: bool) -> Held | None:
    """Return what holds the folder already: the branch, or an open pull request; None if nothing does."""
    if not plan.exists:
        return None
    if not plan.changed and not plan.deleted:
        return Held(_branch(revision), f"{api.endpoint}/{plan.repo_id}/commit/{plan.parent}")
    if not create_pr or revision is not None:  # an open request does not say here which branch it is for
        return None
    with hub_says(f"the pull requests of {plan.repo_id} cannot be read"):
        for request in api.get_repo_discussions(plan.repo_id, discussion_type="pull_request", discussion_status="open"):
            there = digests_there(api, plan.repo_id, f"refs/pr/{request.num}")
            is_whole = all(is_same(content, there.get(name)) for name, content in plan.files.items())
            if is_whole and not any(name in there for name in plan.deleted):
                return Held(f"pull request {request.num}", f"{api.endpoint}/{plan.repo_id}/discussions/{request.num}")
    return None


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
