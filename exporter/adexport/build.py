"""`adexport build`: a model becomes a bundle, or a bundle is lowered again. Read top to bottom."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from adexport_runtime.bundle import (
    MANIFEST_FILE,
    MODEL_FILE,
    REFERENCE_FILE,
    TRACE_FILE,
    WEIGHTS_FOLDER,
    Bundle,
)
from adexport_runtime.engine_file import engine_targets
from adexport_runtime.errors import BuildError, Code, Problem
from adexport_runtime.files import atomic_folder
from adexport_runtime.manifest import (
    FORMAT_VERSION,
    HEAD_TASKS,
    Base,
    Limits,
    Manifest,
    Output,
    Tokenizer,
)
from adexport_runtime.names import nul_problems
from adexport_runtime.outputs import LOGITS
from adexport_runtime.slots import BankDtype

from .check import check_model, check_quality
from .lower import ADAPTER_IDS, bottleneck_features, layer_features, lower
from .options import DEFAULT_OPSET, MIN_OPSET, BuildOptions
from .parts import carry_adapters, carry_trace, check_adapters, check_target, files_of, write_lowered
from .progress import Progress, silent
from .quality import Quality, floor_of, text_cases
from .quantization import choose_quantization
from .reference import load_reference, sample_batches, save_reference
from .slots.again import plan_again
from .slots.banks import choose_bank_dtype
from .slots.plan import Places, Plan, brings_heads, make_plan
from .weights import frozen_weights

if TYPE_CHECKING:
    from .model import LoadedModel

_FLOAT_WEIGHTS = f"{WEIGHTS_FOLDER}/fp32.bin"
_TOOLS = ("adexport", "torch", "transformers", "onnx", "onnx-ir", "onnxruntime")


@dataclass(frozen=True)
class BuildResult:
    """A finished bundle, the differences that its check saw, and what is worth knowing of it.

    ``quality`` is what quantization changed; None where nothing is quantized. ``engines_left`` are the
    targets of engines that stood in the bundle before: built from another graph, they were left behind.
    """

    bundle: Bundle
    differences: Mapping[str, float]
    notes: tuple[str, ...] = ()
    quality: Quality | None = None
    engines_left: tuple[str, ...] = ()


def build_model(
    source: str,
    output: Path | None = None,
    *,
    task: str = "auto",
    opset: int = DEFAULT_OPSET,
    options: BuildOptions | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> BuildResult:
    """Export a model once, into a bundle that takes adapters as data.

    Args:
        source: a transformers folder, or a hub id.
        output: the bundle; ``./<model>.bundle`` if None.
        task: see :func:`adexport.model.load_model`.
        opset: ONNX opset of the graphs; 23 and later use the ``Attention`` op.
        options: sites, slots, precision.
        force: replace the bundle that stands at ``output``.
        progress: called as each step starts.

    Raises:
        BuildError: the model cannot be exported, or the export failed its check.
        AdapterError: an adapter in ``like``, or one bound in the bundle to be replaced, is refused.
    """
    from .architectures import CLASSIFICATION, TEXT_GENERATION, architecture_of, has_pooler
    from .generating import Generating, make_generating
    from .marks import HeadPlace
    from .model import load_model, model_fingerprint
    from .torch_reference import with_outputs
    from .trace import trace_model

    options = options or BuildOptions()
    if opset < MIN_OPSET:
        raise BuildError(
            "nothing was built",
            Problem(Code.UNSUPPORTED, "--opset", got=str(opset), expected=f"{MIN_OPSET} or later"),
        )
    if output is not None:
        check_target(output, force)
    progress("load the model")
    loaded = load_model(source, task, headless=brings_heads(options))
    quantization = choose_quantization(options, loaded.task, options.dtype or "fp32")
    output = output or Path(f"{loaded.name}.bundle")
    check_target(output, force)

    progress("trace it once")
    architecture = architecture_of(loaded.config)
    inputs = architecture.inputs(loaded.model)
    outputs = architecture.outputs(loaded.model, loaded.task, loaded.untrained)
    positions = architecture.max_positions
    takes = [spec.name for spec in inputs]
    made = make_generating(loaded.model, positions, takes) if loaded.task == TEXT_GENERATION else []
    generating, reasons = (made, []) if isinstance(made, Generating) else (None, made)
    positions = generating.positions if generating else positions
    trace = trace_model(
        loaded.model,
        generating.inputs if generating else inputs,
        generating.outputs if generating else outputs,
        opset,
        head=HeadPlace(
            architecture.head_feature(loaded.task), int(loaded.config.hidden_size), loaded.own_head
        )
        if loaded.task in CLASSIFICATION
        else None,
        pooled=has_pooler(loaded.model, loaded.untrained),
        bottlenecks=architecture.bottlenecks,
        cached=generating.attention if generating else None,
    )
    _refuse_untrained(loaded, trace.weights)
    places = Places.of(trace.graph, loaded.config.model_type, loaded.model.base_model_prefix)
    plan = make_plan(places, options)
    bank_dtype = choose_bank_dtype(options, plan, options.dtype or "fp32")

    progress("compute the reference with torch")
    cases = with_outputs(
        loaded.model,
        sample_batches(inputs, positions, loaded.pad_id),
        [spec.name for spec in outputs],
        layer_features(trace.graph),
        bottleneck_features(trace.graph),
    )
    engines = engine_targets(output)
    with atomic_folder(output) as part:
        progress("write the trace and the weights")
        (part / WEIGHTS_FOLDER).mkdir()
        ir.save(
            trace.graph,
            part / TRACE_FILE,
            external_data=_FLOAT_WEIGHTS,
            alignment=64,
        )
        save_reference(part / REFERENCE_FILE, cases)
        tokenizer = _save_tokenizer(loaded, part, positions)
        manifest = Manifest(
            base=Base(
                name=loaded.name,
                source=_source(source),
                architecture=type(loaded.model).__name__,
                model_type=loaded.config.model_type,
                prefix=places.prefix,
                task=loaded.task,
                dtype=_dtype(options.dtype or "fp32"),
                quantization=quantization,
                fingerprint=model_fingerprint(loaded.model, trace.weights),
                max_positions=positions,
                labels=_labels(loaded),
            ),
            opset=opset,
            slots=(),
            inputs=inputs,
            outputs=outputs,
            adapter_ids=None,
            sites=(),
            generation=generating.generation if generating else None,
            limits=_limits(plan),
            modules=tuple(places.layers),
            weights=frozen_weights(part),
            tokenizer=tokenizer,
            files=(),
            tools=_tools(),
        )
        differences, quality = _finish(part, manifest, plan, bank_dtype, options, output, progress)
    notes = [f"attention is traced in full: {reason}" for reason in trace.eager_reasons]
    notes += [f"no generation, prompts only: {reason}" for reason in reasons]
    notes += [f"no bottleneck can go behind {path}: no addition follows" for path in trace.endless]
    return BuildResult(Bundle.open(output), differences, (*notes, *_plan_notes(plan)), quality, engines)


def lower_again(
    source: Path,
    output: Path | None = None,
    *,
    options: BuildOptions | None = None,
    force: bool = False,
    adapters: bool = True,
    progress: Progress = silent,
) -> BuildResult:
    """Lower a bundle's trace anew, with other slots, precision or quantization. Needs no torch.

    ``output`` None replaces the bundle itself, at once and whole; its adapters stay bound, its engines
    are left behind. What ``options`` leaves open stays as the bundle has it. ``adapters`` False leaves
    the bound adapters behind (another ``output`` only).

    Raises:
        BuildError: the lowering failed its check.
        AdapterError: an adapter bound in the bundle does not fit what is asked for.
    """
    options = options or BuildOptions()
    bundle = Bundle.open(source)
    target = output or source
    if output is not None and output.resolve() != source.resolve():
        check_target(output, force)
    manifest = bundle.manifest
    plan = plan_again(bundle, options)
    dtype = options.dtype or manifest.base.dtype
    quantization = choose_quantization(options, manifest.base.task, dtype, manifest.base.quantization)
    bank_dtype = choose_bank_dtype(options, plan, dtype, manifest.bank_dtype)
    engines = engine_targets(target)
    with atomic_folder(target) as part:
        carry_trace(bundle, part)
        changed = manifest.model_copy(
            update={
                "base": manifest.base.model_copy(update={"dtype": dtype, "quantization": quantization}),
                "format_version": FORMAT_VERSION,
                "limits": _limits(plan),
                "tools": manifest.tools | _tools(),
            }
        )
        if target != source and adapters:
            carry_adapters(bundle.root, part)
        differences, quality = _finish(part, changed, plan, bank_dtype, options, target, progress)
    return BuildResult(Bundle.open(target), differences, _plan_notes(plan), quality, engines)


def _finish(
    part: Path,
    manifest: Manifest,
    plan: Plan,
    bank_dtype: BankDtype | None,
    asked: BuildOptions,
    target: Path,
    progress: Progress,
) -> tuple[dict[str, float], Quality | None]:
    """Lower the trace that lies in ``part``, check the result, and write the manifest."""
    progress("lower it for ONNX Runtime")
    trace = ir.load(part / TRACE_FILE)
    quantization = manifest.base.quantization
    options = replace(plan.lowering(manifest.base.dtype, bank_dtype), quantization=quantization)
    lowered = lower(trace, options)
    write_lowered(lowered.graph, part, options)

    progress("check it: ONNX checker, ONNX Runtime, parity with torch")
    cases = load_reference(part / REFERENCE_FILE)
    differences = check_model(
        part / MODEL_FILE, trace, options, cases, asked.tolerance, manifest.generation
    )
    quality = None
    if quantization is not None:
        progress("compare it with the float base, text by text")
        texts = text_cases(Bundle(part, manifest), cases)
        floor = floor_of(quantization, asked.min_cosine)
        quality = check_quality(part / MODEL_FILE, trace, options, cases, texts, floor, manifest.generation)

    finished = manifest.model_copy(
        update={
            "slots": plan.slots,
            "adapter_ids": ADAPTER_IDS if lowered.slots and lowered.slots.rows == "bank" else None,
            "sites": lowered.slots.sites,
            "bottlenecks": lowered.slots.bottlenecks,
            "head": lowered.slots.head,
            "guards": lowered.slots.guards,
            "slot_rows": lowered.slots.rows,
            "outputs": tuple(_output(spec, manifest, plan) for spec in manifest.outputs),
            "files": files_of(part),
        }
    )
    if (target / MANIFEST_FILE).exists():
        carry_adapters(target, part)
    check_adapters(part, finished)
    (part / MANIFEST_FILE).write_text(finished.to_json(), encoding="utf-8")
    return differences, quality


def _refuse_untrained(loaded: LoadedModel, used: Iterable[str]) -> None:
    """A weight that the checkpoint lacks is random: a graph that uses it would be wrong."""
    heads = "--slots lora,head, if adapters bring their heads, " if loaded.task in HEAD_TASKS else ""
    problems = [
        Problem(
            Code.ABSENT,
            name,
            got="no trained weight in the checkpoint",
            expected=f"the weights of {type(loaded.model).__name__}",
            cause=f"the checkpoint is no {loaded.task} model",
            mend=f"build with {heads}with --task feature-extraction, or from a trained checkpoint",
        )
        for name in used
        if name in loaded.untrained
    ]
    if problems:
        raise BuildError(f"{loaded.source} cannot be built", problems)


def _limits(plan: Plan) -> Limits:
    return Limits(max_rank=plan.max_rank, max_width=None if plan.bottlenecks is None else plan.max_width)


def _output(spec: Output, manifest: Manifest, plan: Plan) -> Output:
    """Logits are as wide as the widest head where rows bring heads of their own."""
    if spec.name != LOGITS or manifest.base.task not in HEAD_TASKS:
        return spec
    width = len(manifest.base.labels) if plan.head is None else "labels"
    return spec.model_copy(update={"shape": (*spec.shape[:-1], width)})


def _plan_notes(plan: Plan) -> tuple[str, ...]:
    if not plan.left_out:
        return ()
    return (f"no slot at {', '.join(plan.left_out)}: the batch does not come first there",)


def _save_tokenizer(loaded: LoadedModel, part: Path, max_positions: int | None) -> Tokenizer | None:
    loaded.config.save_pretrained(part)
    tokenizer, padding = loaded.tokenizer, loaded.padding
    if tokenizer is None or padding is None:
        return None
    tokenizer.save_pretrained(part)
    lengths = [n for n in (max_positions, tokenizer.model_max_length) if n and n < 10**9]
    return Tokenizer(
        file="tokenizer.json",
        pad_id=padding[0],
        pad_token=padding[1],
        max_length=min(lengths) if lengths else None,
    )


def _source(source: str) -> str:
    path = Path(source)
    return str(path.resolve()) if path.exists() else source


def _labels(loaded: LoadedModel) -> tuple[str, ...]:
    if loaded.task not in HEAD_TASKS or loaded.model.base_model is loaded.model:
        return ()
    labels: dict[int, str] = loaded.config.id2label
    names = tuple(str(labels[index]) for index in sorted(labels))
    mend = "name the label otherwise in the model's config.json"
    if unfit := nul_problems(Code.BAD_CONFIG, "id2label", names, mend):
        raise BuildError(f"{loaded.source} cannot be built", unfit)
    return names


def _dtype(name: str) -> Any:
    return name


def _tools() -> dict[str, str]:
    found = {}
    for package in _TOOLS:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
