"""ONNX Runtime on a GPU: slot inputs and KV caches lie in its memory, one row is copied for each bind."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from ... import dtypes
from ...bank import Lease
from ...batch_rows import BatchRows
from ...errors import Code, Problem, RequestError
from ...graph_io import graph_inputs
from ...limits import Limits
from ...manifest import Manifest
from ...outputs import LOGITS
from ...profiles import Profile
from ...tensors import Array
from .. import Binding, Caches
from ..device import Device, DeviceArray, enough_memory
from ..device_bank import DeviceArrays, DeviceBank, DeviceRows
from ..onnxruntime import ONNX_BFLOAT16, import_onnxruntime
from ..shapes import Shapes, envelope, limits_of
from .kv_caches import DeviceCaches
from .options import PROFILE_INDEX


@dataclass
class _Bound:
    """An IOBinding, and the slot inputs that are bound in it."""

    io: Any
    arrays: DeviceArrays | None = None


class OrtGpuBackend:
    """A session on a device, to whose memory its inputs are bound by address.

    What a run reads has been copied when it starts: copies are waited for, since ONNX Runtime has
    streams of its own. It returns when the last one has done its work.
    """

    def __init__(
        self,
        session: Any,
        manifest: Manifest,
        device: Device,
        profiles: Sequence[Profile] = (),
        *,
        name: str,
        kind: str = "cuda",
    ) -> None:
        """Run a session.

        Args:
            session: on the GPU, see :func:`~.session.open_gpu_session`.
            manifest: of its bundle.
            device: the same GPU.
            profiles: the sizes that the session's engine takes; none: any.
            name: the bundle's, for errors.
            kind: what ONNX Runtime calls the device's memory.
        """
        self._session: Any = session
        self._device = device
        self._kind = kind
        self._name = name
        self._profiles = tuple(profiles)
        self._outputs = [output.name for output in manifest.outputs]
        self._generation = manifest.generation
        self._dtype = dtypes.NUMPY[manifest.base.dtype]
        self._table = Shapes(graph_inputs(manifest), self._profiles)
        self._slots = manifest.slot_inputs
        self._slot_profile = envelope(self._profiles) if self._profiles else None
        self._bank = DeviceBank(device, self._slots, self._dtype, self._slot_profile)
        self.limits: Limits = limits_of(self._profiles) if self._profiles else {}
        self._idle: list[_Bound] = []
        self._state = threading.Condition()
        self._runs = 0
        # the provider keeps the index of a run's profile for all threads
        self._one_at_a_time = threading.Lock() if len(self._profiles) > 1 else nullcontext()

    @property
    def provider(self) -> str:
        """What the session runs on."""
        with self._session_in_use() as session:
            return str(session.get_providers()[0])

    def run(self, feeds: Mapping[str, Array], lease: Lease) -> dict[str, Array]:
        """Run once; see :class:`~adexport_runtime.backends.Backend`.

        Raises:
            RequestError: the run is outside the profiles, an adapter is larger than they are, or the
                device has no memory for it.
        """
        with enough_memory(), self._session_in_use() as session, self._bank.hold(lease) as arrays:
            options = self._options(feeds, arrays)
            with self._binding(session, arrays) as io:
                return self._outputs_of(session, io, feeds, options)

    def caches(self, rows: int, room: int) -> Caches:
        """See :class:`~adexport_runtime.backends.Backend`."""
        assert self._generation is not None
        slots = DeviceRows(self._device, self._slots, self._dtype, self._slot_profile)
        return DeviceCaches(self._device, slots, self._generation, self._dtype, rows, room)

    def step(
        self, feeds: Mapping[str, Array], slots: BatchRows, caches: Caches, rows: slice, binding: Binding
    ) -> Array:
        """See :class:`~adexport_runtime.backends.Backend`."""
        assert isinstance(caches, DeviceCaches)
        with enough_memory(), self._session_in_use() as session:
            return self._step(session, feeds, slots, caches, rows, binding)

    def _step(
        self,
        session: Any,
        feeds: Mapping[str, Array],
        slots: BatchRows,
        caches: DeviceCaches,
        rows: slice,
        binding: Binding,
    ) -> Array:
        assert self._generation is not None
        if binding.io is None:
            binding.io = session.io_binding()
        io = binding.io
        key = (caches, rows.start, rows.stop)
        if binding.caches != key:
            self._bind_caches(io, caches, rows)
            binding.caches = key
        arrays = caches.ready(rows, feeds[self._generation.past_lengths], slots)
        addresses = tuple(arrays.values())
        if binding.slots != addresses:
            for name, array in arrays.items():
                self._bind(io.bind_input, name, array)
            binding.slots = addresses
        for name, value in feeds.items():
            io.bind_cpu_input(name, value)
        io.bind_output(LOGITS, "cpu")
        self._run(session, io, None)  # a graph that generates has no profiles: see the opener
        logits: Array = io.get_outputs()[-1].numpy()  # bound behind the caches
        return logits

    def close(self) -> None:
        """Wait for the runs under way, drop the session and the bindings, and free the slot inputs."""
        with self._state:
            self._session = None
            self._state.wait_for(lambda: not self._runs)
            self._idle.clear()
        self._bank.close()

    @contextmanager
    def _session_in_use(self) -> Iterator[Any]:
        """The session; another thread may close the backend meanwhile."""
        with self._state:
            session = self._session
            if session is None:
                raise RequestError("the engine is closed", Problem(Code.CLOSED, self._name))
            self._runs += 1
        try:
            yield session
        finally:
            with self._state:
                self._runs -= 1
                self._state.notify_all()

    def _outputs_of(
        self, session: Any, io: Any, feeds: Mapping[str, Array], options: Any
    ) -> dict[str, Array]:
        for name, value in feeds.items():
            io.bind_cpu_input(name, value)
        for name in self._outputs:  # anew for each run: a kept output keeps its last shape
            io.bind_output(name, "cpu")
        self._run(session, io, options)
        values = io.get_outputs()
        return {name: value.numpy() for name, value in zip(self._outputs, values, strict=True)}

    def _options(self, feeds: Mapping[str, Array], arrays: DeviceArrays) -> Any:
        """The options of a run that the profiles hold."""
        if not self._profiles:
            return None
        shapes = {name: array.shape for name, array in feeds.items()}
        index = self._table.choose(shapes | {name: array.shape for name, array in arrays.items()})
        if len(self._profiles) == 1:
            return None
        options = import_onnxruntime().RunOptions()
        options.add_run_config_entry(PROFILE_INDEX, str(index))
        return options

    def _run(self, session: Any, io: Any, options: Any) -> None:
        io.synchronize_inputs()  # feeds are copied by the binding, which does not wait
        with self._one_at_a_time:
            session.run_with_iobinding(io, options)

    @contextmanager
    def _binding(self, session: Any, arrays: DeviceArrays) -> Iterator[Any]:
        """An IOBinding that holds the slot inputs, for one run."""
        with self._state:
            bound = self._idle.pop() if self._idle else _Bound(session.io_binding())
        if bound.arrays is not arrays:
            for name, array in arrays.items():
                self._bind(bound.io.bind_input, name, array)
            bound.arrays = arrays
        yield bound.io
        with self._state:  # not after an error: that binding is dropped
            self._idle.append(bound)

    def _bind_caches(self, io: Any, caches: DeviceCaches, rows: slice) -> None:
        assert self._generation is not None
        for name in self._generation.past:
            self._bind(io.bind_input, name, caches.array(name, rows))
        for name in self._generation.outputs:
            self._bind(io.bind_output, name, caches.array(name, rows))

    def _bind(self, bind: Any, name: str, array: DeviceArray) -> None:
        element = ONNX_BFLOAT16 if array.dtype == dtypes.NUMPY["bf16"] else array.dtype
        bind(name, self._kind, 0, element, array.shape, array.address)
