"""Chat templates as Jinja2 renders them, in a sandbox and within a budget. Needs the ``jinja2`` package.

What templates may use is what transformers gives them (``utils/chat_template_utils.py``).

Templates come with models and are not trusted: they reach no attribute that starts with an underscore,
change nothing that they are given, and loops, calls, products, powers and output are bounded. Not bounded
is what one filter, one format or one assignment does at a time: text that doubles again and again, or
``"%9999999999d"``, can still fill the memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from datetime import datetime
from itertools import count
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

__all__ = ["MAX_CHARACTERS", "MAX_STEPS", "TemplateError", "compile_template", "render"]

#: turns of loops and calls in one rendering
MAX_STEPS = 200_000
#: what a rendering may put out, and a repeated text or list may hold
MAX_CHARACTERS = 16_000_000
#: of whole numbers
MAX_BITS = 16_384

_steps: ContextVar[Iterator[int]] = ContextVar("steps")


def compile_template(source: str) -> Template:
    """Compile a template; it may then be rendered from several threads.

    Raises:
        TemplateError: it is no Jinja2, or asks for a filter or a test that is not there.
    """
    environment = _Sandbox(
        trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[_Generation, loopcontrols]
    )
    del environment.globals["lipsum"]
    environment.globals.update(
        raise_exception=_raise_exception, strftime_now=_strftime_now, dict=_dict, namespace=_Namespace
    )
    environment.filters.update(tojson=_tojson, **{_COUNTED: _counted})
    tree = _CountLoops(environment).visit(environment.parse(source))
    code = environment.compile(tree)
    return Template.from_code(environment, code, environment.make_globals(None))


def render(template: Template, variables: Mapping[str, Any]) -> str:
    """Render a compiled template within its budget. Whatever the template raises comes through."""
    token = _steps.set(count(1))
    try:
        pieces, size = [], 0
        for piece in template.generate(variables):
            size += len(piece)
            if size > MAX_CHARACTERS:
                raise SecurityError(f"the template puts out more than {MAX_CHARACTERS} characters")
            pieces.append(piece)
        return "".join(pieces)
    finally:
        _steps.reset(token)


class _Sandbox(ImmutableSandboxedEnvironment):
    """The sandbox, with calls counted, and products and powers kept to a size."""

    intercepted_binops = frozenset({"*", "**"})

    def call(self, context: Context, target: Any, /, *args: Any, **kwargs: Any) -> Any:
        _spend()
        return super().call(context, target, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if _is_too_large(operator, left, right):
            raise SecurityError(f"the result of {operator} is too large")
        return super().call_binop(context, operator, left, right)


class _CountLoops(NodeTransformer):
    """Sends what a loop goes over through a filter that counts."""

    def __init__(self, environment: _Sandbox) -> None:
        self._environment = environment

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - jinja2 names it so
        """Wrap the loop's iterable."""
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, _COUNTED, [], [], None, None, lineno=node.lineno)
        node.iter.set_environment(self._environment)
        return node


class _Generation(Extension):
    """``{% generation %}`` marks what the model said, for training; here it is what stands inside."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        """The tag as a scope of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Namespace(Namespace):
    """A namespace without names that start with an underscore, which Python gives a meaning."""

    def __init__(self, /, *args: Any, **kwargs: Any) -> None:
        attributes = dict(*args, **kwargs)
        for name in attributes:
            _check_name(name)
        super().__init__(attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


#: no name that a template could write
_COUNTED = " counted"


def _counted(iterable: Iterable[Any]) -> Iterator[Any]:
    for item in iterable:
        _spend()
        yield item


def _spend() -> None:
    if next(_steps.get()) > MAX_STEPS:
        raise SecurityError(f"the template takes more than {MAX_STEPS} steps")


def _check_name(name: object) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise SecurityError(f"{name!r} is no name for a value of a namespace")


def _is_too_large(operator: str, left: Any, right: Any) -> bool:
    """Whether a product or a power would be; other errors are Python's to raise."""
    if isinstance(left, int) and isinstance(right, int):
        bits, more = left.bit_length(), right.bit_length()
        return bits > 1 and (bits * right if operator == "**" else bits + more) > MAX_BITS
    size = max(_length(left), _length(right))
    times = next((value for value in (left, right) if isinstance(value, int)), 0)
    return operator == "*" and size * times > MAX_CHARACTERS


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple) else 0


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is: Jinja2's own filter of this name escapes what HTML cares for."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
