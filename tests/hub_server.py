"""A Hub of our own for the tests: the real client talks to it over HTTP, and never to another one.

Importing this module starts it and points huggingface_hub at it, so it must be imported before anything that imports
huggingface_hub. Repositories are given with :func:`add_commit`; ``REQUESTS`` lists what was asked.
"""

import hashlib
import os
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMITS: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
"""(commit, files by path) of each repository, oldest first; the last one is ``main``."""
REQUESTS: list[str] = []


def add_commit(repo, folder):
    """Make the files of ``folder`` the newest commit of ``repo``; return its hash."""
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    content = repr((repo, len(COMMITS.get(repo, [])), sorted(files.items()))).encode()
    commit = hashlib.sha1(content).hexdigest()
    COMMITS.setdefault(repo, []).append((commit, files))
    return commit


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body):
        path = urlsplit(self.path).path
        REQUESTS.append(f"{self.command} {path}")
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if len(parts) < 5 or parts[2] != "resolve":
            return self.send(404, {"X-Error-Code": "EntryNotFound"}, b"")
        repo, revision, file = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        if repo not in COMMITS:
            return self.send(401, {"X-Error-Code": "RepoNotFound"}, b"")
        commits = dict(COMMITS[repo])
        commit = COMMITS[repo][-1][0] if revision == "main" else revision
        if commit not in commits:
            return self.send(404, {"X-Error-Code": "RevisionNotFound"}, b"")
        if file not in commits[commit]:
            return self.send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b"")
        body = commits[commit][file]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(body).hexdigest()}"'}
        return self.send(200, headers, body, with_body)

    def send(self, status, headers, body, with_body=True):
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *arguments):
        pass


_SERVER = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
_SERVER.daemon_threads = True
threading.Thread(target=_SERVER.serve_forever, daemon=True).start()
ENDPOINT = f"http://127.0.0.1:{_SERVER.server_port}"
CACHE = tempfile.TemporaryDirectory(prefix="rst-hub-tests-")
os.environ.update(
    HF_ENDPOINT=ENDPOINT, HF_HUB_CACHE=CACHE.name, HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1", HF_TOKEN=""
)
os.environ.pop("HF_HUB_OFFLINE", None)
