"""The bundle's chat template: from messages to the text of a prompt."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..bundle import Bundle
from ..errors import BundleError, Code, DependencyError, Problem, RequestError
from ..files import load_json

#: where transformers saves templates; a file of these goes before the key in the configuration
TEMPLATE_FILE = "chat_template.jinja"
MORE_TEMPLATES = "additional_chat_templates/"
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_KEY = "chat_template"
DEFAULT = "default"
#: the template, if there are several, for requests with tools
WITH_TOOLS = "tool_use"

HEADLINE = "the bundle's chat template cannot be used"


class ChatTemplate:
    """Renders conversations as the model was trained to read them. Safe to use from several threads."""

    def __init__(self, templates: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        """Compile templates by their names, one of them ``default``, and give them special tokens.

        Raises:
            BundleError: naming every template that cannot be compiled; or there is no default.
            DependencyError: the ``jinja2`` package is not installed.
        """
        try:
            from . import templating
        except ImportError as error:
            raise DependencyError(
                "the jinja2 package is needed",
                Problem(Code.PACKAGE_MISSING, "jinja2", mend="pip install adexport[cpu]"),
            ) from error
        self._render: Callable[[Any, Mapping[str, Any]], str] = templating.render
        self._templates: dict[str, Any] = {}
        problems = []
        for name, source in templates.items():
            try:
                self._templates[name] = templating.compile_template(source)
            except (templating.TemplateError, ValueError, RecursionError, MemoryError) as error:
                problems.append(_damaged(f"chat template {name}", str(error), "a Jinja2 template"))
        if DEFAULT not in templates:
            names = ", ".join(templates) or "none"
            problems.append(_damaged("chat templates", names, f"one that is named {DEFAULT}"))
        if problems:
            raise BundleError(HEADLINE, problems)
        self._special_tokens = dict(special_tokens)

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> ChatTemplate:
        """The template that lies beside the bundle's tokenizer.

        Raises:
            BundleError: there is none, or it is damaged.
            DependencyError: the ``jinja2`` package is not installed.
        """
        listed = {entry.path for entry in bundle.manifest.files}
        config = _read_config(bundle.root / CONFIG_FILE) if CONFIG_FILE in listed else {}
        templates = _from_files(bundle.root, listed) or _from_config(config)
        if not templates:
            raise BundleError(
                "no chat template",
                Problem(
                    Code.ABSENT,
                    str(bundle.root),
                    got="a bundle without a chat template",
                    cause="the model's folder had none when the bundle was built",
                    mend="pass the text of a prompt, or build from a folder with a chat template",
                ),
            )
        return cls(templates, _special_tokens(config))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The text of a conversation, special tokens included: encode it without adding any.

        Args:
            messages: each with a ``role`` and a ``content``, both strings; what else it has (plain JSON
                values) is the template's to read. One with ``tool_calls`` may have no content.
            add_generation_prompt: end with what opens the model's answer.
            tools: descriptions (JSON schemas) of functions that the model may call.

        Raises:
            RequestError: naming every message that does not fit; or the template refuses them.
        """
        problems = [problem for place, message in _listed(messages) for problem in _faults(place, message)]
        if not _is_list(messages) or not messages:
            problems.append(_bad("messages", messages, "a list of at least one message"))
        plain = tools is None or (_is_list(tools) and all(isinstance(tool, Mapping) for tool in tools))
        if not plain or not _is_plain(tools):
            problems.append(_bad("tools", tools, "a list of objects of plain JSON values, or None"))
        if problems:
            raise RequestError("the messages do not fit", problems)
        variables = {
            **self._special_tokens,
            "messages": [_present(_plain(message)) for message in messages],
            "tools": _plain(tools),
            "documents": None,
            "add_generation_prompt": bool(add_generation_prompt),
        }
        with_tools = tools is not None and WITH_TOOLS in self._templates
        template = self._templates[WITH_TOOLS if with_tools else DEFAULT]
        try:
            return self._render(template, variables)
        except Exception as error:  # whatever a foreign program raises
            raise RequestError(
                "the chat template refuses the messages",
                Problem(
                    Code.BAD_INPUT,
                    "messages",
                    got=str(error) or type(error).__name__,
                    cause="roles, or an order of them, that the model was not trained for",
                ),
            ) from error


