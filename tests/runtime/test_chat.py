"""Chat templates: as transformers renders them, and without harm where a template means it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from jinja2.exceptions import SecurityError
from tokenizers import AddedToken, Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from adexport.build import build_model
from adexport_runtime import Bundle, BundleError, Code, DependencyError, RequestError
from adexport_runtime.bundle import file_entry
from adexport_runtime.generation.chat import ChatTemplate
from adexport_runtime.generation.templating import MAX_STEPS

CHATML = """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message['content'] | trim + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

LLAMA = """{{ bos_token }}{% if messages[0].role == 'system' %}
{% set system = '<<SYS>>\\n' ~ messages[0].content ~ '\\n<</SYS>>\\n\\n' %}
{% set rest = messages[1:] %}
{% else %}
{% set system, rest = '', messages %}
{% endif %}
{% for message in rest %}
  {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
    {{ raise_exception('Roles must alternate user/assistant, not ' + message.role) }}
  {% endif %}
  {% if message.role == 'user' %}
[INST] {{ system if loop.first }}{{ message.content }} [/INST]
  {% else %}
 {{ message.content }} {{ eos_token }}
  {% endif %}
{% endfor %}
"""

DEFAULTS = """{%- set ns = namespace(system='You are helpful.', users=0) -%}
{%- for message in messages -%}
  {%- if message.role == 'system' -%}{%- set ns.system = message.content -%}{%- continue -%}{%- endif -%}
  {%- if message.role == 'user' -%}{%- set ns.users = ns.users + 1 -%}{%- endif -%}
  {%- if ns.users > 3 -%}{%- break -%}{%- endif -%}
{%- endfor -%}
<|system|>{{ ns.system }} ({{ ns.users }} turns)
{% for message in messages if message.role != 'system' %}
<|{{ message.role }}|>{{ message.content }}{% if not loop.last %}, then {{ loop.nextitem.role }}{% endif %}
{{ loop.index }}/{{ loop.length }} {{ loop.revindex }} {{ loop.previtem is defined }} {{ loop.last }}
{% generation %}{% set inside = 'x' %}{{ inside }}{% endgeneration %}{{ inside is defined }}
{% else %}
nothing
{% endfor %}
{{ unk_token is defined }} {{ pad_token }} {{ documents is none }} {{ missing is defined }}{{ missing }}
"""

TOOLS = """{% macro show(tool, depth=1) %}{{ '  ' * depth }}- {{ tool.function.name }}: {{ tool | tojson }}
{% endmacro %}
{% if tools %}
Tools:
{% for tool in tools %}{{ show(tool) }}{% endfor %}
{{ tools | tojson(indent=2) }} {{ dict(a=1, b='<é>') | tojson(separators=(',', ':'), sort_keys=true) }}
{% elif tools is none %}no tools{% endif %}
{% for message in messages %}
{% for key, value in message.items() | sort(attribute='0') %}{{ key }}={{ value }};{% endfor %}
{% for call in message.tool_calls or [] recursive %}<{{ call.name }}>{{ loop(call.more or []) }}{% endfor %}
{{ '%-6s|' % message.role }}{{ '{:>9}'.format(message.role) }}{{ range(3) | list }}{{ 2 ** 10 }}
{% endfor %}
"""

TEMPLATES = {"chatml": CHATML, "llama": LLAMA, "defaults": DEFAULTS, "tools": TOOLS}

TALKS: dict[str, list[dict[str, Any]]] = {
    "one": [{"role": "user", "content": "Hi & <hello> 'you'"}],
    "system": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "  猫 🦙?\n"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": ""},
    ],
    "long": [{"role": role, "content": f"{role} {i}"} for i in range(5) for role in ("user", "assistant")],
    "calls": [
        {"role": "user", "content": "Weather?", "name": None},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"name": "a", "more": [{"name": "b"}, {"name": "c", "more": []}]}],
        },
    ],
}

TOOL = {"type": "function", "function": {"name": "weather", "description": "<b>täglich</b>"}}

MakeBundle = Callable[..., Bundle]


