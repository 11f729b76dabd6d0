"""A web server on the loopback interface with adjustable delays and failures.

Run as a program (``python -m tests.flaky_server FOLDER [key=value ...]``), it prints its port and serves until its
standard input ends; in its own process, it takes no time from the reader.
"""

from __future__ import annotations

import http.server
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


class FlakyServer(http.server.ThreadingHTTPServer):
    """Serves the files of a folder.

    All attributes may be set at any time:
        latency_s: delay before each answer.
        drop: share of the answers that are cut off in the middle of the body.
        fail: share of the requests that are answered with status 500.
        stall: share of the answers that pause in the middle of the body, for `stall_s` seconds.
        corrupt: share of the answers to range requests that have wrong bytes.
        ranges, lengths: whether it supports range requests, and sends Content-Length.
        bytes_per_s: of each connection; 0 for no limit.
        down: whether each connection is closed without an answer.
        first_failures: statuses of the first answers, in reverse order.
        asked: (method, path, Range header or None) of each request.
    """

    daemon_threads = True
    request_queue_size = 256
    block_on_close = False

    def __init__(self, folder: Path, port: int = 0, **behaviour: Any) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.folder = Path(folder)
        self.latency_s = self.drop = self.fail = self.stall = self.corrupt = self.bytes_per_s = 0.0
        self.stall_s = 60.0
        self.ranges = self.lengths = True
        self.down = False
        self.first_failures: list[int] = []
        self.asked: list[tuple[str, str, str | None]] = []
        self.random = random.Random(0)
        for name, value in behaviour.items():
            assert hasattr(self, name), name
            setattr(self, name, value)

    @property
    def url(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def whole(self, suffix: str = ".tar") -> list[str]:
        """Return the names of the files that were requested as a whole, without a range."""
        return [path for _, path, part in self.asked if path.endswith(suffix) and part is None]

    def handle_error(self, *_: Any) -> None:
        """Print nothing: the reader has closed the connection."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True
    server: FlakyServer

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        server, path = self.server, unquote(urlsplit(self.path).path)
        part = self.headers.get("Range")
        server.asked.append((self.command, path, part))
        if server.down:
            self.close_connection = True
            return
        time.sleep(server.latency_s)
        file = server.folder / path.lstrip("/")
        status = server.first_failures.pop() if server.first_failures else 0
        if not status and server.random.random() < server.fail:
            status = 500
        if not status and not file.is_file():
            status = 404
        if status:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        total = file.stat().st_size
        start, stop = 0, total
        version = f'"{file.stat().st_mtime_ns}-{total}"'
        if part and server.ranges and self.headers.get("If-Range", version) == version:
            first, _, last = part.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last) + 1 if last else total, total)
            if start >= total:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{total}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{total}")
        else:
            self.send_response(200)
        self.send_header("ETag", version)
        if server.lengths:
            self.send_header("Content-Length", str(stop - start))
        else:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        if self.command == "GET":
            self._send_body(file, start, stop)

    def _send_body(self, file: Path, start: int, stop: int) -> None:
        server, middle = self.server, start + (stop - start) // 2
        drop, stall = server.random.random() < server.drop, server.random.random() < server.stall
        if self.headers.get("Range") and server.random.random() < server.corrupt:
            self.wfile.write(bytes(stop - start))
            return
        with file.open("rb") as content:
            content.seek(start)
            while start < stop:
                size = min(1 << 18, stop - start)
                if start < middle and (drop or stall):
                    size = min(size, middle - start)
                self.wfile.write(content.read(size))
                start += size
                if server.bytes_per_s:
                    time.sleep(size / server.bytes_per_s)
                if server.down or (drop and start >= middle):
                    self.close_connection = True
                    return
                if stall and start >= middle:
                    time.sleep(server.stall_s)
                    self.close_connection = True
                    return

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def flaky(folder: Path, **behaviour: Any) -> Iterator[FlakyServer]:
    """Serve a folder in a thread of this process; yield the FlakyServer."""
    server = FlakyServer(folder, **behaviour)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.down = True
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def flaky_process(folder: Path, **behaviour: float) -> Iterator[str]:
    """Serve a folder in another process; yield the URL."""
    words = [
        sys.executable,
        "-m",
        "tests.flaky_server",
        str(folder),
        *(f"{k}={v}" for k, v in behaviour.items()),
    ]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.stdin.close()
        process.wait(10)


def main() -> None:
    """Serve the folder named by the first argument; the others set numeric attributes of the server."""
    folder, *words = sys.argv[1:]
    behaviour = {name: float(value) for name, _, value in (word.partition("=") for word in words)}
    with flaky(Path(folder), **behaviour) as server:
        print(server.server_address[1], flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
