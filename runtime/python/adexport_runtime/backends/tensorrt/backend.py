"""The backend that runs an engine: adapters stay on the device, a context with a stream for each run."""

from __future__ import annotations

import weakref
from collections.abc import Mapping

import numpy as np

from ... import dtypes
from ...bank import Lease
from ...batch_rows import BatchRows
from ...bundle import Bundle
from ...engine_file import EngineRecord
from ...errors import BundleError, Code, Problem
from ...graph_io import engine_inputs, graph_outputs
from ...limits import Limits, check_batch
from ...outputs import LOGITS
from ...tensors import Array
from .. import Binding, Caches
from ..device import Device, enough_memory
from ..device_bank import DeviceBank, DeviceRows
from ..shapes import Shapes, envelope, limits_of
from .engines import Executable
from .kv_caches import DeviceCaches
from .pool import Pool
from .worker import Worker


class TensorRTBackend:
    """Runs an engine of a bundle. See :class:`~adexport_runtime.backends.Backend`."""

    def __init__(
        self, bundle: Bundle, record: EngineRecord, executable: Executable, device: Device
    ) -> None:
        """Take a deserialized engine.

        Args:
            bundle: that the engine belongs to.
            record: what it was built from.
            executable: the engine.
            device: the GPU that it is on.

        Raises:
            BundleError: the engine's inputs and outputs are not those of the bundle.
        """
        manifest = bundle.manifest
        _check_tensors(bundle, record, executable)
        self._executable = executable
        self._device = device
        self._generation = manifest.generation
        self._form = record.caches
        self._ids = manifest.adapter_ids
        self._dtype = dtypes.NUMPY[manifest.base.dtype]
        self._outputs = {
            spec.name: dtypes.NUMPY[spec.dtype]
            for spec in record.outputs
            if manifest.generation is None or spec.name not in manifest.generation.outputs
        }
        taken = {tensor.name for tensor in record.inputs}
        self._slots = tuple(slot for slot in manifest.slot_inputs if slot.name in taken)
        self._profile = envelope(record.profiles)
        self._table = Shapes(record.inputs, record.profiles)
        self._bank = DeviceBank(device, self._slots, self._dtype, self._profile)
        #: the rows of each batch on the device, for as long as there are its caches
        self._rows: weakref.WeakKeyDictionary[DeviceCaches, DeviceRows] = weakref.WeakKeyDictionary()
        self._pool = Pool(self._make_worker, str(bundle.root))
        self.limits: Limits = limits_of(record.profiles)

    @property
    def provider(self) -> str:
        """The library that runs the engine, with its version."""
        return self._executable.name

    def run(self, feeds: Mapping[str, Array], lease: Lease) -> dict[str, Array]:
        """See :class:`~adexport_runtime.backends.Backend`.

        Raises:
            RequestError: no profile takes the run, the device has no memory for it, or it failed.
        """
        given = self._with_an_id_for_each_row(feeds)
        with enough_memory(), self._pool.worker() as worker, self._bank.hold(lease) as slots:
            try:
                return worker.execute({**worker.upload(given), **slots}, self._outputs)
            finally:
                worker.wait()  # before the slot inputs are let go

    def _with_an_id_for_each_row(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """The feeds as engines take them, also where one adapter is for all rows."""
        if self._ids is None:
            return feeds
        batch = next(len(array) for name, array in feeds.items() if name != self._ids)
        return {**feeds, self._ids: np.broadcast_to(feeds[self._ids], (batch,))}

    def caches(self, rows: int, room: int) -> DeviceCaches:
        """See :class:`~adexport_runtime.backends.Backend`.

        Raises:
            RequestError: no profile takes so many rows or tokens.
            MemoryError: the device has not enough.
        """
        assert self._generation is not None
        assert self._form is not None
        check_batch(rows, room, self.limits)
        room = max(room, self._profile.sizes["room"].min)  # what is behind a row's tokens is free
        caches = DeviceCaches(self._device, self._generation, self._form, self._dtype, rows, room)
        there = DeviceRows(self._device, self._slots, self._dtype, self._profile)
        self._rows[caches] = there
        weakref.finalize(caches, there.close)
        return caches

    def step(
        self, feeds: Mapping[str, Array], slots: BatchRows, caches: Caches, rows: slice, binding: Binding
    ) -> Array:
        """See :class:`~adexport_runtime.backends.Backend`; ``binding`` is not needed.

        Raises:
            RequestError: no profile takes the step, the device has no memory for it, or it failed.
        """
        del binding
        assert isinstance(caches, DeviceCaches)
        assert self._generation is not None
        there = self._rows[caches]
        with enough_memory(), self._pool.worker() as worker:
            try:
                arrays, read = there.bring(slots, rows, worker.stream, each=True)
                worker.keep(read)
                past_lengths = feeds[self._generation.past_lengths]
                span = caches.span(rows, past_lengths, worker.stream)
                inputs = {**worker.upload(feeds), **worker.align(arrays), **span.past}
                outputs = worker.execute(inputs, self._outputs, span.present)
                for source, target in span.back:
                    self._device.copy(target.address, source.address, source.nbytes, worker.stream)
                worker.wait()
            except BaseException:
                there.forget()
                raise
            caches.done(rows)
            return outputs[LOGITS]

    def close(self) -> None:
        """Wait for the runs under way, and free everything but the caches of batches that still live."""
        self._pool.close()
        self._bank.close()
        self._executable.close()

    def _make_worker(self) -> Worker:
        stream = self._device.open_stream()
        try:
            context = self._executable.context()
        except BaseException:
            self._device.close_stream(stream)
            raise
        return Worker(self._device, context, self._table, stream)


def _check_tensors(bundle: Bundle, record: EngineRecord, executable: Executable) -> None:
    """The engine, its record and the bundle's manifest name the same inputs and outputs."""
    manifest = bundle.manifest
    pairs = (
        ("input", engine_inputs(manifest), record.inputs, executable.inputs),
        ("output", graph_outputs(manifest), record.outputs, executable.outputs),
    )
    problems = []
    for kind, wanted, recorded, found in pairs:
        expected = {tensor.name: tensor for tensor in wanted}
        noted = {tensor.name: tensor for tensor in recorded}
        for name in sorted(expected.keys() | noted.keys() | set(found)):
            if name not in found:
                got = f"no such {kind} of the engine"
            elif noted.get(name) != expected.get(name):
                got = f"{noted.get(name)} in the engine's record"
            elif name not in expected:
                got = f"an {kind} that only the engine has"
            else:
                continue
            problems.append(
                Problem(
                    Code.BAD_MANIFEST,
                    name,
                    got=got,
                    expected=f"{expected.get(name)}, as the bundle says",
                    mend="adexport build BUNDLE --target tensorrt",
                )
            )
    if (record.caches is None) != (manifest.generation is None):
        problems.append(
            Problem(Code.BAD_MANIFEST, "caches", got=str(record.caches), expected="a form if it generates")
        )
    if problems:
        raise BundleError(f"the engine of {bundle.root} is not one of its graph", problems)
