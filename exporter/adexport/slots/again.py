"""The slots of a bundle that is lowered again: what is left open stays as it was."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from adexport_runtime.bundle import TRACE_FILE, Bundle
from adexport_runtime.errors import BuildError, Code, Problem

from ..lower import BottleneckOptions, HeadOptions
from ..options import BuildOptions
from .plan import Places, Plan, make_plan


def plan_again(bundle: Bundle, options: BuildOptions) -> Plan:
    """Choose the slots of a bundle anew.

    Raises:
        BuildError: as :func:`make_plan`, or the bundle's base does without a head and ``options`` too.
        AdapterError: an adapter in ``like`` cannot be read.
    """
    manifest = bundle.manifest
    trace = ir.load(bundle.root / TRACE_FILE)
    base = manifest.base
    places = Places.of(trace, base.model_type, base.prefix, marked=bool(manifest.weights))
    limits = manifest.limits
    every = options.slots is not None
    if not options.like:
        options = replace(
            options,
            slots=manifest.slots if options.slots is None else options.slots,
            max_rank=options.max_rank or limits.max_rank,
            max_width=options.max_width or limits.max_width,
        )
    plan = make_plan(places, options)
    if not options.like:
        plan = _kept(plan, bundle, options, every=every)
    if plan.head is None and places.head and not base.labels:
        raise BuildError(
            f"{bundle.root} cannot be lowered so",
            Problem(
                Code.UNSUPPORTED,
                "--slots",
                got="no head slots",
                expected="head slots, as the base has no head of its own",
                mend="name head among the --slots",
            ),
        )
    return plan


def _kept(plan: Plan, bundle: Bundle, options: BuildOptions, *, every: bool) -> Plan:
    """What the options do not name stays: sites, forms and activations.

    ``every``: kinds of slots were named, and all of them go to the layers that had any. Else each layer
    keeps the factors that it had.
    """
    manifest = bundle.manifest
    if options.targets is None and manifest.sites and plan.sites:
        asked = frozenset().union(*plan.sites.values())
        known = {site.path: frozenset(site.linear.factors) for site in manifest.sites}
        sites = {path: asked if every else factors for path, factors in known.items()}
        plan = replace(plan, sites=sites, left_out=())
    before = manifest.bottlenecks
    if plan.bottlenecks is not None and before is not None:
        plan = replace(
            plan,
            bottlenecks=BottleneckOptions(
                plan.bottlenecks.forms if options.bottlenecks else before.forms,
                plan.bottlenecks.activations if options.activations else before.activations,
                plan.bottlenecks.sites
                if options.bottlenecks
                else tuple(site.path for site in before.sites),
            ),
        )
    if plan.head is not None and manifest.head is not None and not options.activations:
        plan = replace(plan, head=HeadOptions(manifest.head.activations))
    return plan
