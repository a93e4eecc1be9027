"""The services of the samples as processes, and requests to them: 127.0.0.1 only."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
#: where `make native-build` installs libadexport
NATIVE = Path(os.environ.get("ADEXPORT_NATIVE", ROOT / "build" / "native" / "install"))
UP, TIMEOUT = 120.0, 60.0
KINDS = ("python", "cpp")


class Told(NamedTuple):
    """A status and what came with it."""

    status: int
    body: Any
    headers: Mapping[str, str]

    @property
    def codes(self) -> set[str]:
        """The codes of a refusal's problems."""
        return {problem["code"] for problem in self.body["problems"]}


class Service(NamedTuple):
    """A service that runs."""

    kind: str
    port: int
    process: subprocess.Popen[bytes]

    def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Told:
        """Send one request; a body that is not bytes is sent as JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"content-type": "application/json", **(headers or {})}
        url = f"http://127.0.0.1:{self.port}{path}"
        asked = urllib.request.Request(url, data, headers, method=method)
        try:
            with urllib.request.urlopen(asked, timeout=TIMEOUT) as answer:
                return Told(answer.status, json.load(answer), dict(answer.headers))
        except urllib.error.HTTPError as error:
            with error:
                return Told(error.code, json.load(error), dict(error.headers))

    def row(self, ids: Sequence[int], text: str, tenant: object) -> dict[str, object]:
        """A row as this service takes it."""
        written = {"text": text} if self.kind == "python" else {"ids": list(ids)}
        return {**written, "tenant": tenant}

    def health(self) -> dict[str, Any]:
        """What it says of itself."""
        told = self.ask("GET", "/healthz")
        assert told.status == 200
        body: dict[str, Any] = told.body
        return body

    def libraries(self) -> str:
        """What is mapped into the process."""
        return Path(f"/proc/{self.process.pid}/maps").read_text()


def free_port() -> int:
    """A port that nobody listens to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(kind: str, program: Sequence[str], log: Path, *arguments: str) -> Iterator[Service]:
    """Start a service on a free port; end it with SIGTERM, and hold it to ending well."""
    port = free_port()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*program, *arguments, "--port", str(port)], stdout=output, stderr=subprocess.STDOUT
        )
    service = Service(kind, port, process)
    try:
        end = time.monotonic() + UP
        while True:
            assert process.poll() is None, log.read_text()
            try:
                service.health()
                break
            except OSError:
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.1)
        yield service
        process.terminate()
        assert process.wait(30) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def native_environment() -> dict[str, str]:
    """What a program that uses libadexport needs to find: ONNX Runtime's library, of its Python package."""
    import onnxruntime

    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    return {"ADEXPORT_ORT_LIBRARY": str(library)}


def built(folder: Path) -> list[str]:
    """The C++ service, built against the library that is installed."""
    source = ROOT / "samples" / "cpp_service"
    for command in (
        ["cmake", "-S", str(source), "-B", str(folder), f"-DCMAKE_PREFIX_PATH={NATIVE}"],
        ["cmake", "--build", str(folder)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    found = [f"{key}={value}" for key, value in native_environment().items()]
    return ["env", *found, str(folder / "adexport_service")]


def program(kind: str, folder: Path) -> list[str]:
    """How a service is started."""
    if kind == "cpp":
        return built(folder)
    return [sys.executable, str(ROOT / "samples" / "python_service" / "service.py")]
