"""A Hub of our own for the tests: the real client talks to it over HTTP, and never to another one.

Importing this module starts it and points huggingface_hub at it, so it must be imported before anything that imports
huggingface_hub. It holds model repositories (``REPOS``) with their commits, branches, tags, pull requests and LFS
files, and refuses what the Hub refuses, in the ways that the client tells apart. Tests give it repositories with
:func:`add_commit` or through the client; ``REQUESTS`` lists what was asked, ``FAULTS`` makes requests fail.
"""

import atexit
import base64
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote, urlencode

import yaml

PAGE = 100
LFS = (".safetensors", ".png")


def _now():
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass
class Commit:
    files: dict[str, bytes]
    parent: str | None
    message: str
    author: str
    date: str = field(default_factory=_now)


@dataclass
class PullRequest:
    title: str
    author: str
    head: str
    status: str = "open"
    date: str = field(default_factory=_now)


@dataclass
class Repository:
    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pull_requests: dict[int, PullRequest] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)  # what LFS stores by SHA-256, committed or not
    created: str = field(default_factory=_now)


@dataclass
class Fault:
    """What goes wrong, ``times`` times, with requests of this method whose raw path and query have this part.

    ``kind`` is a status such as 429 or 500, or "drop" (nothing is done, the connection is closed), "drop_after" (it is
    done, and the connection closed), "truncate" (half of the body), "flip" (one bit of it), "slow" (half a second) or
    "echo" (a status of 400 whose reason repeats the token, as some proxies' do).
    """

    method: str
    part: str
    kind: str | int
    times: int = 1


REPOS: dict[str, Repository] = {}
REQUESTS: list[str] = []
USER_AGENTS: list[str] = []
FAULTS: list[Fault] = []
LEAKED: list[str] = []
"""Requests to the storage of LFS, which is not on the Hub's own host, that had a token with them."""
TOKENS = {  # user, organisations, role
    "hf_writer": ("writer", ["org"], "write"),
    "hf_reader": ("reader", ["org"], "read"),
    "hf_stranger": ("stranger", [], "write"),
}
REDIRECT = False
"""Whether a download of an LFS file is sent on to that other host, as the Hub does."""
LOCK = threading.RLock()


def add_commit(repo, folder, private=False):
    """Make the files of ``folder`` the newest commit of ``main``; return its hash. Makes the repository if need be."""
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    with LOCK:
        state = REPOS.setdefault(repo, Repository(private))
        state.objects |= {_sha256(content): content for path, content in files.items() if _is_lfs(path, content)}
        state.branches["main"] = _commit(repo, files, state.branches.get("main"), "add_commit", repo.split("/")[0])
        return state.branches["main"]


def head(repo, revision="main"):
    """Return the commit of a branch, a tag, ``refs/pr/N`` or a hash."""
    with LOCK:
        return _resolve(REPOS[repo], revision)


def files_of(repo, revision="main"):
    """Return the content of each file of a revision by its path."""
    return dict(REPOS[repo].commits[head(repo, revision)].files)


def close_pull_request(repo, number):
    REPOS[repo].pull_requests[number].status = "closed"


def reset():
    """Forget all repositories, requests, faults and leaks, and what the client has in its cache."""
    global REDIRECT
    with LOCK:
        REDIRECT = False
        for state in (REPOS, REQUESTS, USER_AGENTS, FAULTS, LEAKED):
            state.clear()
    for path in Path(CACHE.name).iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


class HubError(Exception):
    """A request that is refused: the status, the reason, and the code by which the client knows it."""

    def __init__(self, status, message, code=None, headers=None):
        super().__init__(message)
        coded = {"X-Error-Code": code} if code else {}
        coded["X-Error-Message"] = ascii(message)[1:-1]  # a header has no line breaks
        self.answer = _json({"error": message}, status, {**coded, **(headers or {})})


