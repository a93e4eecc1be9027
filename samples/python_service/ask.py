"""Ask a service: mixed batches from several clients at once, next to what each tenant alone gives."""

from __future__ import annotations

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from adexport_runtime import Bundle
from adexport_runtime.text import TextEncoder

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from console import console, say

TENANTS = (None, "movies", "nyt", "tweets")
TEXTS = (
    "so bored :(",
    "a film that never wakes up",
    "The senator has finally told the truth.",
    "best day everrr",
)
TIMEOUT, UP = 30.0, 60.0
#: the largest difference of a logit: a row that is padded to another length is summed up otherwise
ALLOWED = 1e-5


class Service:
    """A service's address, and how its rows are written: as text, or as token ids."""

    def __init__(self, url: str, encoder: TextEncoder | None) -> None:
        """``encoder``: the tokenizer, if the service takes token ids."""
        self._url = url
        self._encoder = encoder

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The answer as JSON; an error that the service tells ends the program with it."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        asked = urllib.request.Request(self._url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(asked, timeout=TIMEOUT) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise SystemExit(f"{method} {path}: {error.code}: {error.read().decode()}") from error

    def wait(self) -> None:
        """Wait until the service answers."""
        end = time.monotonic() + UP
        while True:
            try:
                self.ask("GET", "/healthz")
            except urllib.error.URLError as error:
                if time.monotonic() > end:
                    raise SystemExit(f"{self._url} does not answer: {error.reason}") from error
                time.sleep(0.2)
            else:
                return

    def classify(self, pairs: list[tuple[str, str | None]]) -> list[dict[str, Any]]:
        """What texts are to tenants: one request."""
        rows = [{**self._written(text), "tenant": tenant} for text, tenant in pairs]
        answers: list[dict[str, Any]] = self.ask("POST", "/v1/classify", {"rows": rows})["rows"]
        return answers

    def _written(self, text: str) -> dict[str, Any]:
        return {"text": text} if self._encoder is None else {"ids": self._encoder.ids(text)}


def main() -> None:
    """Bind, ask side by side and alone, compare, unbind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--ids", type=Path, metavar="BUNDLE", help="send token ids, made here")
    given = parser.parse_args()
    encoder = None if given.ids is None else TextEncoder(Bundle.open(given.ids))
    service = Service(given.url.rstrip("/"), encoder)
    service.wait()
    service.ask("PUT", "/v1/tenants/nyt")
    say(f"bound: {', '.join(service.ask('GET', '/v1/tenants')['tenants'])}")

    # a client for each text, all at once, that asks what it is to every tenant
    pairs = [[(text, tenant) for tenant in TENANTS] for text in TEXTS]
    before = service.ask("GET", "/healthz")["batches"]
    with ThreadPoolExecutor(len(pairs)) as clients:
        mixed = [row for rows in clients.map(service.classify, pairs) for row in rows]
    batches = service.ask("GET", "/healthz")["batches"] - before
    alone = [service.classify([pair])[0] for rows in pairs for pair in rows]
    service.ask("DELETE", "/v1/tenants/nyt")

    ran = f"{len(mixed)} rows of {len(pairs)} requests in {batches} batch{'es' if batches > 1 else ''}"
    table = Table(title=f"{ran}, and each row alone", title_justify="left")
    for column in ("text", "tenant", "together", "alone"):
        table.add_column(column, overflow="fold")
    worst = 0.0
    for (text, tenant), one, other in zip(chain(*pairs), mixed, alone, strict=True):
        assert one["label"] == other["label"], f"{text!r} to {tenant}: {one} is not {other}"
        assert list(one["logits"]) == list(other["logits"])
        worst = max(worst, *(abs(one["logits"][label] - other["logits"][label]) for label in one["logits"]))
        table.add_row(Text(text), tenant or "base", shown(one), shown(other))
    console.print(table)
    assert worst <= ALLOWED, f"a logit differs by {worst:.1e}"
    say(f"The same labels; the largest difference of a logit is {worst:.1e} (allowed {ALLOWED:.0e}).")


def shown(answer: dict[str, Any]) -> str:
    """A row's label and its logit."""
    return f"{answer['label']} {answer['logits'][answer['label']]:.4f}"


if __name__ == "__main__":
    main()
