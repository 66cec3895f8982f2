"""push_to_hub: a folder of tickets, checked, with its card, as one commit on the Hugging Face Hub."""

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from .card import is_rendered, write_card
from .config import read_config
from .errors import HubError, RstHubError, SettingsError
from .files import read_inside, write_files
from .hub import REPOSITORY, check_revision, from_pretrained
from .listing import LIBRARY
from .pictures import PICTURES
from .ticket import Ticket, digest
from .version import __version__

_OURS = ("config.json", "card.json", "README.md", "ticket-*.safetensors", "results/*.json", *PICTURES)
"""What a folder of tickets holds. Nothing else is sent; and of these, what the folder has no more is deleted there."""


@dataclass(frozen=True)
class Push:
    """What a push does: ``files`` is the whole folder by path, of which ``changed`` is sent and ``deleted`` removed.

    ``exists`` and ``branch_exists`` say what is on the Hub; ``parent`` is the commit that the new one follows.
    """

    repo_id: str
    files: Mapping[str, bytes]
    changed: tuple[str, ...]
    deleted: tuple[str, ...]
    exists: bool
    branch_exists: bool
    parent: str | None
    private: bool | None


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
) -> str:
    """Publish a folder of tickets and return the URL of its commit (or pull request).

    Every ticket is loaded and its network compared first, and the card is rendered from what the folder holds. All goes
    up in one commit, on top of the commit that was compared with: it is there whole or not at all. What the Hub has
    already is not sent, so that pushing again, also after an answer was lost, changes nothing. In the end the folder
    here has the card that was sent.

    Args:
        folder: as ``Ticket.save`` writes it, with ``card.json`` and ``results/`` for the card.
        repo_id: ``org/name``; made if it is not there.
        private: make the repository private; one that is there already must be.
        revision: the branch, made from main if it is not there; main when None.
        token: with the right to write; the one that is logged in when None.
        create_pr: open a pull request instead of changing the branch.
        commit_message: its first line.

    Raises:
        TicketError, ArchitectureError: a ticket of the folder is not what was drawn.
        SettingsError: the name, the card's data, or what is on the Hub does not allow it; the message says what.
        HubError: the Hub cannot be reached or refuses it.
    """
    check_revision(revision)
    with _prepared(Path(folder), repo_id) as files:
        plan = _compare(files, repo_id, revision, token)
        api = _api(token)
        _check_visible(plan, private)
        if plan.exists and not create_pr:
            _check_card_there(api, plan)
        with _hub_says(f"{repo_id} cannot be made ready"):
            if not plan.exists:
                api.create_repo(repo_id, private=private, exist_ok=True)
            if revision is not None and not plan.branch_exists:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
        if not (plan.exists and plan.branch_exists):
            plan = _compare(files, repo_id, revision, token)
        url = _published(api, plan, create_pr) or _commit(api, plan, revision, create_pr, commit_message)
        card = {Path(folder) / name: content for name, content in files.items() if _of_card(name)}
        write_files({path: content for path, content in card.items() if _read(path) != content})
        return url


def plan_push(
    folder: str | Path, repo_id: str, *, revision: str | None = None, token: str | bool | None = None
) -> Push:
    """Return what :func:`push_to_hub` would do, after the same checks; nothing is sent, nothing written."""
    check_revision(revision)
    with _prepared(Path(folder), repo_id) as files:
        return _compare(files, repo_id, revision, token)


@contextmanager
def _prepared(folder: Path, repo_id: str) -> Iterator[dict[str, bytes]]:
    """Yield the files of a folder by path, verified, with a fresh card; the folder itself is left alone."""
    found = REPOSITORY.fullmatch(repo_id)
    if found is None or found["repo"] != repo_id:
        raise SettingsError(f"{repo_id[:200]!r} is not the name of a repository: give org/name")
    listed = ["config.json", *(entry["file"] for entry in read_config(folder)["rst"]["tickets"])]
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / repo_id.partition("/")[2]
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if name in listed or (_is_ours(name) and not name.startswith("ticket-")):
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                (copy / name).write_bytes(_read_own(folder, name))
        for entry in read_config(copy)["rst"]["tickets"]:
            _check_ticket(copy, entry["name"])
        write_card(copy, about={"repo_id": repo_id})
        files = sorted(path for path in copy.rglob("*") if path.is_file())
        yield {path.relative_to(copy).as_posix(): path.read_bytes() for path in files}


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


