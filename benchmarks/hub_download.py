"""Downloads one large file from a server on this machine, with the hub, `huggingface_hub` and curl in turn.

    python benchmarks/hub_download.py
    python benchmarks/hub_download.py --size 4000000000 --folder /dev/shm --connections 1 4 8 --repeats 3

The server uses `sendfile` in a process of its own, so that clients are what is measured. Imports are not counted. curl
neither hashes nor resumes: it is what the network and the disk give. `huggingface_hub` hashes nothing either when
it downloads. CPU seconds are those of the client alone, per GB (10^9 bytes). The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import multiprocessing
import os
import re
import resource
import shutil
import socketserver
import subprocess
import tempfile
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from vllm_mxext.bench.metrics import summarize
from vllm_mxext.bench.report import format_table, json_line

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "model.safetensors"


class Handler(BaseHTTPRequestHandler):
    """Serves one file whatever is asked for, with ranges and with the headers that `huggingface_hub` wants."""

    protocol_version = "HTTP/1.1"
    file: Path
    digest: str

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of the base class
        """Says nothing."""

    def do_HEAD(self) -> None:
        """Answers with headers only."""
        self._answer()

    def do_GET(self) -> None:
        """Answers with the file or a range of it."""
        start, end = self._answer()
        with self.file.open("rb") as file:
            self.wfile.flush()
            while start < end:
                start += os.sendfile(self.connection.fileno(), file.fileno(), start, min(end - start, 2**24))

    def _answer(self) -> tuple[int, int]:
        size = self.file.stat().st_size
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, end = 0, size
        if match:
            start, end = int(match[1]), int(match[2]) + 1 if match[2] else size
        self.send_response(206 if match else 200)
        headers = {"ETag": f'"{self.digest}"', "X-Linked-Etag": f'"{self.digest}"', "X-Linked-Size": str(size)}
        headers |= {"X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes", "Content-Length": str(end - start)}
        if match:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        return start, end


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients may leave."""


def serve(file: Path, digest: str, port: Any) -> None:
    """Serves until the process is ended; tells its port."""
    Handler.file, Handler.digest = file, digest
    socketserver.TCPServer.request_queue_size = 64
    server = _Server(("127.0.0.1", 0), Handler)
    port.send(server.server_address[1])
    server.serve_forever()


def hub(url: str, folder: Path, size: int, digest: str, connections: int) -> None:
    """Fetches with the hub, which hashes every chunk and the whole."""
    from vllm_mxext.config.hub import NetworkConfig  # noqa: PLC0415 - each client pays for its own imports only
    from vllm_mxext.hub.network import Network  # noqa: PLC0415
    from vllm_mxext.hub.sources.interface import RemoteFile  # noqa: PLC0415
    from vllm_mxext.hub.sources.opening import open_source  # noqa: PLC0415
    from vllm_mxext.hub.store.blobs import BlobStore  # noqa: PLC0415
    from vllm_mxext.hub.transfer.fetch import Wanted, fetch  # noqa: PLC0415

    config = NetworkConfig(num_connections=connections)
    with Network(config) as network:
        address = f"{url}/acme/tiny/resolve/main/{NAME}"
        source = open_source(address, None, network)
        file = RemoteFile(NAME, size, digest, address)
        fetch([Wanted(file, source)], BlobStore(folder), config, model="m")


def hugging_face(url: str, folder: Path, size: int, digest: str, connections: int) -> None:
    """Fetches with `huggingface_hub`: one connection, nothing hashed."""
    del size, digest, connections
    from huggingface_hub import hf_hub_download  # noqa: PLC0415

    hf_hub_download("acme/tiny", NAME, cache_dir=folder, endpoint=url)


def curl(url: str, folder: Path, size: int, digest: str, connections: int) -> None:
    """Fetches with curl: one connection, nothing hashed."""
    del size, digest, connections
    subprocess.run(["curl", "-sSf", "-o", str(folder / NAME), f"{url}/{NAME}"], check=True)


IMPORTS = {
    "hub": ("vllm_mxext.hub.sources.web", "vllm_mxext.hub.transfer.fetch", "stamina"),
    "hugging_face": ("huggingface_hub.file_download",),
    "curl": (),
}
"""What each client imports before it is measured."""

Client = Callable[[str, Path, int, str, int], None]


def _measured(client: Client, arguments: tuple[Any, ...], results: Any) -> None:
    os.environ |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    for module in IMPORTS[client.__name__]:
        importlib.import_module(module)
    before = _cpu_s()
    started = time.perf_counter()
    client(*arguments)
    seconds = time.perf_counter() - started
    user, system = (after - earlier for after, earlier in zip(_cpu_s(), before, strict=True))
    results.send((seconds, user, system, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def _cpu_s() -> tuple[float, float]:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime for one in used), sum(one.ru_stime for one in used)


def measure(client: Client, url: str, room: Path, size: int, digest: str, connections: int) -> tuple[float, ...]:
    """Runs one client in a process of its own; returns seconds, CPU seconds (user, system) and peak MB."""
    folder = room / "client"
    folder.mkdir()
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_measured, args=(client, (url, folder, size, digest, connections), theirs)
    )
    process.start()
    theirs.close()
    result: tuple[float, ...] = ours.recv()
    process.join()
    shutil.rmtree(folder)
    return result


def make_file(path: Path, size: int) -> str:
    """Writes a file of random bytes; returns its digest."""
    digest, block = hashlib.sha256(), os.urandom(2**24)
    with path.open("wb") as file:
        for start in range(0, size, len(block)):
            part = block[: min(len(block), size - start)]
            file.write(part)
            digest.update(part)
    return digest.hexdigest()


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=10**9, help="bytes of the file")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 8], help="of the hub")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the files are; default: the system's temporary folder")
    arguments = parser.parse_args()
    clients: dict[str, tuple[Client, int]] = {f"hub, {n} connections": (hub, n) for n in arguments.connections}
    clients["huggingface_hub"] = (hugging_face, 1)
    if shutil.which("curl"):
        clients["curl"] = (curl, 1)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        room = Path(name)
        digest = make_file(room / NAME, arguments.size)
        ours, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        server = context.Process(target=serve, args=(room / NAME, digest, theirs), daemon=True)
        server.start()
        url = f"http://127.0.0.1:{ours.recv()}"
        runs: dict[str, list[tuple[float, ...]]] = {client: [] for client in clients}
        for _ in range(arguments.repeats):
            for label, (client, connections) in clients.items():
                runs[label].append(measure(client, url, room, arguments.size, digest, connections))
        server.terminate()
    gigabytes = arguments.size / 1e9
    results = {}
    for label, measured in runs.items():
        seconds = summarize([run[0] for run in measured])
        results[label] = {
            "seconds": seconds.as_dict(),
            "mb_per_s": round(arguments.size / 1e6 / seconds.median, 1),
            "cpu_s_per_gb": round(summarize([run[1] + run[2] for run in measured]).median / gigabytes, 2),
            "user_s_per_gb": round(summarize([run[1] for run in measured]).median / gigabytes, 2),
            "peak_mb": round(max(run[3] for run in measured)),
        }
    rows = [
        (label, *(one[key] for key in ("mb_per_s", "cpu_s_per_gb", "user_s_per_gb", "peak_mb")))
        for label, one in results.items()
    ]
    print(format_table(("client", "MB/s", "CPU s per GB", "of it user", "peak MB"), rows))
    config = {"size": arguments.size, "repeats": arguments.repeats, "connections": arguments.connections}
    print(json_line("hub_download", config, results))


if __name__ == "__main__":
    main()
