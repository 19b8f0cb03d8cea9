"""A stand-in of the Hub's HTTP interface on this machine: repositories, large files, commits, cards."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

SIZES = ["n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "n>1B"]
LISTS = ("tags", "task_categories", "language", "source_datasets", "configs", "size_categories")


def faults_of_card(content: str) -> list[str]:
    """Return what the Hub would not take in the metadata of a dataset's card; the rules are those of its own schema."""
    found = re.match(r"\A---\s*\n(.*?)\n---\s*(\n|\Z)", content, re.DOTALL)
    data = yaml.safe_load(found[1]) if found else None
    if not isinstance(data, dict):
        return ["no metadata"]
    faults = [f"{name} is no list" for name in LISTS if name in data and not isinstance(data[name], list)]
    names = [one.get("config_name") for one in data.get("configs", [])]
    infos = data.get("dataset_info", [])
    infos = infos if isinstance(infos, list) else [infos]
    faults += [f"{name} twice" for name in names if names.count(name) > 1]
    faults += ["a configuration without files" for one in data.get("configs", []) if not one.get("data_files")]
    faults += [
        f"{one.get('config_name')} is no configuration"
        for one in infos
        if one.get("config_name", "default") not in names
    ]
    faults += [f"{size!r} is no size" for size in data.get("size_categories", []) if size not in SIZES]
    license = data.get("license")
    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", str(license)):
        faults.append(f"{license!r} is no license")
    return faults