def _damaged(subject: str, got: str, expected: str) -> Problem:
    return Problem(Code.DAMAGED, subject, got=got[:200], expected=expected, mend="build the bundle again")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(HEADLINE, _damaged(path.name, str(error), "a text in UTF-8")) from error


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = load_json(_read(path))
    except (ValueError, RecursionError) as error:
        raise BundleError(HEADLINE, _damaged(path.name, str(error), "JSON")) from error
    if not isinstance(config, dict):
        raise BundleError(HEADLINE, _damaged(path.name, repr(config), "a JSON object"))
    return config


def _from_files(root: Path, listed: set[str]) -> dict[str, str]:
    """Templates of files that the manifest lists, by name."""
    more = sorted(path for path in listed if path.startswith(MORE_TEMPLATES) and path.endswith(".jinja"))
    names = {path: Path(path).stem for path in more}
    names |= {TEMPLATE_FILE: DEFAULT} if TEMPLATE_FILE in listed else {}
    return {name: _read(root / path) for path, name in names.items()}


def _from_config(config: Mapping[str, Any]) -> dict[str, str]:
    """Templates of the tokenizer's configuration, by name: one alone is the default."""
    given = config.get(TEMPLATE_KEY)
    if given is None:
        return {}
    named = [{"name": DEFAULT, "template": given}] if isinstance(given, str) else given
    try:
        templates = {entry["name"]: entry["template"] for entry in named}
    except (TypeError, KeyError):
        templates = {None: None}
    if not all(isinstance(text, str) for entry in templates.items() for text in entry):
        wanted = "a string, or a list of objects with name and template"
        raise BundleError(HEADLINE, _damaged(f"{CONFIG_FILE}: {TEMPLATE_KEY}", repr(given), wanted))
    return templates


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """``bos_token`` and its like, for the template: a token is a string or an object with its content."""
    extra = [config.get(key) for key in ("extra_special_tokens", "model_specific_special_tokens")]
    given = {key: value for key, value in config.items() if key.endswith("_token")}
    for named in extra:
        given |= named if isinstance(named, dict) else {}
    tokens = {
        key: value.get("content") if isinstance(value, dict) else value for key, value in given.items()
    }
    return {key: token for key, token in tokens.items() if isinstance(token, str)}


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _listed(messages: Any) -> list[tuple[str, Any]]:
    return [(f"messages[{i}]", message) for i, message in enumerate(messages)] if _is_list(messages) else []


def _bad(subject: str, got: Any, expected: str) -> Problem:
    return Problem(Code.BAD_INPUT, subject, got=repr(got)[:80], expected=expected)


def _faults(place: str, message: Any) -> list[Problem]:
    """What is wrong with one message."""
    if not isinstance(message, Mapping) or not _is_plain(message):
        return [_bad(place, message, "an object of plain JSON values")]
    problems = []
    if not isinstance(message.get("role"), str) or not message["role"]:
        problems.append(_bad(f"{place}.role", message.get("role"), "a string that is not empty"))
    content = message.get("content")
    if not isinstance(content, str) and (content is not None or not message.get("tool_calls")):
        problems.append(_bad(f"{place}.content", content, "a string"))
    return problems


def _is_plain(value: Any, depth: int = 0) -> bool:
    """Whether these are JSON values alone: an object of another kind could bring methods for a template."""
    if depth > 100:
        return False
    if isinstance(value, Mapping):
        return all(type(key) is str and _is_plain(item, depth + 1) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(_is_plain(item, depth + 1) for item in value)
    return (
        value is None or type(value) in (str, int, bool) or (type(value) is float and math.isfinite(value))
    )


def _plain(value: Any) -> Any:
    """The same values in lists and dicts of their own."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _present(message: dict[str, Any]) -> dict[str, Any]:
    """Without what is None: templates ask whether a key is there."""
    return {key: value for key, value in message.items() if value is not None}