@pytest.fixture
def make_bundle(tiny_bundle: Path, tmp_path: Path) -> MakeBundle:
    """``make_bundle(files)``: a bundle that has just these files, all of them listed."""

    def make(files: dict[str, str | bytes]) -> Bundle:
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        listed = tuple(file_entry(tmp_path, tmp_path / name) for name in files)
        manifest = Bundle.open(tiny_bundle).manifest.model_copy(update={"files": listed})
        return Bundle(tmp_path, manifest)

    return make


def saved(template: Any, folder: Path) -> PreTrainedTokenizerFast:
    """A tokenizer of transformers with a chat template, as it saves it."""
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, unk_token="<unk>"))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token=AddedToken("</s>", special=True, lstrip=True),
        pad_token="</s>",
    )
    fast.chat_template = template
    fast.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def files_in(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_equals_transformers(
    make_bundle: MakeBundle, tmp_path_factory: pytest.TempPathFactory, name: str, talk: str, prompt: bool
) -> None:
    folder = tmp_path_factory.mktemp("saved")
    reference = saved(TEMPLATES[name], folder)
    template = ChatTemplate.from_bundle(make_bundle(files_in(folder)))
    for tools in (None, [], [TOOL]):
        expected = reference.apply_chat_template(
            TALKS[talk], tools=tools, add_generation_prompt=prompt, tokenize=False
        )
        assert template.render(TALKS[talk], prompt, tools) == expected
        assert len(expected) > 10


def test_the_time() -> None:
    before = datetime.now().replace(microsecond=0)
    found = ChatTemplate({"default": "{{ strftime_now('%Y-%m-%d %H:%M:%S') }}"}, {}).render(TALKS["one"])
    assert before <= datetime.fromisoformat(found) <= datetime.now()


def test_the_template_of_a_real_build(tiny_bert: Path, tmp_path: Path) -> None:
    """What transformers saves beside the tokenizer is part of the bundle, and listed."""
    model = tmp_path / "model"
    shutil.copytree(tiny_bert, model)
    reference = saved(CHATML, model)
    bundle = build_model(str(model), tmp_path / "chat.bundle").bundle
    assert "chat_template.jinja" in {entry.path for entry in bundle.manifest.files}
    bundle.check_files()
    expected = reference.apply_chat_template(TALKS["one"], add_generation_prompt=True, tokenize=False)
    assert ChatTemplate.from_bundle(bundle).render(TALKS["one"]) == expected


NAMED = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]


@pytest.mark.parametrize("tools", [None, [], [TOOL]])
@pytest.mark.parametrize("where", ["files", "config"])
def test_named_templates(
    make_bundle: MakeBundle, tmp_path_factory: pytest.TempPathFactory, where: str, tools: Any
) -> None:
    folder = tmp_path_factory.mktemp("saved")
    reference = saved({entry["name"]: entry["template"] for entry in NAMED}, folder)
    files: dict[str, Any] = files_in(folder)
    if where == "config":
        files = {"tokenizer_config.json": json.dumps({"chat_template": NAMED})}
    expected = reference.apply_chat_template(TALKS["one"], tools=tools, tokenize=False)
    assert ChatTemplate.from_bundle(make_bundle(files)).render(TALKS["one"], tools=tools) == expected


def test_a_template_in_the_configuration(make_bundle: MakeBundle) -> None:
    config = {
        "chat_template": "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}"
        "|{{ image_token }}|{{ add_bos_token }}.",
        "bos_token": "<s>",
        "eos_token": {"__type": "AddedToken", "content": "</s>", "special": True},
        "pad_token": None,
        "add_bos_token": True,
        "extra_special_tokens": {"image_token": "<img>"},
    }
    bundle = make_bundle({"tokenizer_config.json": json.dumps(config)})
    assert ChatTemplate.from_bundle(bundle).render(TALKS["one"]) == "<s>|</s>||<img>|."


def test_the_file_goes_before_the_configuration(make_bundle: MakeBundle) -> None:
    config = json.dumps({"chat_template": "config"})
    bundle = make_bundle({"tokenizer_config.json": config, "chat_template.jinja": "file"})
    assert ChatTemplate.from_bundle(bundle).render(TALKS["one"]) == "file"


