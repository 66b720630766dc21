"""Finds and renders a checkpoint's own chat template."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from guardwire_server.core.errors import StartupError
from guardwire_server.model.checkpoint_config import read_json_object

_SPECIAL_TOKEN_KEYS = ("bos_token", "eos_token", "unk_token", "pad_token")
_PROBE = "guardwire probe"


class ChatTemplate:
    """A Jinja template of a chat, rendered as transformers' `apply_chat_template` renders it. Immutable.

    The template is code from whoever made the checkpoint: transformers runs it in Jinja's sandbox.

    Attributes:
        source: The template.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str], origin: str) -> None:
        """Compiles the template and tries it.

        Args:
            source: The template.
            special_tokens: What the template may name: `eos_token` and the like.
            origin: What to call it in messages: its path and key.

        Raises:
            StartupError: It does not compile, or does not render a user's message.
        """
        self.source = source
        self._special_tokens = dict(special_tokens)
        self._origin = origin
        try:
            rendered = self.render([{"role": "user", "content": _PROBE}])
        except Exception as error:  # Jinja's errors, and whatever the template's code raises
            raise StartupError(f"{origin}: the chat template fails: {type(error).__name__}: {error}") from error
        if _PROBE not in rendered:
            raise StartupError(f"{origin}: the chat template does not render a user's message")

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The chat as text. Messages are objects with `role` and `content`."""
        chat = [dict(message) for message in messages]
        options: dict[str, Any] = {"add_generation_prompt": False, **self._special_tokens}
        # Annotated as str, it returns the rendered chats and the places of the answers in them.
        rendered: Any = render_jinja_template([chat], chat_template=self.source, **options)
        text: str = rendered[0][0]
        return text


def load_chat_template(path: Path) -> ChatTemplate:
    """Loads the template of the checkpoint in a directory.

    Looked for, as transformers does: `chat_template.jinja`, then `chat_template.json`, then `tokenizer_config.json`;
    where a file holds several by name, the one named `default`.

    Raises:
        StartupError: There is none, or it does not work.
    """
    config_path = path / "tokenizer_config.json"
    values = read_json_object(config_path) if config_path.is_file() else {}
    special_tokens = {key: text for key in _SPECIAL_TOKEN_KEYS if (text := _token_text(values.get(key)))}
    jinja_path = path / "chat_template.jinja"
    if jinja_path.is_file():
        return ChatTemplate(_read_text(jinja_path), special_tokens, str(jinja_path))
    json_path = path / "chat_template.json"
    for origin, holder in (
        (json_path, read_json_object(json_path) if json_path.is_file() else {}),
        (config_path, values),
    ):
        source = _template_source(holder.get("chat_template"))
        if source:
            return ChatTemplate(source, special_tokens, f"{origin}: chat_template")
    raise StartupError(
        f"{path}: there is no chat template (chat_template.jinja, or the key chat_template of tokenizer_config.json); "
        "Qwen3Guard-Gen cannot be asked anything without"
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StartupError(f"{path}: cannot be read: {error}") from error


def _template_source(value: object) -> str | None:
    if isinstance(value, list):
        named = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
        value = named.get("default")
    return value if isinstance(value, str) and value else None


def _token_text(value: object) -> str | None:
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None