class Hub:
    """The state of the stand-in.

    Attributes:
        files: Files of each repository by name, at the head of each branch: ``files["me/x"]["main"]["README.md"]``.
        commits: Every commit: repository, branch, message, and the names that it added and deleted.
        asked: Every request: method and path.
        answers: What to answer instead, by a part of the path: a status, or an event to stall until.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, dict[str, bytes]]] = {}
        self.commits: list[dict[str, Any]] = []
        self.asked: list[tuple[str, str]] = []
        self.tokens: set[str | None] = set()
        self.private: dict[str, Any] = {}
        self.answers: dict[str, int | threading.Event] = {}
        self.stalled = threading.Event()
        self.blobs: dict[str, bytes] = {}
        self.url = ""

    def head(self, repo: str, branch: str) -> str:
        return hashlib.sha1(json.dumps([repo, branch, self.commits], sort_keys=True).encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def send(self, status: int, content: Any = None, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((self.command, path))
        self.hub.tokens.add(self.headers.get("Authorization"))
        for part, what in self.hub.answers.items():
            if part in path:
                if isinstance(what, int):
                    return self.send(what, {"error": f"no {part}"})
                self.hub.stalled.set()
                what.wait(60)
        for pattern, method in ROUTES:
            if found := re.fullmatch(pattern, path):
                return method(self, body, **found.groupdict())
        self.send(404, {"error": f"no such page: {path}"})

    do_GET = do_POST = do_PUT = do_HEAD = answer

    def branches(self, repo: str) -> dict[str, dict[str, bytes]] | None:
        if repo not in self.hub.files:
            self.send(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        return self.hub.files.get(repo)

    def files_at(self, repo: str, revision: str) -> dict[str, bytes] | None:
        if (branches := self.branches(repo)) is None:
            return None
        for branch, files in branches.items():
            if revision in (branch, self.hub.head(repo, branch)):
                return files
        self.send(404, {"error": "Revision not found"}, X_Error_Code="RevisionNotFound")
        return None

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
        status = 409 if repo in self.hub.files else 200
        self.hub.files.setdefault(repo, {"main": {".gitattributes": b""}})
        self.hub.private.setdefault(repo, asked.get("private", asked.get("visibility")))
        self.send(status, {"url": f"{self.hub.url}/datasets/{repo}", "name": repo})

    def branch(self, body: bytes, repo: str, revision: str) -> None:
        if (branches := self.branches(repo)) is not None:
            status = 409 if revision in branches else 200
            branches.setdefault(revision, dict(branches["main"]))
            self.send(status, {})

    def info(self, body: bytes, repo: str, revision: str | None = None) -> None:
        if (files := self.files_at(repo, revision or "main")) is not None:
            branch = next(name for name, some in self.hub.files[repo].items() if some is files)
            found = {
                "id": repo,
                "sha": self.hub.head(repo, branch),
                "tags": [],
                "private": False,
                "downloads": 0,
                "likes": 0,
            }
            self.send(200, {**found, "siblings": [{"rfilename": name} for name in files]})

    def described(self, name: str, content: bytes) -> dict[str, Any]:
        return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def tree(self, body: bytes, repo: str, revision: str, folder: str = "") -> None:
        if (files := self.files_at(repo, revision)) is not None:
            inside = {
                name: content for name, content in files.items() if name.startswith(f"{folder}/" if folder else "")
            }
            folders = sorted({name.rpartition("/")[0] for name in inside} - {"", folder})
            found = [{"type": "directory", "path": name, "oid": "0" * 40, "size": 0} for name in folders]
            self.send(200, [*found, *(self.described(name, content) for name, content in inside.items())])

    def paths(self, body: bytes, repo: str, revision: str) -> None:
        if (files := self.files_at(repo, revision)) is not None:
            wanted = (
                json.loads(body)["paths"]
                if body.startswith(b"{")
                else [unquote(one[6:]) for one in body.decode().split("&")]
            )
            self.send(200, [self.described(name, files[name]) for name in wanted if name in files])

    def resolve(self, body: bytes, repo: str, revision: str, name: str) -> None:
        if (files := self.files_at(repo, revision)) is None:
            return
        if name not in files:
            return self.send(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
        branch = next(branch for branch, some in self.hub.files[repo].items() if some is files)
        digest = hashlib.sha1(files[name]).hexdigest()
        self.send(200, files[name], ETag=f'"{digest}"', X_Repo_Commit=self.hub.head(repo, branch))

    def validate(self, body: bytes) -> None:
        faults = faults_of_card(json.loads(body)["content"])
        self.send(400 if faults else 200, {"errors": [{"message": fault} for fault in faults], "warnings": []})

    def preupload(self, body: bytes, repo: str, revision: str) -> None:
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".parquet") else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self.send(200, {"files": modes})

    def batch(self, body: bytes, repo: str) -> None:
        objects = [
            {
                **one,
                **(
                    {}
                    if one["oid"] in self.hub.blobs
                    else {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}}}
                ),
            }
            for one in json.loads(body)["objects"]
        ]
        self.send(200, {"transfer": "basic", "objects": objects})

    def large(self, body: bytes, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.blobs[oid] = body
        self.send(200, {})

    def commit(self, body: bytes, repo: str, revision: str) -> None:
        if (files := self.files_at(repo, revision)) is None:
            return
        lines = [json.loads(line) for line in body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, self.hub.head(repo, revision)):
            return self.send(412, {"error": "A commit has happened since. Please refresh and try again."})
        added, deleted = {}, []
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                added[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                added[value["path"]] = self.hub.blobs[value["oid"]]
            else:
                deleted.append(value["path"])
        self.hub.files[repo][revision] = {**{name: files[name] for name in files if name not in deleted}, **added}
        made = {
            "repo": repo,
            "branch": revision,
            "message": header["summary"],
            "added": sorted(added),
            "deleted": deleted,
        }
        self.hub.commits.append(made)
        head = self.hub.head(repo, revision)
        self.send(
            200, {"commitUrl": f"{self.hub.url}/datasets/{repo}/commit/{head}", "commitOid": head, "success": True}
        )


_REPO, _REV = r"(?P<repo>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"
ROUTES = [
    (r"/api/repos/create", Handler.create),
    (r"/api/validate-yaml", Handler.validate),
    (rf"/api/datasets/{_REPO}", Handler.info),
    (rf"/api/datasets/{_REPO}/revision/{_REV}", Handler.info),
    (rf"/api/datasets/{_REPO}/branch/{_REV}", Handler.branch),
    (rf"/api/datasets/{_REPO}/preupload/{_REV}", Handler.preupload),
    (rf"/api/datasets/{_REPO}/commit/{_REV}", Handler.commit),
    (rf"/api/datasets/{_REPO}/paths-info/{_REV}", Handler.paths),
    (rf"/api/datasets/{_REPO}/tree/{_REV}(?:/(?P<folder>.+))?", Handler.tree),
    (rf"/datasets/{_REPO}\.git/info/lfs/objects/batch", Handler.batch),
    (r"/lfs/(?P<oid>[0-9a-f]+)", Handler.large),
    (rf"/datasets/{_REPO}/resolve/{_REV}/(?P<name>.+)", Handler.resolve),
]


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Run a stand-in as long as the block lasts."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        for what in hub.answers.values():
            if isinstance(what, threading.Event):
                what.set()
        server.shutdown()
        server.server_close()
        thread.join()
