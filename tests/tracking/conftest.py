"""For the tests of the mirror: a reader of W&B's offline run files, and servers on the loopback, good and bad."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import json
import re
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

_BLOCK = 32768  # of the file: records do not lie across blocks in one piece


def _records(path: Path) -> Iterator[Any]:
    """The protocol buffers in a ``.wandb`` file, which has LevelDB's log format behind seven bytes of its own."""
    from wandb.proto import wandb_internal_pb2

    data, place, parts = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while place < len(data):
        left = _BLOCK - place % _BLOCK
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def _put(target: dict[str, Any], item: Any) -> None:
    keys = list(item.nested_key) or [item.key]
    for key in keys[:-1]:
        target = target.setdefault(key, {})
    target[keys[-1]] = json.loads(item.value_json)


def read(folder: Path) -> dict[str, Any]:
    """What an offline run holds: ``run`` (its record), ``config``, ``history``, ``summary``, ``tables``, ``files``,
    ``stats`` (how many samples of the system's load) and ``text`` (all records as text)."""
    (path,) = folder.glob("*.wandb")
    found: dict[str, Any] = {"config": {}, "history": [], "summary": {}, "files": {}, "tags": []}
    found |= {"stats": 0, "text": ""}
    for record in _records(path):
        found["text"] += str(record)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found["run"] = record.run
            for item in record.run.config.update:
                _put(found["config"], item)
            found["tags"] = list(record.run.tags) or found["tags"]
        elif kind == "config":
            for item in record.config.update:
                _put(found["config"], item)
        elif kind == "summary":
            for item in record.summary.update:
                _put(found["summary"], item)
        elif kind == "history":
            line: dict[str, Any] = {}
            for item in record.history.item:
                _put(line, item)
            found["history"].append(line)
        elif kind == "stats":
            found["stats"] += 1
        elif kind == "artifact":
            found["files"] = {entry.path: entry.local_path for entry in record.artifact.manifest.contents}
    logged = {name: value for line in found["history"] for name, value in line.items() if isinstance(value, dict)}
    flat = dict(_media(logged))
    tables = {name: folder / "files" / path for name, (kind, path) in flat.items() if kind == "table-file"}
    found["tables"] = {name: json.loads(path.read_text()) for name, path in tables.items()}
    found["images"] = {name: folder / "files" / path for name, (kind, path) in flat.items() if kind == "image-file"}
    return found


def _media(value: dict[str, Any], name: str = "") -> Iterator[tuple[str, tuple[str, str]]]:
    for key, inner in value.items():
        here = f"{name}.{key}" if name else key
        if isinstance(inner, dict) and "_type" in inner:
            yield here, (inner["_type"], inner["path"])
        elif isinstance(inner, dict):
            yield from _media(inner, here)


@pytest.fixture(scope="session")
def offline() -> Callable[[Path], dict[str, Any]]:
    """The reader of an offline run's folder."""
    return read


class Server(http.server.ThreadingHTTPServer):
    """As much of W&B's server as the sending of runs needs; or one that ``fails``, ``hangs`` or ``drops``."""

    daemon_threads = True

    def __init__(self, how: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.how = how
        self.runs: list[str] = []  # created or changed, in order
        self.summaries: dict[str, dict[str, Any]] = {}
        self.history: dict[str, list[Any]] = {}
        self.uploads: dict[str, bytes] = {}
        self.bodies: list[bytes] = []
        self.asked, self.ended = threading.Event(), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no error here."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, value: Any, code: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _do(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        how = self.server.how
        self.server.asked.set()
        if how == "hangs":
            self.server.ended.wait(60.0)
        if how in ("drops", "hangs"):
            self.close_connection = True
            return None
        if how == "fails":
            return self._answer({}, 500)
        self.server.bodies.append(body)
        if self.command == "PUT":
            self.server.uploads[self.path] = body
            return self._answer({})
        if self.path == "/graphql":
            return self._answer({"data": self._graphql(json.loads(body))})
        if self.path.endswith("/file_stream"):
            run = self.path.split("/")[-2]
            files = json.loads(body).get("files") or {}
            for line in files.get("wandb-summary.json", {}).get("content", []):
                self.server.summaries[run] = json.loads(line)
            if "wandb-history.jsonl" in files:
                part = files["wandb-history.jsonl"]
                lines = self.server.history.setdefault(run, [])
                lines[part["offset"] :] = [json.loads(line) for line in part["content"]]
        return self._answer({})

    do_GET = do_POST = do_PUT = _do

    def _graphql(self, asked: dict[str, Any]) -> Any:
        name = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
        values = asked.get("variables") or {}
        url = self.server.url
        entity = {"id": "e", "name": "e"}
        match name and name.group(1):
            case "UpsertBucket":
                self.server.runs.append(values["name"])
                project = {"id": "p", "name": values["project"], "entity": entity}
                bucket = {"id": values["name"], "name": values["name"], "displayName": values["displayName"]}
                bucket |= {"description": None, "config": "{}", "sweepName": None, "historyLineCount": 0}
                return {"upsertBucket": {"bucket": {**bucket, "project": project}, "inserted": True}}
            case "CreateRunFiles":
                files = [{"name": file, "uploadUrl": f"{url}/{values['run']}/{file}"} for file in values["files"]]
                return {"createRunFiles": {"runID": values["run"], "uploadHeaders": [], "files": files}}
            case "CreateArtifact":
                sequence = {"id": "s", "latestArtifact": None}
                return {"createArtifact": {"artifact": {"id": "a", "state": "PENDING", "artifactSequence": sequence}}}
            case "CreateArtifactManifest":
                file = {"id": "f", "name": "m", "displayName": "m", "uploadUrl": f"{url}/manifest", "uploadHeaders": []}
                return {"createArtifactManifest": {"artifactManifest": {"id": "m", "file": file}}}
            case "CreateArtifactFiles":
                nodes = [
                    {
                        "id": file["name"],
                        "name": file["name"],
                        "displayName": file["name"],
                        "uploadUrl": f"{url}/artifact/{file['name']}",
                        "uploadHeaders": [],
                        "uploadMultipartUrls": None,
                        "storagePath": file["name"],
                        "artifact": {"id": "a"},
                    }
                    for file in values["input"]["artifactFiles"]
                ]
                return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}
            case "CommitArtifact":
                return {"commitArtifact": {"artifact": {"id": "a", "digest": "d"}}}
        return {}


@contextlib.contextmanager
def _serving(how: str) -> Iterator[Server]:
    """A server that runs meanwhile."""
    server = Server(how)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="session")
def serving() -> Callable[[str], contextlib.AbstractContextManager[Server]]:
    """Runs a server of a kind: ``works``, ``fails``, ``hangs``, ``drops``."""
    return _serving


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Server]]:
    """Starts a server of a kind, which the environment then names."""
    with contextlib.ExitStack() as stack:

        def start(how: str) -> Server:
            server = stack.enter_context(_serving(how))
            monkeypatch.setenv("WANDB_BASE_URL", server.url)
            monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef" * 2 + "01234567")
            return server

        yield start