@pytest.mark.parametrize("files", [{}, {"tokenizer_config.json": "{}"}])
def test_a_bundle_without_a_template(make_bundle: MakeBundle, files: dict[str, str]) -> None:
    bundle = make_bundle(files)
    (bundle.root / "chat_template.jinja").write_text("planted: the manifest does not list it")
    with pytest.raises(BundleError) as caught:
        ChatTemplate.from_bundle(bundle)
    (problem,) = caught.value.problems
    assert problem.code == Code.ABSENT
    assert "folder with a chat template" in problem.mend


DAMAGED: dict[str, dict[str, str | bytes]] = {
    "chat template default": {"chat_template.jinja": "{% for %}"},
    "chat template tool_use": {
        "chat_template.jinja": "fine",
        "additional_chat_templates/tool_use.jinja": "{{ x | nothing }}",
    },
    "chat_template.jinja": {"chat_template.jinja": b"\xff\xfe"},
    "tokenizer_config.json": {"tokenizer_config.json": '{"chat_template": "a", "chat_template": "b"}'},
    "tokenizer_config.json: chat_template": {"tokenizer_config.json": '{"chat_template": 7}'},
    "chat templates": {"tokenizer_config.json": '{"chat_template": [{"name": "rag", "template": ""}]}'},
}


@pytest.mark.parametrize("subject", DAMAGED)
def test_damaged_templates(make_bundle: MakeBundle, subject: str) -> None:
    with pytest.raises(BundleError) as caught:
        ChatTemplate.from_bundle(make_bundle(DAMAGED[subject]))
    assert [(p.code, p.subject) for p in caught.value.problems] == [(Code.DAMAGED, subject)]


@pytest.mark.parametrize(
    "config", ["[]", '{"chat_template": [{"name": 1, "template": ""}]}', '{"chat_template": [1]}']
)
def test_damaged_configurations(make_bundle: MakeBundle, config: str) -> None:
    with pytest.raises(BundleError) as caught:
        ChatTemplate.from_bundle(make_bundle({"tokenizer_config.json": config}))
    assert caught.value.codes == {Code.DAMAGED}


def test_all_broken_templates_at_once() -> None:
    with pytest.raises(BundleError) as caught:
        ChatTemplate({"a": "{% if %}", "b": "{{ ", "c": "fine"}, {})
    subjects = [problem.subject for problem in caught.value.problems]
    assert subjects == ["chat template a", "chat template b", "chat templates"]


def test_without_jinja2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "adexport_runtime.generation.templating", raising=False)
    monkeypatch.delattr("adexport_runtime.generation.templating", raising=False)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(DependencyError) as caught:
        ChatTemplate({"default": ""}, {})
    (problem,) = caught.value.problems
    assert (problem.code, problem.subject) == (Code.PACKAGE_MISSING, "jinja2")


GOOD = {"role": "user", "content": "hi"}
BAD_MESSAGES: list[tuple[Any, list[str]]] = [
    ([], ["messages"]),
    ("hi", ["messages"]),
    (None, ["messages"]),
    (GOOD, ["messages"]),
    ([GOOD, "hi"], ["messages[1]"]),
    ([{}], ["messages[0].role", "messages[0].content"]),
    (
        [{"role": "", "content": "x"}, {"role": "user", "content": None}],
        ["messages[0].role", "messages[1].content"],
    ),
    ([{"role": "user", "content": [{"type": "text", "text": "x"}]}], ["messages[0].content"]),
    ([{**GOOD, "extra": object()}], ["messages[0]"]),
    ([{**GOOD, "extra": {1: 2}}], ["messages[0]"]),
    ([{**GOOD, "extra": float("nan")}], ["messages[0]"]),
    ([{**GOOD, "tool_calls": []}, {"role": "assistant", "tool_calls": []}], ["messages[1].content"]),
]


@pytest.mark.parametrize(("messages", "subjects"), BAD_MESSAGES)
def test_messages_that_do_not_fit(messages: Any, subjects: list[str]) -> None:
    with pytest.raises(RequestError) as caught:
        ChatTemplate({"default": CHATML}, {}).render(messages)
    assert [(p.code, p.subject) for p in caught.value.problems] == [(Code.BAD_INPUT, s) for s in subjects]