def _compare(files: Mapping[str, bytes], repo_id: str, revision: str | None, token: str | bool | None) -> Push:
    """Return what has to change on the Hub."""
    api, exists, branch_exists, parent, private = _api(token), True, True, None, None
    with _hub_says(f"{repo_id} cannot be compared with what is there"):
        try:
            info = api.model_info(repo_id, revision=revision)
        except RevisionNotFoundError:
            branch_exists, info = False, api.model_info(repo_id)
        except RepositoryNotFoundError:
            return Push(repo_id, files, tuple(files), (), False, False, None, None)
        parent, private = str(info.sha), info.private
        there = _digests(api, repo_id, parent)
    changed = tuple(name for name, content in files.items() if not _is_same(content, there.get(name)))
    deleted = tuple(name for name in there if _is_ours(name) and name not in files)
    return Push(repo_id, files, changed, deleted, exists, branch_exists, parent, private)


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
            found = _published(api, _compare(plan.files, plan.repo_id, revision, api.token), create_pr)
            if found is not None:
                return found
        with _hub_says(f"nothing was published to {plan.repo_id}"):
            raise
    with _hub_says(f"{made.commit_url} was made, but cannot be checked"):
        there = _digests(api, plan.repo_id, made.oid)
    wrong = [name for name, content in plan.files.items() if not _is_same(content, there.get(name))]
    if wrong:
        raise HubError(f"{made.commit_url} was made, but holds other bytes in {wrong[:3]}: push again")
    return str(made.pr_url or made.commit_url)


def _published(api: HfApi, plan: Push, create_pr: bool) -> str | None:
    """Return the URL of what holds the folder already: the branch, or an open pull request; None if nothing does."""
    if not plan.changed and not plan.deleted:
        return f"{api.endpoint}/{plan.repo_id}/commit/{plan.parent}"
    if not create_pr:
        return None
    with _hub_says(f"the pull requests of {plan.repo_id} cannot be read"):
        for request in api.get_repo_discussions(plan.repo_id, discussion_type="pull_request", discussion_status="open"):
            there = _digests(api, plan.repo_id, f"refs/pr/{request.num}")
            if all(_is_same(content, there.get(name)) for name, content in plan.files.items()):
                return f"{api.endpoint}/{plan.repo_id}/discussions/{request.num}"
    return None


def _check_visible(plan: Push, private: bool) -> None:
    if private and plan.exists and not plan.private:
        raise SettingsError(f"{plan.repo_id} is there and public: make it private in its settings first, then push")


def _check_card_there(api: HfApi, plan: Push) -> None:
    """Raise SettingsError if the push would overwrite a card that somebody wrote on the Hub."""
    if "README.md" not in plan.changed or plan.parent is None:
        return
    with _hub_says(f"the card of {plan.repo_id} cannot be read"):
        if "README.md" not in _digests(api, plan.repo_id, plan.parent):
            return
        text = Path(api.hf_hub_download(plan.repo_id, "README.md", revision=plan.parent)).read_text(encoding="utf-8")
    body = text.split("\n---", 1)[1] if text.startswith("---\n") and "\n---" in text else text
    if body.strip("- \n") and not is_rendered(text):  # a front matter alone is what the Hub writes for a new repository
        raise SettingsError(
            f"README.md of {plan.repo_id} was written by hand: move its words to the notes of card.json and delete it "
            "there, or open a pull request (create_pr, --create-pr)"
        )


def _digests(api: HfApi, repo_id: str, revision: str) -> dict[str, tuple[str, str]]:
    """Return (kind, digest) of every file there: the SHA-256 of a large one, git's SHA-1 of another."""
    found = {}
    for file in api.list_repo_tree(repo_id, recursive=True, revision=revision):
        if isinstance(file, RepoFile):
            found[file.path] = ("sha256", file.lfs.sha256) if file.lfs else ("git", file.blob_id)
    return found


def _is_same(content: bytes, there: tuple[str, str] | None) -> bool:
    if there is None:
        return False
    as_git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
    return there[1] == (hashlib.sha256(content) if there[0] == "sha256" else as_git).hexdigest()


def _is_ours(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in _OURS)


def _of_card(name: str) -> bool:
    return name in ("README.md", "card.json", *PICTURES)


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _api(token: str | bool | None) -> HfApi:
    return HfApi(token=token, library_name=LIBRARY, library_version=__version__)


@contextmanager
def _hub_says(what: str) -> Iterator[None]:
    """Turn what the Hub's client raises into a HubError that begins with ``what``."""
    try:
        yield
    except RstHubError:
        raise
    except HfHubHTTPError as error:
        advice = {
            401: "log in (hf auth login) or give a token",
            403: "the token has no right to write there",
            412: "somebody else has changed it meanwhile: push again",
            429: "too many requests: push again later",
        }.get(error.response.status_code, "push again later")
        raise HubError(f"{what}: {advice} ({str(error)[:500]})") from error
    except Exception as error:  # the client's HTTP library, of either version, has errors of its own
        raise HubError(f"{what}: {type(error).__name__} {str(error)[:500]}") from error
