"""Sessions on a GPU where there is none: every way of not getting one is an error that says why."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest

from adexport.build import lower_again
from adexport.options import BuildOptions
from adexport_runtime import BundleError, Code, Engine, ProviderError, RequestError
from adexport_runtime.backends import onnxruntime as backend
from adexport_runtime.backends.ort_gpu import session as gpu_session
from adexport_runtime.backends.ort_gpu.session import open_gpu_session

GPU = ("cuda", "ort-tensorrt", "ort-tensorrt-rtx")


@pytest.fixture
def built_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ONNX Runtime that says it has every provider."""
    names = [name for name, _ in backend.PROVIDERS.values()]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)


@pytest.mark.parametrize("provider", GPU)
def test_an_onnxruntime_without_it(tiny_bundle: Path, provider: str) -> None:
    with pytest.raises(ProviderError) as caught:
        Engine.open(tiny_bundle, provider=provider)
    (problem,) = caught.value.problems
    assert problem.code == Code.PROVIDER_UNAVAILABLE
    assert problem.subject == backend.PROVIDERS[provider][0]
    assert "CPUExecutionProvider" in problem.got
    assert ("adexport[gpu]" in problem.mend) == (provider != "ort-tensorrt-rtx")  # no package has it


@pytest.mark.usefixtures("built_in")
@pytest.mark.parametrize("provider", GPU)
def test_one_that_does_not_start_is_no_fallback(tiny_bundle: Path, provider: str) -> None:
    """ONNX Runtime itself falls back to the CPU, and only warns."""
    with pytest.raises(ProviderError), pytest.warns(UserWarning, match="not in available provider names"):
        open_gpu_session(tiny_bundle / "model.onnx", provider, {})


@pytest.mark.usefixtures("built_in")
def test_the_reason_is_that_of_the_loader(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "capi").mkdir()
    for name in ("shared", "cuda"):
        (tmp_path / "capi" / f"libonnxruntime_providers_{name}.so").write_text("no library")
    monkeypatch.setattr(onnxruntime, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(ProviderError) as caught, pytest.warns(UserWarning, match="provider"):
        open_gpu_session(tiny_bundle / "model.onnx", "cuda", {})
    assert "libonnxruntime_providers_shared.so" in caught.value.problems[0].got


class TestGraphs:
    """With the CPU in the place of the GPU."""

    @pytest.fixture(autouse=True)
    def cpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in GPU:
            monkeypatch.setitem(backend.PROVIDERS, name, ("CPUExecutionProvider", "gpu"))

    @pytest.mark.filterwarnings("ignore:Duplicate provider")
    def test_one_that_is_damaged(self, bundle_copy: Path) -> None:
        model = bundle_copy / "model.onnx"
        open_gpu_session(model, "cuda", {})
        model.write_bytes(b"\xff" * 100)
        with pytest.raises(BundleError) as caught:
            open_gpu_session(model, "cuda", {})
        assert caught.value.codes == {Code.DAMAGED}

    def test_tensorrt_may_leave_nothing_to_the_cpu(self, tiny_bundle: Path) -> None:
        with pytest.raises(ProviderError) as caught:
            open_gpu_session(tiny_bundle / "model.onnx", "ort-tensorrt", {})
        assert "CPU EP" in caught.value.problems[0].got

    @pytest.mark.filterwarnings("ignore:Duplicate provider")
    def test_a_model_that_computes_on_the_cpu(
        self, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opened: list[Any] = []

        def check(session: Any, provider: str, wanted: str) -> None:
            opened.append(session)

        real = gpu_session._check_places
        monkeypatch.setattr(gpu_session, "_check_places", check)
        open_gpu_session(tiny_bundle / "model.onnx", "cuda", {})
        with pytest.raises(ProviderError) as caught:
            real(opened[0], "cuda", "CUDAExecutionProvider")
        found = {problem.subject for problem in caught.value.problems}
        assert {"MatMul", "LayerNormalization"} < found
        assert not found & {"Shape", "Gather", "If", "Cast"}

    def test_an_older_onnxruntime_does_not_tell(self) -> None:
        gpu_session._check_places(SimpleNamespace(), "cuda", "CUDAExecutionProvider")


class TestBundlesThatTensorRTDoesNotTakeWhole:
    @pytest.mark.parametrize("provider", GPU[1:])
    def test_a_decoder(self, tiny_decoder: Path, provider: str) -> None:
        with pytest.raises(ProviderError) as caught:
            Engine.open(tiny_decoder, provider=provider)
        assert [problem.subject for problem in caught.value.problems] == [f"generation on {provider}"]
        assert "--target tensorrt" in str(caught.value)

    def test_a_quantized_base(self, tiny_bundle: Path, tmp_path: Path) -> None:
        options = BuildOptions(quantize="int8", min_cosine=0.5)
        lower_again(tiny_bundle, tmp_path / "int8.bundle", options=options)
        with pytest.raises(ProviderError) as caught:
            Engine.open(tmp_path / "int8.bundle", provider="ort-tensorrt")
        assert "quantization" in str(caught.value)


class TestSettings:
    @pytest.mark.parametrize("provider", ["cpu", "cuda"])
    def test_a_provider_without_engine_has_no_profile(self, tiny_bundle: Path, provider: str) -> None:
        with pytest.raises(RequestError) as caught:
            Engine.open(tiny_bundle, provider, profile=["batch=1"], cache="somewhere")
        assert [problem.subject for problem in caught.value.problems] == ["profile", "cache"]

    def test_a_profile_that_does_not_fit(self, tiny_bundle: Path) -> None:
        with pytest.raises(RequestError) as caught:
            Engine.open(tiny_bundle, "ort-tensorrt", profile=["rank=1:2:99,height=3"])
        assert len(caught.value.problems) >= 1
        assert "height=3" in {problem.subject for problem in caught.value.problems}