@pytest.mark.parametrize("tools", ["weather", [str], {"a": 1}, [{"a": print}]])
def test_tools_that_do_not_fit(tools: Any) -> None:
    with pytest.raises(RequestError) as caught:
        ChatTemplate({"default": CHATML}, {}).render([GOOD], tools=tools)
    assert [p.subject for p in caught.value.problems] == ["tools"]


def test_a_message_that_only_calls_tools_needs_no_content() -> None:
    messages = [GOOD, {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}]
    template = ChatTemplate({"default": "{{ messages[1].content is defined }}"}, {})
    assert template.render(messages) == "False"


def test_a_template_that_refuses() -> None:
    with pytest.raises(RequestError) as caught:
        ChatTemplate({"default": LLAMA}, {}).render([GOOD, GOOD])
    (problem,) = caught.value.problems
    assert (problem.code, problem.subject) == (Code.BAD_INPUT, "messages")
    assert problem.got == "Roles must alternate user/assistant, not user"


FAILING = {
    "an undefined attribute": "{{ messages[0].content.nothing.more }}",
    "a number for a text": "{{ messages[0].content + 1 }}",
    "a division": "{{ 1 // (messages | length - 1) }}",
    "no such message": "{{ messages[7].role }}",
    "another file": "{% include '/etc/passwd' %}",
    "endless recursion": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
}


@pytest.mark.parametrize("source", FAILING.values(), ids=FAILING)
def test_a_template_that_fails(source: str) -> None:
    with pytest.raises(RequestError) as caught:
        ChatTemplate({"default": source}, {}).render([GOOD])
    assert caught.value.codes == {Code.BAD_INPUT}


MALICIOUS = {
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "classes by attr": "{{ (''|attr('__class__')).__mro__ }}",
    "globals of a function": "{{ raise_exception.__globals__.json }}",
    "globals of a class": "{{ cycler.__init__.__globals__ }}",
    "globals of a method": "{{ namespace.__init__.__globals__ }}",
    "a format": "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "a format map": "{{ '{x.__class__.__mro__}'.format_map({'x': messages}) }}",
    "a namespace": "{% set ns = namespace() %}{% set ns.__class__ = dict %}{{ ns }}",
    "a namespace's start": "{{ namespace(__class__=dict) }}",
    "a change": "{% set _ = messages.append(1) %}{{ messages.append(1) }}",
    "a change inside": "{{ messages[0].update(role='x') }}",
    "nested loops": "{% set r = range(9999) %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}",
    "loops over a list": "{% set r = [1] * 9999 %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}",
    "a long range": "{% for a in range(10 ** 9) %}{% endfor %}",
    "calls that branch": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}"
    ),
    "loops that branch": (
        "{% for a in [1, 2] recursive %}{{ loop([1, 2]) if loop.depth < 60 }}{% endfor %}"
    ),
    "a long string": "{{ 'x' * (10 ** 10) }}",
    "a long string, folded": "{{ 'xxxxxxxxxxxxxxxxxxxx' * 10000000000 }}",
    "a long list": "{{ 10000000000 * [1] }}",
    "a large power": "{{ 9 ** (9 ** 9) }}",
    "large products": (
        "{% set ns = namespace(x=3) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}"
    ),
    "a long output": "{% for a in range(99999) %}{{ 'x' * 10000 }}{% endfor %}",
}


@pytest.mark.parametrize("source", MALICIOUS.values(), ids=MALICIOUS)
def test_a_malicious_template(source: str) -> None:
    messages = [dict(GOOD)]
    with pytest.raises(RequestError) as caught:
        ChatTemplate({"default": source}, {}).render(messages)
    assert caught.value.codes == {Code.BAD_INPUT}
    assert isinstance(caught.value.__cause__, SecurityError | OverflowError)
    assert messages == [GOOD]


def test_the_steps_are_counted_anew_for_every_rendering() -> None:
    template = ChatTemplate({"default": "{% for a in range(90000) %}{% endfor %}done"}, {})
    for _ in range(MAX_STEPS // 90000 + 2):
        assert template.render([GOOD]) == "done"