def _json(value, status=200, headers=None):
    body = json.dumps(value, default=str).encode()  # YAML has dates
    return status, {"Content-Type": "application/json", **(headers or {})}, body


def _sha256(content):
    return hashlib.sha256(content).hexdigest()


def _is_lfs(path, content):
    return path.endswith(LFS) and content != b""  # empty ones the client commits as regular files


@lru_cache(1000)
def _stored(path, content):
    """Return what tells that a download is current, the git object, and of an LFS file what LFS knows of it."""
    lfs, kept = {}, content
    if _is_lfs(path, content):
        oid = _sha256(content)
        kept = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(content)}\n".encode()
        lfs = {"lfs": {"oid": oid, "sha256": oid, "size": len(content), "pointerSize": len(kept)}}
    blob = hashlib.sha1(b"blob %d\0" % len(kept) + kept).hexdigest()
    return lfs["lfs"]["oid"] if lfs else blob, blob, lfs


def _commit(name, files, parent, message, author):
    commits = REPOS[name].commits
    content = sorted((path, _sha256(content)) for path, content in files.items())
    commit = hashlib.sha1(repr((name, len(commits), parent, message, content)).encode()).hexdigest()
    commits[commit] = Commit(files, parent, message, author)
    return commit


def _resolve(repo, revision):
    pulls = {f"refs/pr/{number}": pull.head for number, pull in repo.pull_requests.items()}
    commit = {**pulls, **repo.tags, **repo.branches}.get(revision, revision)
    if commit not in repo.commits:
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return commit


def _branch(repo, revision):
    """Return the commit of what can be committed to: a branch or an open pull request."""
    pulls = {f"refs/pr/{number}" for number, pull in repo.pull_requests.items() if pull.status == "open"}
    return _resolve(repo, revision if revision in {*repo.branches, *pulls} else f"no branch {revision}")


def _apply(repo, before, operations):
    """Return the files after a commit's operations; refuse all of them if one is wrong."""
    files = dict(before)
    for key, value in sorted(operations, key=lambda item: not item[0].startswith("deleted")):  # deletions come first
        path = value["path"].removesuffix("/" if key == "deletedFolder" else "")
        if any(part in ("", ".", "..", ".git") for part in path.split("/")) or not path.isprintable():
            raise HubError(400, f"Invalid path: {path}")
        if key.startswith("deleted"):
            gone = [one for one in before if (one.startswith(path + "/") if key == "deletedFolder" else one == path)]
            if not gone:
                raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            files = {one: content for one, content in files.items() if one not in gone}
        elif key == "file":
            files[path] = base64.b64decode(value["content"])
        elif len(repo.objects.get(value["oid"], b"")) != value["size"]:
            raise HubError(400, f"LFS pointer pointed to a file that does not exist: {path}")
        else:
            files[path] = repo.objects[value["oid"]]
    if any(str(parent) in files for path in files for parent in PurePosixPath(path).parents):
        raise HubError(400, "A path is that of a file and of a folder")
    return files


def _entries(files, folder, recursive):
    """Return the files and folders in a folder, or also in those below."""
    prefix, entries = f"{folder}/" if folder else "", {}
    for path, content in sorted(files.items()):
        parts = path.removeprefix(prefix).split("/") if path.startswith(prefix) else []
        for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
            below = prefix + "/".join(parts[:depth])
            entries[below] = {"type": "directory", "path": below, "oid": _sha256(below.encode())[:40], "size": 0}
        if len(parts) == 1 or (parts and recursive):
            _, blob, lfs = _stored(path, content)
            entries[path] = {"type": "file", "path": path, "size": len(content), "oid": blob, **lfs}
    return list(entries.values())


def _metadata(readme):
    """Return what is between the --- lines at the top of a model card; raise YAMLError if that is no YAML."""
    block = re.match(r"\s*---[\r\n]+(.*?)[\r\n]+---(?:\r?\n|$)", readme, re.DOTALL)
    card = yaml.safe_load(block[1]) if block else None
    return {} if card is None else card


