"""What one tenant's weights are never reaches another's row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from adexport_runtime import Engine, load_adapter
from tests.runtime.support import hidden, ids

from .conftest import Open, bind_all

ROWS = ["r5", "bad", None, "bad", "r16", None, "r5"]
OTHERS = [row for row, name in enumerate(ROWS) if name != "bad"]


def put(engine: Engine, name: str, folder: Path, value: float | None = None) -> None:
    """Bind an adapter; with a ``value``, all its numbers are that: no file could bring it in."""
    manifest = engine.bundle.manifest
    tensors = load_adapter(name, folder, engine.bundle).rows(manifest)
    if value is not None:
        tensors = {
            slot: np.full_like(tensor, value) if tensor.dtype.kind != "i" else tensor
            for slot, tensor in tensors.items()
        }
    engine._bank.put(name, tensors)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_a_poisoned_tenant_leaves_other_rows_bit_equal(
    serve: Open, tiny_bundle: Path, tenants: dict[str, Path], value: float
) -> None:
    engine = bind_all(serve(tiny_bundle), tenants)
    given = ids(len(ROWS), 8)
    put(engine, "bad", tenants["r8"])
    before = hidden(engine, given, ROWS)
    assert np.isfinite(before).all()
    put(engine, "bad", tenants["r8"], value)
    after = hidden(engine, given, ROWS)
    np.testing.assert_array_equal(after[OTHERS], before[OTHERS])
    assert np.abs(after[1] - before[1]).max() != 0  # NaN too
    put(engine, "bad", tenants["r8"])
    np.testing.assert_array_equal(hidden(engine, given, ROWS), before)


def test_a_row_that_was_poisoned_is_clean_for_the_next_tenant(
    serve: Open, tiny_bundle: Path, tenants: dict[str, Path]
) -> None:
    """Its place is taken by a narrower one: nothing of the wider one may stay behind it."""
    engine = serve(tiny_bundle, resident=2)
    bind_all(engine, {"r16": tenants["r16"], "r1": tenants["r1"]})
    given = ids(2, 6)
    before = hidden(engine, given, ["r1", "r16"])
    engine.unbind("r1")
    put(engine, "bad", tenants["r16"], np.nan)
    assert not np.isfinite(hidden(engine, given, ["bad", "r16"])[0]).any()
    engine.unbind("bad")
    engine.bind("r1", tenants["r1"])
    np.testing.assert_array_equal(hidden(engine, given, ["r1", "r16"]), before)


def test_the_same_rows_in_another_order(serve: Open, tiny_bundle: Path, tenants: dict[str, Path]) -> None:
    """Also whatever stands beside them."""
    engine = bind_all(serve(tiny_bundle), tenants)
    given = ids(4, 7)
    names = ["r1", None, "r8", "r16"]
    straight = hidden(engine, given, names)
    turned = hidden(engine, given[::-1], names[::-1])[::-1]
    np.testing.assert_allclose(turned, straight, rtol=0, atol=1e-5 * np.abs(straight).max())
    beside = hidden(engine, given, ["r1", "r2", "r5", "r16"])
    np.testing.assert_allclose(beside[[0, 3]], straight[[0, 3]], rtol=0, atol=1e-5 * np.abs(straight).max())
    assert np.abs(beside[1] - straight[1]).max() > 1e-2
