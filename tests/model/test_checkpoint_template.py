"""Finding a checkpoint's chat template."""

import json
from pathlib import Path
from typing import Any

import pytest

from guardwire_server.core.errors import StartupError
from guardwire_server.model.checkpoint_template import ChatTemplate, load_chat_template

TEMPLATE = "{{ 'A ' + messages[0].content }}{{ eos_token }}"
CHAT = [{"role": "user", "content": "hi"}]


def write_config(path: Path, **values: Any) -> None:  # noqa: ANN401 (any JSON)
    (path / "tokenizer_config.json").write_text(json.dumps(values))


def test_in_the_tokenizers_config(tmp_path: Path) -> None:
    write_config(tmp_path, chat_template=TEMPLATE, eos_token={"content": "<end>"}, pad_token=None)
    assert load_chat_template(tmp_path).render(CHAT) == "A hi<end>"


def test_in_files_of_its_own(tmp_path: Path) -> None:
    write_config(tmp_path, chat_template=TEMPLATE, eos_token="<e>")
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE.replace("A", "B")}))
    assert load_chat_template(tmp_path).render(CHAT) == "B hi<e>"
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE.replace("A", "Ć"), encoding="utf-8")
    assert load_chat_template(tmp_path).render(CHAT) == "Ć hi<e>"


def test_the_default_of_several(tmp_path: Path) -> None:
    templates = [{"name": "tool", "template": "T"}, {"name": "default", "template": TEMPLATE}]
    write_config(tmp_path, chat_template=templates)
    assert load_chat_template(tmp_path).render(CHAT) == "A hi"


def test_none(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="there is no chat template"):
        load_chat_template(tmp_path)
    write_config(tmp_path, chat_template=[{"name": "tool", "template": "T"}])
    with pytest.raises(StartupError, match="there is no chat template"):
        load_chat_template(tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% if %}", "fails: TemplateSyntaxError"),
        ("{{ raise_exception('no') }}", "fails: TemplateError: no"),
        ("{{ messages[3].content }}", "fails: UndefinedError"),
        ("{{ messages.append(1) }}", "fails: SecurityError"),
        ("nothing", "does not render a user's message"),
    ],
)
def test_one_that_does_not_work(source: str, message: str) -> None:
    with pytest.raises(StartupError, match=rf"^here: the chat template {message}"):
        ChatTemplate(source, {}, "here")


def test_one_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xff")
    with pytest.raises(StartupError, match=r"chat_template\.jinja: cannot be read"):
        load_chat_template(tmp_path)