def _card_errors(readme):
    try:
        card, needed = _metadata(readme), []
        if not isinstance(card, dict):
            return ["The metadata must be a mapping"]
        for entry in card.get("model-index", []):
            needed.append(entry["name"])
            for result in entry["results"]:
                needed += [result["task"]["type"], result["dataset"]["type"], result["dataset"]["name"]]
                needed += [metric[key] for metric in result["metrics"] for key in ("type", "value")]
    except (yaml.YAMLError, ValueError) as error:  # such as a 31st of June
        return [f"Invalid YAML: {error}"]
    except (KeyError, TypeError) as error:
        return [f"model-index is malformed: {error!r}"]
    return ["model-index has an empty value"] if None in needed or "" in needed else []


def _info(name, commit, blobs=False):
    """Return all that the Hub knows of a model at a commit."""
    repo, files, tags = REPOS[name], REPOS[name].commits[commit].files, []
    readme = files.get("README.md", b"").decode(errors="replace")
    try:
        card = _metadata(readme)
    except (yaml.YAMLError, ValueError):
        card = {}
    card = card if isinstance(card, dict) else {}
    prefixes = {"library_name": "", "pipeline_tag": "", "tags": "", "datasets": "dataset:", "license": "license:"}
    for key, prefix in prefixes.items():
        values = card.get(key) or []
        tags += [f"{prefix}{value}" for value in (values if isinstance(values, list) else [values])]
    siblings = [{"rfilename": path} for path in sorted(files)]
    for sibling in siblings if blobs else ():
        content = files[sibling["rfilename"]]
        _, blob, lfs = _stored(sibling["rfilename"], content)
        sibling |= {"size": len(content), "blobId": blob, **lfs}
    return {
        **{"id": name, "modelId": name, "author": name.split("/")[0], "sha": commit, "private": repo.private},
        **{"createdAt": repo.created, "lastModified": repo.commits[commit].date},
        **{"gated": False, "downloads": 0, "likes": 0, "tags": list(dict.fromkeys(tags)), "siblings": siblings},
        **{key: card.get(key) for key in ("library_name", "pipeline_tag", "model-index")},
        "cardData": card,
    }


_ROUTES = []


def _route(method, path):
    """Let a method answer these requests. Raw paths are matched: the name of a branch has its slashes as %2F."""
    kinds = {"name": "[^/]+/[^/]+", "path": ".+", "kind": "branch|tag"}
    pattern = re.compile(re.sub(r"\{(\w+)\}", lambda m: f"(?P<{m[1]}>{kinds.get(m[1], '[^/]+')})", path))
    return lambda function: _ROUTES.append((method, pattern, function)) or function


