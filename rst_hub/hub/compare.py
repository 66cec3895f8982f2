"""What a push would change on the Hub, and what it must not do to what is there."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, get_session
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import hf_raise_for_status
from huggingface_hub.utils.sha import git_hash

from ..cards.card import is_rendered
from ..cards.pictures import PICTURES
from ..errors import HubError, RstHubError, SettingsError, cause, foreign, printable
from .listing import UNAUTHORISED, hub_api

_OURS = re.compile(
    r"config\.json|card\.json|README\.md|ticket-[^/]+\.safetensors|results/[^/.][^/]*\.json|"
    + "|".join(map(re.escape, PICTURES))
)
"""What a folder of tickets holds. Nothing else is sent; and of these, what the folder has no more is deleted there."""


@dataclass(frozen=True)
class Push:
    """What a push does: ``files`` is the whole folder by path, of which ``changed`` is sent and ``deleted`` removed.

    ``exists`` and ``branch_exists`` say what is on the Hub, ``present`` which files; ``parent`` is the commit that the
    new one follows. ``held`` is what holds the whole folder already, so that nothing is sent.
    """

    repo_id: str
    files: Mapping[str, bytes]
    changed: tuple[str, ...]
    deleted: tuple[str, ...]
    exists: bool
    branch_exists: bool
    parent: str | None
    private: bool | None
    present: frozenset[str]
    held: "Held | None" = None


@dataclass(frozen=True)
class Held:
    """What on the Hub holds a folder, "branch main" or "pull request 3", and its URL."""

    what: str
    url: str


def compare_with_hub(files: Mapping[str, bytes], repo_id: str, revision: str | None, token: str | bool | None) -> Push:
    """Return what has to change on the Hub."""
    api, branch_exists = hub_api(token), True
    with hub_says(f"{repo_id} cannot be compared with what is there"):
        try:
            info = api.model_info(repo_id, revision=revision)
        except RevisionNotFoundError:
            branch_exists, info = False, api.model_info(repo_id)
        except RepositoryNotFoundError:
            return Push(repo_id, files, tuple(files), (), False, False, None, None, frozenset())
        parent = str(info.sha)
        there = digests_there(api, repo_id, parent)
    changed = tuple(name for name, content in files.items() if not is_same(content, there.get(name)))
    deleted = tuple(name for name in there if is_ours(name) and name not in files)
    return Push(repo_id, files, changed, deleted, True, branch_exists, parent, info.private, frozenset(there))


def check_allowed(api: HfApi, plan: Push, private: bool | None, create_pr: bool, replace: bool) -> None:
    """Raise SettingsError, before anything is sent, for what a push must not do to what is there."""
    where = plan.repo_id
    _check_metadata(api, plan.files["README.md"])
    if create_pr and not (plan.exists and plan.branch_exists):
        raise SettingsError(f"{where} or its branch is not there, so there is nothing to open a pull request for")
    if not plan.exists:
        return
    if private and not plan.private:
        raise SettingsError(f"{where} is there and public: make it private in its settings first, then push")
    if not create_pr and (plan.changed or plan.deleted):
        _check_loss(api, plan, replace)


def _check_loss(api: HfApi, plan: Push, replace: bool) -> None:
    """Raise SettingsError for a push that would lose what somebody published or wrote there."""
    where, present = plan.repo_id, plan.present
    lost = [name for name in (*plan.changed, *plan.deleted) if name.startswith("ticket-") and name in present]
    if lost and not replace:
        raise SettingsError(
            f"{where} has {', '.join(map(printable, lost[:5]))}, which this would delete or change: take them into the "
            "folder, choose another name, or allow it (replace, --replace)"
        )
    if "config.json" not in present and not replace and any(is_ours(n) and n != "README.md" for n in present):
        raise SettingsError(f"{where} has no config.json, but files that this would change: allow it (--replace)")
    if "card.json" in plan.changed and "card.json" in present and not replace:
        unsaid = sorted(_said(_there(api, plan, "card.json")) - _said(plan.files["card.json"]))
        if unsaid:
            raise SettingsError(f"card.json of {where} says {unsaid}, the folder's does not: add it, or --replace")
    if "config.json" in plan.changed and "config.json" in present and not _is_tickets(_there(api, plan, "config.json")):
        raise SettingsError(f"{where} holds another kind of model: its config.json is no ticket's. Choose another name")
    if "README.md" in plan.changed and "README.md" in present:
        text = _there(api, plan, "README.md").decode(errors="replace")
        body = text.split("\n---", 1)[1] if text.startswith("---\n") and "\n---" in text else text
        if body.strip("- \n") and not is_rendered(text):  # front matter alone is what the Hub writes into a new one
            raise SettingsError(
                f"README.md of {where} was written by hand: move its words to the notes of card.json and delete it "
                "there, or open a pull request (create_pr, --create-pr)"
            )


def _check_metadata(api: HfApi, readme: bytes) -> None:
    """Raise SettingsError if the Hub would not take the card's metadata; asked before a repository is made for it."""
    with hub_says("the card cannot be checked"):
        asked = {"repoType": "model", "content": readme.decode()}
        answer = get_session().post(f"{api.endpoint}/api/validate-yaml", json=asked, timeout=30)
        if answer.status_code == 400:
            raise SettingsError(f"the Hub refuses the card's metadata, see card.json: {printable(answer.text, 1000)}")
        hf_raise_for_status(answer)


