r"""Turns conversations into token ids: ChatML for Stream, the checkpoint's own template for Gen.

Rule 1: a control token comes from us or from the template, never from what someone wrote.
Rule 2: what stands between two control tokens is encoded as one plain text, as the reference's tokenizer does it:
`user\n` and the message are one run, so that a leading newline of the message merges as it did in training.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from guardwire_server.core.answer import answer_texts
from guardwire_server.core.errors import InvalidField, StartupError
from guardwire_server.core.verdict import Message, Role
from guardwire_server.model.checkpoint_template import ChatTemplate
from guardwire_server.model.tokens import Tokenizer

_ROLE_NAMES = {Role.SYSTEM: "system", Role.USER: "user", Role.ASSISTANT: "assistant"}
_INVALID = "INVALID_CONVERSATION"
_USER_HEADER = b"user\n"
_THINK_END = "</think>"
_PRIVATE_USE = range(0xE000, 0xF900)


@dataclass(frozen=True, slots=True)
class StreamPrompt:
    """Ids to extend a Stream session with.

    Attributes:
        token_ids: The ids.
        query_index: The index in `token_ids` of the `<|im_end|>` that closes the user turn: the only position at which
            the query heads were trained.
    """

    token_ids: tuple[int, ...]
    query_index: int


@dataclass(frozen=True, slots=True)
class VerdictTokens:
    """Where a Gen answer decides: after `prefix_ids` (`Safety:`) comes one of the three ids, or the grammar is left."""

    prefix_ids: tuple[int, ...]
    safe_id: int
    controversial_id: int
    unsafe_id: int


def check_conversation(messages: Sequence[Message], *, last_roles: frozenset[Role]) -> None:
    """Checks the order of a conversation: an optional system message, then user and assistant in turn, user first.

    Raises:
        InvalidField: The order is another one. The templates would drop or misplace such messages silently.
    """
    turns = messages[1:] if messages and messages[0].role is Role.SYSTEM else messages
    if not turns:
        raise InvalidField(_INVALID, "messages", "there must be a user's message")
    first = len(messages) - len(turns)
    for index, message in enumerate(turns):
        expected = Role.ASSISTANT if index % 2 else Role.USER
        if message.role is not expected:
            found = _ROLE_NAMES[message.role]
            field = f"messages[{first + index}].role"
            raise InvalidField(_INVALID, field, f"must be {_ROLE_NAMES[expected]} here, found {found}")
    if turns[-1].role not in last_roles:
        roles = " or ".join(sorted(_ROLE_NAMES[role] for role in last_roles))
        raise InvalidField(_INVALID, f"messages[{len(messages) - 1}].role", f"the last message must be the {roles}'s")


def render_stream_prompt(tokenizer: Tokenizer, messages: Sequence[Message], *, thinking: bool) -> StreamPrompt:
    """Renders a conversation up to the first token of the answer, without a default system turn.

    Earlier answers lose their reasoning (everything up to `</think>` and the newlines after it), as in Qwen3's own
    template: the guarded model does not see it either.

    Args:
        tokenizer: The checkpoint's.
        messages: The conversation; the last message is the user's.
        thinking: Whether the answer begins with its own reasoning; otherwise an empty thinking block is put before it.

    Raises:
        InvalidField: The messages are not in order.
    """
    check_conversation(messages, last_roles=frozenset({Role.USER}))
    ids: list[int] = []
    for message in messages:
        content = message.content
        if message.role is Role.ASSISTANT and _THINK_END in content:
            content = content.rpartition(_THINK_END)[2].lstrip("\n")
        ids += _turn(tokenizer, tokenizer.encode_plain(f"{_ROLE_NAMES[message.role]}\n{content}"))
    return _with_answer_header(tokenizer, ids, thinking)


def render_user_turn(
    tokenizer: Tokenizer, content: str | Sequence[int], *, thinking: bool, answer_tail: Sequence[int]
) -> StreamPrompt:
    r"""Closes the present answer and renders the user's next message, up to the first token of the next answer.

    The answer is closed with what it lacks of `<|im_end|>\n`: an engine may or may not push its own end token, and a
    caller that pushes templated ids the newline too.

    Args:
        tokenizer: The checkpoint's.
        content: The message's text, or its ids without header and closing token.
        thinking: As in `render_stream_prompt`.
        answer_tail: The last two token ids of the answer, or as many as there are.

    Raises:
        InvalidField: The ids hold a `<|im_start|>` or `<|im_end|>`: the user would open or close turns.
    """
    control = tokenizer.control
    newline = tokenizer.encode_plain("\n")
    tail = list(answer_tail[-2:])
    if tail == [control.im_end, *newline]:
        ids: list[int] = []
    elif tail and tail[-1] == control.im_end:
        ids = newline
    else:
        ids = [control.im_end, *newline]
    if isinstance(content, str):
        run = tokenizer.encode_plain(f"user\n{content}")
    else:
        for index, token_id in enumerate(content):
            if token_id in (control.im_start, control.im_end):
                field = f"user_turn.tokens.token_ids[{index}]"
                raise InvalidField("CONTROL_TOKEN", field, "a user's message must not open or close a turn")
        run = [*tokenizer.encode_plain("user\n"), *content]
    return _with_answer_header(tokenizer, [*ids, *_turn(tokenizer, run)], thinking)


def find_query_index(tokenizer: Tokenizer, token_ids: Sequence[int]) -> int | None:
    """Where a templated prompt is judged: the last `<|im_end|>` that closes a user turn, or None without one."""
    control = tokenizer.control
    end: int | None = None
    for index in range(len(token_ids) - 1, -1, -1):
        if token_ids[index] == control.im_end:
            end = index
        elif token_ids[index] == control.im_start:
            if end is not None and _opens_with(tokenizer, token_ids[index + 1 : end], _USER_HEADER):
                return end
            end = None
    return None


def render_gen_prompt(template: ChatTemplate, tokenizer: Tokenizer, messages: Sequence[Message]) -> tuple[int, ...]:
    """Renders a conversation with the Gen checkpoint's own template, up to the first token of its verdict.

    The ids are those of transformers' `apply_chat_template` wherever no message spells a control token. Where one does,
    a private-use character that nobody wrote splits it while the template is rendered, and is taken out after the
    text was cut at the template's own control tokens.

    Args:
        template: The checkpoint's.
        tokenizer: The checkpoint's.
        messages: The conversation; its last message, the user's or the assistant's, is what the verdict is about.

    Raises:
        InvalidField: The messages are not in order.
    """
    check_conversation(messages, last_roles=frozenset({Role.USER, Role.ASSISTANT}))
    spellings = sorted(tokenizer.added_tokens, key=len, reverse=True)
    splitter = _absent_character([template.source, *(message.content for message in messages)])
    chat = [
        {"role": _ROLE_NAMES[message.role], "content": _split_controls(message.content, spellings, splitter)}
        for message in messages
    ]
    ids: list[int] = []
    for run in re.split(f"({'|'.join(map(re.escape, spellings))})", template.render(chat)):
        token_id = tokenizer.added_tokens.get(run)
        ids += tokenizer.encode_plain(run.replace(splitter, "")) if token_id is None else [token_id]
    return tuple(ids)


def verdict_token_ids(tokenizer: Tokenizer) -> VerdictTokens:
    """Finds the tokens by which a Gen answer decides, from the answers `Safety: Safe`, `… Controversial`, `… Unsafe`.

    Raises:
        StartupError: In this vocabulary the three answers do not part at one token.
    """
    answers = [tokenizer.encode_plain(f"Safety: {level}") for level in ("Safe", "Controversial", "Unsafe")]
    num_common = 0
    while len({answer[num_common] for answer in answers if num_common < len(answer)}) == 1:
        num_common += 1
    deciding = [answer[num_common] for answer in answers if num_common < len(answer)]
    if len(set(deciding)) != len(answers):
        raise StartupError("tokenizer.json: `Safe`, `Controversial` and `Unsafe` do not begin with distinct tokens")
    return VerdictTokens(tuple(answers[0][:num_common]), *deciding)


def likely_answers(tokenizer: Tokenizer, end_id: int) -> dict[bool, tuple[tuple[int, ...], ...]]:
    """The answers of the grammar in tokens, for prompts (False) and for answers (True); see engine.backend."""
    return {
        expects_refusal: tuple(
            (*tokenizer.encode_plain(text), end_id) for text in answer_texts(expects_refusal=expects_refusal)
        )
        for expects_refusal in (False, True)
    }


def _turn(tokenizer: Tokenizer, run: Sequence[int]) -> list[int]:
    control = tokenizer.control
    return [control.im_start, *run, control.im_end, *tokenizer.encode_plain("\n")]


def _with_answer_header(tokenizer: Tokenizer, ids: Sequence[int], thinking: bool) -> StreamPrompt:
    """Adds the assistant's header behind the user turn that `ids` end with, its closing newline included."""
    control = tokenizer.control
    query_index = max(index for index, token_id in enumerate(ids) if token_id == control.im_end)
    header = [control.im_start, *tokenizer.encode_plain("assistant\n")]
    if not thinking:
        blank = tokenizer.encode_plain("\n\n")
        header += [control.think, *blank, control.think_end, *blank]
    return StreamPrompt((*ids, *header), query_index)


def _opens_with(tokenizer: Tokenizer, token_ids: Sequence[int], header: bytes) -> bool:
    """Whether a run's bytes begin with a header; a token may reach beyond it (a message that begins with a newline)."""
    opening = b""
    for token_id in token_ids:
        opening += tokenizer.token_bytes(token_id)
        if len(opening) >= len(header):
            break
    return opening.startswith(header)


def _absent_character(texts: Sequence[str]) -> str:
    """A private-use character that occurs in none of the texts."""
    written = frozenset().union(*texts)
    absent = next((chr(code) for code in _PRIVATE_USE if chr(code) not in written), None)
    if absent is None:
        raise InvalidField(_INVALID, "messages", "uses every private-use character of Unicode")
    return absent


def _split_controls(content: str, spellings: Sequence[str], splitter: str) -> str:
    """Puts the splitter into every control token that a text spells, alone or with the template's text around it."""
    for spelling in spellings:
        content = content.replace(spelling, spelling[0] + splitter + spelling[1:])
    if any(content.endswith(spelling[:length]) for spelling in spellings for length in range(1, len(spelling))):
        content += splitter
    if any(content.startswith(spelling[length:]) for spelling in spellings for length in range(1, len(spelling))):
        content = splitter + content
    return content