class _Handler(BaseHTTPRequestHandler):
    """Methods with a route return what becomes JSON, or a status, headers and a body."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # the headers and the body are two writes: the second must not wait for the first

    def handle_request(self):
        # whatever becomes of it: closing a connection with something unread would reset it
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.raw_path, _, query = self.path.partition("?")
        self.query = parse_qs(query, keep_blank_values=True)
        with LOCK:
            fault = next((fault for fault in FAULTS if fault.method == self.command and fault.part in self.path), None)
            if fault:
                fault.times -= 1
                FAULTS[:] = [one for one in FAULTS if one.times > 0]
            line = f"{self.command} {unquote(self.raw_path)}"
            if self.raw_path != "/api/agent-harnesses":  # the client asks that once a day, whatever a test does
                REQUESTS.append(line)
                USER_AGENTS.append(self.headers.get("User-Agent", ""))
            if self.raw_path.startswith("/lfs/") and "Authorization" in self.headers:
                LEAKED.append(line)
        kind = fault.kind if fault else None
        self.close_connection = self.close_connection or kind in ("drop", "drop_after", "truncate")
        if kind == "slow":
            time.sleep(0.5)
        if isinstance(kind, int):
            self.send(*HubError(kind, "A fault that the tests asked for", headers={"Retry-After": "0"}).answer)
        elif kind == "echo":
            self.send(*HubError(400, f"Bad header: Authorization: {self.headers.get('Authorization')}").answer)
        elif kind != "drop":
            answer = self.answer()
            if kind != "drop_after":
                self.send(*answer, kind)

    do_HEAD = do_GET = do_POST = do_PUT = do_DELETE = handle_request  # noqa: N815

    def send(self, status, headers, body, kind=None):
        half = len(body) // 2
        if kind == "flip" and body:
            body = body[:half] + bytes([body[half] ^ 1]) + body[half + 1 :]
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:half] if kind == "truncate" else body)

    def log_message(self, *arguments):
        pass

    def answer(self):
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.user = TOKENS.get(token)
        try:
            if token and not self.user:
                raise HubError(401, "Invalid credentials in Authorization header")
            for method, pattern, function in _ROUTES:
                match = pattern.fullmatch(self.raw_path)
                if match and method == ("GET" if self.command == "HEAD" else self.command):
                    with LOCK:
                        answer = function(self, **{key: unquote(value) for key, value in match.groupdict().items()})
                    return answer if isinstance(answer, tuple) else _json(answer)
            if re.fullmatch(r"/(api/)?(datasets|spaces)/.*|/api/models/[^/]+|/[^/]+/resolve/.*", self.raw_path):
                raise HubError(404 if self.user else 401, "Repository not found", "RepoNotFound")
            raise HubError(501, "The tests' Hub does not know this request")  # no status that the client tries again
        except HubError as error:
            return error.answer
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:  # of what was sent
            return HubError(400, f"Bad request: {error!r}").answer

    def asked(self, name, default=""):
        return self.query.get(name, [default])[0]

    def owns(self, name):
        return self.user is not None and name.split("/")[0] in (self.user[0], *self.user[1])

    def sees(self, name):
        return name in REPOS and (not REPOS[name].private or self.owns(name))

    def readable(self, name):
        """Return a repository that the user may see; to others a private one is not there."""
        if not self.sees(name):
            raise HubError(404 if self.user else 401, "Repository not found", "RepoNotFound")
        return REPOS[name]

    def may_write(self, name, code=None, anyone=False):
        if self.user is None:
            raise HubError(401, "Invalid username or password.", code)
        if self.user[2] != "write" or not (anyone or self.owns(name)):
            raise HubError(403, f"You don't have the rights to write to {name}")

    def writable(self, name, anyone=False):
        """Return a repository that the user may change, or to which they may open a pull request, as anyone may."""
        repo = self.readable(name)
        self.may_write(name, "RepoNotFound", anyone)  # https://huggingface.co needs no code for the client to say that
        return repo

    def page(self, items):
        """Return one page of a list, and where the next one is."""
        start = int(self.asked("cursor", 0))
        stop = start + min(int(self.asked("limit", PAGE)), PAGE)
        following = f"{ENDPOINT}{self.raw_path}?{urlencode({**self.query, 'cursor': [stop]}, doseq=True)}"
        return _json(items[start:stop], headers={"Link": f'<{following}>; rel="next"'} if stop < len(items) else {})

    def selected(self, info, otherwise):
        """Return what was asked for with expand, else these keys."""
        asked = self.query.get("expand", []) + self.query.get("expand[]", [])
        if not set(asked) <= set(info):
            raise HubError(400, f"The tests' Hub cannot expand all of {asked}")
        keys = {"id", *asked} if asked else otherwise
        return {key: value for key, value in info.items() if key in keys and value is not None}

    def content(self, content, headers):
        """Return a file or the range of it that was asked for, which is how the client goes on with a download."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return 200, {**headers, "Accept-Ranges": "bytes"}, content
        start, stop = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1) + 1
        if start >= stop:
            raise HubError(416, "Range Not Satisfiable", headers={"Content-Range": f"bytes */{len(content)}"})
        return 206, {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}, content[start:stop]

    @_route("GET", "/api/agent-harnesses")
    def harnesses(self):
        return {}

    @_route("GET", "/api/whoami-v2")
    def whoami(self):
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        name, organisations, role = self.user
        auth = {"type": "access_token", "accessToken": {"displayName": "tests", "role": role}}
        return {"type": "user", "name": name, "orgs": [{"name": org} for org in organisations], "auth": auth}

    @_route("POST", "/api/validate-yaml")
    def validate(self):
        errors = [{"message": error} for error in _card_errors(json.loads(self.body)["content"])]
        return _json({"errors": errors, "warnings": []}, 400 if errors else 200)

    @_route("POST", "/api/repos/create")
    def create(self):
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or (self.user or ('',))[0]}/{asked['name']}"
        if asked.get("type") not in (None, "model"):
            raise HubError(400, "The tests' Hub has models only")
        self.may_write(name)
        answer = {"url": f"{ENDPOINT}/{name}", "name": name}
        if name in REPOS:
            return _json({"error": "You already created this model repo", **answer}, 409)
        REPOS[name] = Repository(asked.get("private", asked.get("visibility") == "private"))
        files = {".gitattributes": b"".join(b"*%s filter=lfs diff=lfs merge=lfs -text\n" % end.encode() for end in LFS)}
        REPOS[name].branches["main"] = _commit(name, files, None, "initial commit", self.user[0])
        return answer

    @_route("DELETE", "/api/repos/delete")
    def delete(self):
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or (self.user or ('',))[0]}/{asked['name']}"
        self.writable(name)
        del REPOS[name]
        return {}

    @_route("GET", "/api/models")
    def models(self):
        infos = [_info(name, head(name)) for name in REPOS if self.sees(name)]
        wanted = {*self.query.get("filter", []), *self.query.get("pipeline_tag", [])}  # a library is among the tags too
        author, search, sort = self.asked("author"), self.asked("search").lower(), self.asked("sort")
        infos = [one for one in infos if author in ("", one["author"]) and search in one["id"].lower()]
        infos = [one for one in infos if wanted <= set(one["tags"])]
        if sort:
            infos.sort(key=lambda one: one[sort], reverse=True)
        keys = {"id", "modelId", "createdAt", "private", "downloads", "likes", "library_name", "pipeline_tag", "tags"}
        keys |= {"author", "sha", "lastModified", "gated", "siblings"} if self.asked("full") else set()
        keys |= {"cardData"} if self.asked("cardData") else set()
        return self.page([self.selected(one, keys) for one in infos])

    @_route("GET", "/api/models/{name}")
    @_route("GET", "/api/models/{name}/auth-check")
    @_route("GET", "/api/models/{name}/revision/{revision}")
    def model(self, name, revision="main"):
        info = _info(name, _resolve(self.readable(name), revision), self.asked("blobs") in ("true", "1"))
        return self.selected(info, info.keys() - {"model-index"})

    @_route("GET", "/api/models/{name}/tree/{revision}")
    @_route("GET", "/api/models/{name}/tree/{revision}/{path}")
    def tree(self, name, revision, path=""):
        repo = self.readable(name)
        files = repo.commits[_resolve(repo, revision)].files
        entries = _entries(files, path.strip("/"), self.asked("recursive").lower() in ("true", "1"))
        if path and not entries:
            raise HubError(404, f"{path} does not exist on {revision}", "EntryNotFound")
        return self.page(entries)

    @_route("POST", "/api/models/{name}/paths-info/{revision}")
    def paths_info(self, name, revision):
        repo, paths = self.readable(name), parse_qs(self.body.decode())["paths"]
        entries = _entries(repo.commits[_resolve(repo, revision)].files, "", recursive=True)
        return [entry for entry in entries if entry["path"] in paths]

    @_route("GET", "/api/models/{name}/commits/{revision}")
    def commits(self, name, revision):
        repo, history = self.readable(name), []
        commit = _resolve(repo, revision)
        while commit:
            one = repo.commits[commit]
            title, _, message = one.message.partition("\n\n")
            authors = [{"user": one.author}]
            history.append({"id": commit, "title": title, "message": message, "authors": authors, "date": one.date})
            commit = one.parent
        return self.page(history)

    @_route("GET", "/api/models/{name}/refs")
    def refs(self, name):
        repo = self.readable(name)
        kinds = {"branches": ("heads", repo.branches), "tags": ("tags", repo.tags), "converts": ("convert", {})}
        if self.asked("include_prs"):
            kinds["pullRequests"] = ("pr", {str(number): pull.head for number, pull in repo.pull_requests.items()})
        return {
            kind: [{"name": ref, "ref": f"refs/{place}/{ref}", "targetCommit": commit} for ref, commit in refs.items()]
            for kind, (place, refs) in kinds.items()
        }

    @_route("POST", "/api/models/{name}/{kind}/{target}")
    def add_ref(self, name, kind, target):
        """Make the branch ``target``, or a tag of ``target``."""
        repo, asked = self.writable(name), json.loads(self.body or b"{}")
        new, start = (target, asked.get("startingPoint", "main")) if kind == "branch" else (asked["tag"], target)
        refs = {"branch": repo.branches, "tag": repo.tags}[kind]
        if not re.fullmatch(r"(?!refs/)\w[\w.-]*(/\w[\w.-]*)*", new):
            raise HubError(400, f"Invalid reference name: {new}")
        if new in refs:
            raise HubError(409, f"Reference already exists: {new}")
        refs[new] = _resolve(repo, start)
        return {}

    @_route("DELETE", "/api/models/{name}/{kind}/{ref}")
    def delete_ref(self, name, kind, ref):
        repo = self.writable(name)
        refs = {"branch": repo.branches, "tag": repo.tags}[kind]
        if ref not in refs:
            raise HubError(404, f"Invalid rev id: {ref}", "RevisionNotFound")
        if refs is repo.branches and ref == "main":
            raise HubError(400, "The default branch cannot be deleted")
        del refs[ref]
        return {}

    @_route("GET", "/api/models/{name}/discussions")
    def discussions(self, name):
        status, author, start = self.asked("status"), self.asked("author"), PAGE * int(self.asked("p", 0))
        found = [
            {"num": number, "title": pull.title, "author": {"name": pull.author}, "createdAt": pull.date}
            | {"status": pull.status, "isPullRequest": True, "repo": {"name": name, "type": "model"}}
            for number, pull in reversed(self.readable(name).pull_requests.items())
            if status in ("", "all", pull.status) and author in ("", pull.author) and self.asked("type") != "discussion"
        ]
        return {"discussions": found[start : start + PAGE], "count": len(found), "start": start}

    @_route("POST", "/api/models/{name}/preupload/{revision}")
    def preupload(self, name, revision):
        repo, answers = self.writable(name, anyone=self.asked("create_pr") == "1"), []
        files = repo.commits[_branch(repo, revision)].files
        for path in (file["path"] for file in json.loads(self.body)["files"]):
            current = {"oid": _stored(path, files[path])[0]} if path in files else {}
            mode = "lfs" if path.endswith(LFS) else "regular"
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **current})
        return {"files": answers}

    @_route("POST", "/{name}.git/info/lfs/objects/batch")
    def lfs_batch(self, name):
        asked = json.loads(self.body)
        repo, objects = self.writable(name, anyone="ref" not in asked), []  # for a pull request no branch is named
        for one in asked["objects"]:
            upload = {"href": f"{_STORAGE}/lfs/{name}/{one['oid']}?size={one['size']}"}
            actions = {"upload": upload, "verify": {"href": f"{ENDPOINT}/{name}.git/info/lfs/verify"}}
            objects.append(one if one["oid"] in repo.objects else {**one, "actions": actions})
        return {"transfer": "basic", "objects": objects}

    @_route("PUT", "/lfs/{name}/{oid}")
    def lfs_put(self, name, oid):
        if _sha256(self.body) != oid or len(self.body) != int(self.asked("size")):
            raise HubError(400, "The content is not what was announced")
        REPOS[name].objects[oid] = self.body
        return {}

    @_route("POST", "/{name}.git/info/lfs/verify")
    def lfs_verify(self, name):
        asked = json.loads(self.body)
        if len(self.writable(name, anyone=True).objects.get(asked["oid"], b"")) != asked["size"]:
            raise HubError(404, "There is no such object")
        return {}

    @_route("GET", "/lfs/{name}/{oid}")
    def lfs_get(self, name, oid):
        return self.content(REPOS[name].objects[oid], {"ETag": f'"{oid}"'})

    @_route("POST", "/api/models/{name}/commit/{revision}")
    def commit(self, name, revision):
        create_pr = self.asked("create_pr") == "1"
        repo = self.writable(name, anyone=create_pr)
        lines = [json.loads(line) for line in self.body.splitlines()]
        header, base = lines[0]["value"], _branch(repo, revision)
        parent = header.get("parentCommit") or base
        if parent != base and not create_pr:
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        before = repo.commits[_resolve(repo, parent)].files  # a pull request may start at any commit
        files = _apply(repo, before, [(line["key"], line["value"]) for line in lines[1:]])
        message = f"{header['summary']}\n\n{header.get('description', '')}".strip()
        commit = _commit(name, files, parent, message, self.user[0])
        answer = {"success": True, "commitOid": commit, "commitUrl": f"{ENDPOINT}/{name}/commit/{commit}"}
        if create_pr:
            number = len(repo.pull_requests) + 1
            repo.pull_requests[number] = PullRequest(header["summary"], self.user[0], commit)
            answer["pullRequestUrl"] = f"{ENDPOINT}/{name}/discussions/{number}"
        elif revision in repo.branches:
            repo.branches[revision] = commit
        else:
            repo.pull_requests[int(revision.removeprefix("refs/pr/"))].head = commit
        return answer

    @_route("GET", "/{name}/resolve/{revision}/{path}")
    def download(self, name, revision, path):
        repo = self.readable(name)
        commit = _resolve(repo, revision)
        if path not in repo.commits[commit].files:
            raise HubError(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": commit})
        content = repo.commits[commit].files[path]
        etag, _, lfs = _stored(path, content)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag}"', "Content-Type": "application/octet-stream"}
        if not (REDIRECT and lfs):
            return self.content(content, headers)
        linked = {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content))}
        return 302, {**headers, **linked, "Location": f"{_STORAGE}/lfs/{name}/{etag}"}, b""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Say nothing of a client that went away, as one does that a test stops."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def _serve(host):
    server = _Server((host, 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://{host}:{server.server_port}"


ENDPOINT = _serve("127.0.0.1")
try:  # what LFS stores is on another host, to which the client must not send its token
    _STORAGE = _serve("127.0.0.2")
except OSError:  # macOS has only 127.0.0.1; by another name it is another host to the client
    _STORAGE = ENDPOINT.replace("127.0.0.1", "localhost")
CACHE = tempfile.TemporaryDirectory(prefix="rst-hub-tests-")
atexit.register(CACHE.cleanup)
os.environ.update(
    HF_ENDPOINT=ENDPOINT, HF_HUB_CACHE=CACHE.name, HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1", HF_TOKEN=""
)
os.environ.pop("HF_HUB_OFFLINE", None)
