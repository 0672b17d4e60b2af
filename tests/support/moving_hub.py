"""A local server with the API of the hub: models and datasets whose main branch moves."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

VERBS = "revision|tree|paths-info"
API = re.compile(rf"/api/(models|datasets)/([^/]+/[^/]+)(?:/({VERBS})/([^/]+)(.*))?")
FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


class MovingHub:
    """Repositories by (kind, name), each a list of commits, the last of them on main; tags."""

    def __init__(self) -> None:
        self.commits: dict[tuple[str, str], dict[str, Path]] = {}
        self.tags: dict[tuple[str, str, str], str] = {}
        self.asked: list[str] = []  # paths of the requests

    def push(self, name: str, folder: Path, *, kind: str = "model", tag: str | None = None) -> str:
        """Commit the files of a folder to main; return the commit."""
        commits = self.commits.setdefault((kind, name), {})
        commit = hashlib.sha1(f"{name} {len(commits)}".encode()).hexdigest()
        commits[commit] = folder
        if tag:
            self.tags[kind, name, tag] = commit
        return commit

    def find(self, kind: str, name: str, revision: str) -> tuple[str, Path] | None:
        commits = self.commits.get((kind, name), {})
        commit = self.tags.get((kind, name, revision), revision)
        if revision == "main" and commits:
            commit = list(commits)[-1]
        return (commit, commits[commit]) if commit in commits else None


@contextmanager
def serving(hub: MovingHub) -> Iterator[str]:
    """Yield the address of a server of this hub on the loopback interface."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: MovingHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(path)
        if found := API.fullmatch(path):
            kind, name, verb, revision, below = found.groups()
            self._api(kind.rstrip("s"), name, verb, revision or "main", (below or "").strip("/"))
        elif found := FILE.fullmatch(path):
            dataset, name, revision, file = found.groups()
            self._file("dataset" if dataset else "model", name, revision, file)
        else:
            self._refuse(404, "EntryNotFound")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        form = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.asked.append(self.path)
        found = API.fullmatch(unquote(urlsplit(self.path).path))
        if found is None:
            return self._refuse(404, "EntryNotFound")
        kind, name, _, revision, _ = found.groups()
        at = self.hub.find(kind.rstrip("s"), name, revision)
        if at is None:
            return self._refuse(404, "RevisionNotFound")
        try:
            wanted = json.loads(form)["paths"]
        except ValueError:
            wanted = re.findall(r"paths=([^&]+)", unquote(form.decode()))
        files = [at[1] / path for path in wanted if (at[1] / path).is_file()]
        return self._json([_entry(file, at[1]) for file in files])

    def _api(self, kind: str, name: str, verb: str | None, revision: str, below: str) -> None:
        at = self.hub.find(kind, name, revision)
        if at is None:
            known = (kind, name) in self.hub.commits
            return self._refuse(404, "RevisionNotFound" if known else "RepoNotFound")
        commit, folder = at
        files = sorted(file for file in (folder / below).rglob("*") if file.is_file())
        if verb == "tree":
            if not (folder / below).is_dir():
                return self._refuse(404, "EntryNotFound")
            return self._json([_entry(file, folder) for file in files])
        names = [{"rfilename": str(file.relative_to(folder))} for file in files]
        facts = {"_id": "0", "id": name, "sha": commit, "siblings": names, "private": False}
        return self._json(facts | {"tags": [], "downloads": 0, "likes": 0, "disabled": False})

    def _file(self, kind: str, name: str, revision: str, file: str) -> None:
        at = self.hub.find(kind, name, revision)
        if at is None:
            return self._refuse(404, "RevisionNotFound")
        if not (at[1] / file).is_file():
            return self._refuse(404, "EntryNotFound", commit=at[0])
        content = (at[1] / file).read_bytes()
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": at[0],
            "Accept-Ranges": "bytes",
        }
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return self._send(200, content, headers)
        start, size = int(asked[1]), len(content)
        end = min(int(asked[2] or size - 1), size - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{size}"
        return self._send(206, content[start : end + 1], headers)

    def _refuse(self, status: int, code: str, *, commit: str | None = None) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": code}
        self._send(status, b"", headers | ({"X-Repo-Commit": commit} if commit else {}))

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def _entry(file: Path, folder: Path) -> dict[str, object]:
    content = file.read_bytes()
    return {
        "type": "file",
        "path": str(file.relative_to(folder)),
        "size": len(content),
        "oid": hashlib.sha1(content).hexdigest(),
    }
