"""`StandIn`: an HTTP server in threads of the test's process, which remembers what it was asked and can misbehave."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import ssl
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

_BLOCK = 1 << 16


@dataclass(frozen=True)
class Asked:
    """One request as it arrived; names of headers are in lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True)
class Answer:
    """What is sent back: `body`, or bytes `start` to `end` of `file`."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    file: Path | None = None
    start: int = 0
    end: int = 0

    @property
    def length(self) -> int:
        return self.end - self.start if self.file else len(self.body)


@dataclass(frozen=True)
class Fault:
    """One way to misbehave; offsets are of the file where it says so, otherwise of this answer's body.

    Attributes:
        path: only requests whose path (or `FilePath`) contains this.
        times: so many requests; None = all.
        after: so many matching requests are answered well before.
        flips: the byte at this offset of the file is another one.
        ignores_range: answers 200 with the whole file.
        cuts_at: closes the connection after so many bytes of the body.
        resets_at: resets it after so many bytes.
        stalls_at: sends nothing more after so many bytes, until the server heals or stops, which ends the answer.
        shortens_to: announces and sends only so many bytes, with 200 or 206 as if that were all.
        drips: sends one byte in so many seconds.
        status: answers this instead, with an error's body.
        retry_after: its `Retry-After`.
        is_page: answers 200 with a web page.
        etag: the file has this `ETag` now.
        shifts_range: answers with bytes that begin so much later than asked.
        encoding: claims this `Content-Encoding`.
    """

    path: str = ""
    times: int | None = 1
    after: int = 0
    flips: int | None = None
    ignores_range: bool = False
    cuts_at: int | None = None
    resets_at: int | None = None
    stalls_at: int | None = None
    shortens_to: int | None = None
    drips: float | None = None
    status: int | None = None
    retry_after: str | None = None
    is_page: bool = False
    etag: str | None = None
    shifts_range: int = 0
    encoding: str | None = None


class StandIn:
    """Serves `answer()` at `url` while the context is entered; `asked` has every request, `faults` are applied to them.

    Args:
        host: name under which it is reached; `localhost` and `127.0.0.1` are different hosts to a client.
        certificate: makes it an https server; the file has the key too.
    """

    def __init__(self, host: str = "127.0.0.1", certificate: Path | None = None) -> None:
        self.asked: list[Asked] = []
        self._faults: list[list[Any]] = []
        self._is_over = threading.Event()
        """Set when the faults of the moment end."""
        self._lock = threading.Lock()
        self.stopping = threading.Event()
        stand_in = self

        class Handler(_Handler):
            owner = stand_in

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        scheme = "http" if certificate is None else "https"
        self.url = f"{scheme}://{host}:{self._server.server_address[1]}"

    def answer(self, asked: Asked) -> Answer:
        """Returns what a well-behaved server would send."""
        return Answer(404, body=b"nothing is here")

    def fails(self, fault: Fault) -> None:
        """Misbehaves from now on."""
        with self._lock:
            self._faults.append([fault, 0])

    def heals(self) -> None:
        """Behaves from now on."""
        with self._lock:
            self._faults.clear()
            self._is_over.set()
            self._is_over = threading.Event()

    def paths(self) -> list[str]:
        """Returns `METHOD path` of all requests."""
        return [f"{asked.method} {asked.path}" for asked in self.asked]

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.stopping.set()
        self.heals()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Any:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _due(self, asked: Asked) -> tuple[Fault, threading.Event]:
        """Returns how to misbehave, and what is set when that ends."""
        where = f"{asked.path} {asked.query.get('FilePath', '')}"
        with self._lock:
            for entry in self._faults:
                fault = entry[0]
                if fault.path not in where:
                    continue
                entry[1] += 1
                if entry[1] > fault.after and (fault.times is None or entry[1] <= fault.after + fault.times):
                    return fault, self._is_over
            return Fault(), self._is_over


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may leave when they like."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: StandIn
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of http.server
        """Says nothing."""

    def _serve(self) -> None:
        split = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(split.query, keep_blank_values=True).items()}
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(headers.get("content-length", 0)))
        asked = Asked(self.command, unquote(split.path), query, headers, body)
        self.owner.asked.append(asked)
        fault, is_over = self.owner._due(asked)
        if fault.ignores_range:
            asked = replace(asked, headers={name: value for name, value in headers.items() if name != "range"})
        if fault.etag and headers.get("if-range", fault.etag) != fault.etag:
            asked = replace(asked, headers={name: value for name, value in headers.items() if name != "range"})
        answer = self.owner.answer(asked)
        self._send(asked, _spoiled(answer, fault), fault, is_over)

    do_GET = do_HEAD = do_POST = do_PUT = _serve  # noqa: N815 - the names http.server calls

    def _send(self, asked: Asked, answer: Answer, fault: Fault, is_over: threading.Event) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if "Content-Length" not in answer.headers:
            self.send_header("Content-Length", str(answer.length))
        self.end_headers()
        if asked.method == "HEAD":
            return
        ends = [end for end in (fault.cuts_at, fault.resets_at, fault.stalls_at) if end is not None]
        self._send_body(answer, min([*ends, answer.length]), fault)
        if not ends:
            return
        self.close_connection = True
        self.wfile.flush()
        if fault.stalls_at is not None:
            is_over.wait()
        if fault.resets_at is not None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def _send_body(self, answer: Answer, length: int, fault: Fault) -> None:
        flip = -1 if fault.flips is None else fault.flips - answer.start
        step = _BLOCK if fault.drips is None else 1
        with open(answer.file or os.devnull, "rb") as file:
            file.seek(answer.start if answer.file else 0)
            for offset in range(0, length, step):
                count = min(step, length - offset)
                block = file.read(count) if answer.file else answer.body[offset : offset + count]
                if offset <= flip < offset + count:
                    at = flip - offset
                    block = block[:at] + bytes([block[at] ^ 0xFF]) + block[at + 1 :]
                self.wfile.write(block)
                if fault.drips is not None and self.owner.stopping.wait(fault.drips):
                    return


def _spoiled(answer: Answer, fault: Fault) -> Answer:
    headers = dict(answer.headers)
    if fault.is_page:
        page = b"<!doctype html><html><body>Please log in to the network.</body></html>"
        return Answer(200, {"Content-Type": "text/html; charset=utf-8"}, page)
    if fault.status is not None:
        retry = {} if fault.retry_after is None else {"Retry-After": fault.retry_after}
        return Answer(fault.status, retry, b"no")
    if fault.etag is not None and "ETag" in headers:
        headers["ETag"] = fault.etag
    if fault.encoding is not None:
        headers["Content-Encoding"] = fault.encoding
    if fault.shortens_to is not None and answer.length > fault.shortens_to:
        end, body = answer.start + fault.shortens_to, answer.body[: fault.shortens_to]
        answer = replace(answer, end=end, body=body)
    if fault.shifts_range and answer.status == 206:
        first, last, total = re.findall(r"\d+", headers["Content-Range"])
        start = int(first) + fault.shifts_range
        headers["Content-Range"] = f"bytes {start}-{last}/{total}"
        answer = replace(answer, start=start, body=answer.body[fault.shifts_range :])
    return replace(answer, headers=headers)


def json_answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """Returns an answer with a JSON body."""
    return Answer(status, {"Content-Type": "application/json", **(headers or {})}, json.dumps(value).encode())


def file_answer(asked: Asked, file: Path, etag: str | None = None, headers: Mapping[str, str] | None = None) -> Answer:
    """Returns a file or the range of it that was asked for, with `If-Range` as RFC 9110 has it."""
    size = file.stat().st_size
    headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", **(headers or {})}
    if etag is not None:
        headers["ETag"] = etag
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", asked.headers.get("range", ""))
    if match is None or asked.headers.get("if-range", etag) != etag:
        return Answer(200, headers, file=file, end=size)
    start, end = int(match[1]), min(int(match[2]) + 1, size) if match[2] else size
    if start >= size:
        return Answer(416, {**headers, "Content-Range": f"bytes */{size}"})
    return Answer(206, {**headers, "Content-Range": f"bytes {start}-{end - 1}/{size}"}, file=file, start=start, end=end)


def sha256_of(file: Path) -> str:
    """Returns a file's SHA-256."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def git_blob_id(file: Path) -> str:
    """Returns the name that git gives a file's content."""
    data = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