def _there(api: HfApi, plan: Push, name: str) -> bytes:
    """Return a file of the commit that was compared with."""
    with hub_says(f"{name} of {plan.repo_id} cannot be read"):
        return Path(api.hf_hub_download(plan.repo_id, name, revision=plan.parent)).read_bytes()


def _said(card: bytes) -> set[str]:
    """Return what a card.json says anything about."""
    try:
        return {key for key, value in json.loads(card).items() if value}
    except (ValueError, AttributeError, RecursionError):
        return set()


def _is_tickets(config: bytes) -> bool:
    try:
        return bool(json.loads(config)["architecture"] == "rst")
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def digests_there(api: HfApi, repo_id: str, revision: str) -> dict[str, tuple[str, str]]:
    """Return (kind, digest) of every file there: the SHA-256 of a large one, git's SHA-1 of another."""
    found = {}
    for file in api.list_repo_tree(repo_id, recursive=True, revision=revision):
        if isinstance(file, RepoFile):
            found[file.path] = ("sha256", file.lfs.sha256) if file.lfs else ("git", file.blob_id)
    return found


def is_same(content: bytes, there: tuple[str, str] | None) -> bool:
    """Say whether a file on the Hub has this content, by its digest."""
    if there is None:
        return False
    return there[1] == (hashlib.sha256(content).hexdigest() if there[0] == "sha256" else git_hash(content))


def is_ours(name: str) -> bool:
    """Say whether a folder of tickets holds files of this name."""
    return _OURS.fullmatch(name) is not None


def of_card(name: str) -> bool:
    """Say whether a file belongs to the card."""
    return name in ("README.md", "card.json", *PICTURES)


@contextmanager
def hub_says(what: str) -> Iterator[None]:
    """Turn what the Hub's client raises into a HubError that begins with ``what``."""
    try:
        yield
    except RstHubError:
        raise
    except HfHubHTTPError as error:
        advice = {
            401: UNAUTHORISED,
            400: "the Hub does not take it",
            403: "the token has no right to do that there",
            404: "it is not there, or no branch: a commit or a tag cannot be pushed to",
            412: "somebody else has changed it meanwhile: push again",
            429: "too many requests: push again later",
        }.get(error.response.status_code, "push again later")
        raise HubError(f"{what}: {advice} ({foreign(error)})") from cause(error)
    except Exception as error:  # the client's HTTP library, of either version, has errors of its own
        raise HubError(f"{what}: {type(error).__name__} {foreign(error)}") from cause(error)
