"""A hub on loopback: as much of the Hugging Face hub's protocol as huggingface_hub and datasets speak."""

import base64
import hashlib
import json
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from huggingface_hub import constants

from mdpo.hub import repositories

_API = re.compile(
    r"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)(?:/(?P<verb>auth-check|revision|tree|paths-info)(?:/(?P<revision>[^/]+)(?:/(?P<path>.*))?)?)?"
)
_WRITES = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/(?P<verb>preupload|commit)/(?P<branch>[^/]+)")
_GATED = ("GatedRepo", "Access to this repository is restricted")
_FILE = re.compile(r"(?:/(?P<kind>datasets))?/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


@dataclass
class Repo:
    """folders: what it holds, by commit. refs: commits by branch or tag. readers: the tokens that may read it; None:
    all.
    """

    folders: dict[str, Path]
    refs: dict[str, str]
    gated: bool = False
    readers: tuple[str, ...] | None = None

    def commit(self, revision: str | None) -> str | None:
        name = "main" if revision is None else revision
        return self.refs.get(name, name if name in self.folders else None)


@dataclass
class Hub:
    """url: its endpoint. folder: where it keeps what it serves. down: whether it answers with an error of its own.
    requests: method and path of each, in order. writer: the token that may write, in the account "tiny". full: whether
    it takes no commits."""

    folder: Path
    url: str = ""
    down: bool = False
    full: bool = False
    writer: str = "hf_may_write"
    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def add(self, name: str, folder: Path, *, kind: str = "models", branch: str = "main", **options) -> str:
        """Publishes a copy of ``folder`` as the newest commit of a branch, which is returned."""
        repo = self.repos.setdefault((kind, name), Repo({}, {}, **options))
        commit = hashlib.sha1(f"{kind} {name} {len(repo.folders)}".encode()).hexdigest()
        kept = self.folder / commit
        shutil.copytree(folder, kept)
        (kept / ".gitattributes").touch()
        repo.folders[commit], repo.refs[branch] = kept, commit
        return commit

    def fetched(self) -> set[str]:
        """The files that were read, without the folders they are in."""
        return {path.rsplit("/", 1)[1] for path in self.requests if path.startswith("GET ") and "/resolve/" in path}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def log_message(self, *_) -> None:
        pass

    def _answer(self, body: bytes = b"") -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        api, file = _API.fullmatch(urlsplit(self.path).path), _FILE.fullmatch(urlsplit(self.path).path)
        match = api or file
        repo = match and self.hub.repos.get((match["kind"] or "models", match["repo"]))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if self.hub.down:
            self._send(503)
            return
        if path == "/api/validate-yaml":
            self._send(200, json.dumps({"errors": [], "warnings": []}).encode())
            return
        writes = _WRITES.fullmatch(path)
        if writes or path == "/api/repos/create":
            if token != self.hub.writer:
                self._send(401, error=("Unauthorized", "Invalid credentials in Authorization header"))
            elif writes is None:
                self._create(json.loads(body))
            else:
                self._write(writes, body)
            return
        if match is None or repo is None or repo.readers is not None and not repo.gated and token not in repo.readers:
            self._send(401, error=("RepoNotFound", "Repository not found"))
            return
        revision = match["revision"] and unquote(match["revision"])
        commit = repo.commit(revision)
        allowed = not repo.gated or token in (repo.readers or ())
        if commit is None:
            self._send(404, error=("RevisionNotFound", f"Invalid rev id: {revision}"))
        elif api and api["verb"] == "auth-check":
            self._send(200) if allowed else self._send(403, error=_GATED)
        elif file:
            self._file(repo.folders[commit] / unquote(file["path"]), commit, allowed)
        else:
            self._api(match, repo, commit, body)

    def _create(self, asked: dict) -> None:
        name = f"{asked.get('organization') or 'tiny'}/{asked['name']}"
        if ("models", name) in self.hub.repos:
            self._send(409, error=("Conflict", "You already created this model repo"))
            return
        self.hub.add(name, Path(tempfile.mkdtemp(dir=self.hub.folder)))
        self._send(200, json.dumps({"url": f"{self.hub.url}/{name}", "id": name}).encode())

    def _write(self, match: re.Match, body: bytes) -> None:
        """All files go inside the commit, as small ones do; how large ones travel is huggingface_hub's own affair."""
        repo = self.hub.repos.get(("models", match["repo"]))
        if repo is None or repo.commit(match["branch"]) is None:
            self._send(404, error=("RevisionNotFound", f"Invalid rev id: {match['branch']}"))
        elif self.hub.full:
            self._send(413, error=("TooLarge", "Private repository storage limit reached"))
        elif match["verb"] == "preupload":
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._send(200, json.dumps({"files": files}).encode())
        else:
            scratch = Path(tempfile.mkdtemp(dir=self.hub.folder))
            shutil.copytree(repo.folders[str(repo.commit(match["branch"]))], scratch, dirs_exist_ok=True)
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    target = scratch / line["value"]["path"]
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(base64.b64decode(line["value"]["content"]))
            commit = self.hub.add(match["repo"], scratch, branch=match["branch"])
            answer = {
                "commitUrl": f"{self.hub.url}/{match['repo']}/commit/{commit}",
                "commitOid": commit,
                "success": True,
            }
            self._send(200, json.dumps(answer).encode())

    def _file(self, path: Path, commit: str, allowed: bool) -> None:
        if not allowed:
            self._send(403, error=_GATED)
        elif not path.is_file():
            self._send(404, error=("EntryNotFound", "Entry not found"))
        else:
            content = path.read_bytes()
            self._send(200, content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": commit})

    def _api(self, match: re.Match, repo: Repo, commit: str, body: bytes) -> None:
        folder = repo.folders[commit]
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        if match["verb"] in ("tree", "paths-info"):
            asked = parse_qs(body.decode()).get("paths") if match["verb"] == "paths-info" else None
            below = unquote(match["path"] or "") if match["verb"] == "tree" else ""
            if asked is None and not (folder / below).is_dir():
                self._send(404, error=("EntryNotFound", f"{below} does not exist"))
                return
            deep = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() in ("true", "1")
            entries = [
                entry
                for path in sorted(folder.rglob("*"))
                if (entry := _entry(path, folder))
                and (entry["path"] in asked if asked is not None else _below(path, folder / below, deep))
            ]
            self._send(200, json.dumps(entries).encode())
            return
        about = {
            "_id": "0",
            "id": match["repo"],
            "sha": commit,
            "private": False,
            "gated": "manual" if repo.gated else False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": [{"rfilename": path.relative_to(folder).as_posix()} for path in files],
        }
        self._send(200, json.dumps(about).encode())

    def _send(self, status: int, content: bytes = b"", headers=None, error: tuple[str, str] | None = None) -> None:
        self.send_response(status)
        named = {} if error is None else {"X-Error-Code": error[0], "X-Error-Message": error[1]}
        kind = "application/json" if urlsplit(self.path).path.startswith("/api/") else "application/octet-stream"
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            **named,
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _entry(path: Path, folder: Path) -> dict:
    name = path.relative_to(folder).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": hashlib.sha1(name.encode()).hexdigest(), "size": 0}
    content = path.read_bytes()
    return {"type": "file", "path": name, "oid": hashlib.sha1(content).hexdigest(), "size": len(content)}


def _below(path: Path, folder: Path, deep: bool) -> bool:
    return folder in path.parents if deep else path.parent == folder


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub(Path(tempfile.mkdtemp()))
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        shutil.rmtree(hub.folder)


@contextmanager
def asked(monkeypatch, folder: Path) -> Iterator[Hub]:
    """A hub that this process asks, with an empty cache in ``folder`` and nobody logged in."""
    with serving() as server:
        for name, value in {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(folder / "cache"),
            "HF_HUB_OFFLINE": False,
            "HF_TOKEN_PATH": str(folder / "token"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        forget()
        yield server
    forget()


def forget() -> None:
    """As a new process."""
    repositories._look.cache_clear()
    repositories._fetch.cache_clear()
