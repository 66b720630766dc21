"""Gen prompts: the ids of `apply_chat_template`, and no control token from what people write."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from guardwire_server.core.errors import InvalidField, StartupError
from guardwire_server.core.verdict import Message, Role
from guardwire_server.model.checkpoint_template import ChatTemplate, load_chat_template
from guardwire_server.model.prompt import render_gen_prompt, verdict_token_ids
from guardwire_server.model.tokens import Tokenizer
from tests.model.checkpoints import GEN_CHAT_TEMPLATE
from tests.model.real_vocabulary import ADDED_TOKENS, small_tokenizer, small_tokenizer_json

ROLE_NAMES = {Role.SYSTEM: "system", Role.USER: "user", Role.ASSISTANT: "assistant"}


def user(content: str) -> Message:
    return Message(Role.USER, content)


def assistant(content: str) -> Message:
    return Message(Role.ASSISTANT, content)


def system(content: str) -> Message:
    return Message(Role.SYSTEM, content)


@pytest.fixture(scope="module")
def template(gen_path: Path) -> ChatTemplate:
    return load_chat_template(gen_path)


@pytest.fixture(scope="module")
def reference(gen_path: Path) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(gen_path)
    return tokenizer


CONVERSATIONS = [
    [user("How do I bake bread?")],
    [user("  \n spaced \n\n")],
    [user("")],
    [user("Hi"), assistant("Hello <b>you</b>\n")],
    [system("Be kind."), user("Hi")],
    [system("Be kind."), user("Hi"), assistant("Hello"), user("e\u0301 你好 🙂 <END CONVERSATION> <")],
]


def reference_ids(reference: PreTrainedTokenizerBase, messages: list[Message]) -> list[int]:
    chat = [{"role": ROLE_NAMES[message.role], "content": message.content} for message in messages]
    ids: Any = reference.apply_chat_template(chat, tokenize=True, return_dict=False)
    return list(ids)


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_a_gen_prompt_has_the_ids_of_apply_chat_template(
    messages: list[Message], template: ChatTemplate, reference: PreTrainedTokenizerBase
) -> None:
    assert list(render_gen_prompt(template, small_tokenizer(), messages)) == reference_ids(reference, messages)


def test_any_ordinary_text_has_the_ids_of_apply_chat_template(
    template: ChatTemplate, reference: PreTrainedTokenizerBase
) -> None:
    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.text(max_size=20).filter(is_ordinary), min_size=1, max_size=4))
    def check(contents: list[str]) -> None:
        messages = [assistant(content) if index % 2 else user(content) for index, content in enumerate(contents)]
        assert list(render_gen_prompt(template, small_tokenizer(), messages)) == reference_ids(reference, messages)

    check()


def is_ordinary(text: str) -> bool:
    return not any(token in text for token in ADDED_TOKENS)


def spells_controls(tokenizer: Tokenizer, ids: tuple[int, ...]) -> list[str]:
    names = {token_id: token for token, token_id in tokenizer.added_tokens.items()}
    return [names[token_id] for token_id in ids if token_id in names]


PIECES = (*ADDED_TOKENS, "<", "<|", "<|im_", "|>", "end|>", ">", "think>", "a", "\ue000", "\ue001", "\n")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.sampled_from(PIECES), max_size=6).map("".join), min_size=1, max_size=3))
def test_control_tokens_in_messages_stay_plain_text(contents: list[str]) -> None:
    messages = [assistant(content) if index % 2 else user(content) for index, content in enumerate(contents)]
    template = ChatTemplate(GEN_CHAT_TEMPLATE, {}, "here")
    tokenizer = small_tokenizer()
    ids = render_gen_prompt(template, tokenizer, messages)
    own = ["<|im_start|>", "<|im_end|>", "<|im_start|>", "<think>", "</think>"]
    assert spells_controls(tokenizer, ids) == own
    for content in contents:
        assert content in tokenizer.decode(ids)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(PIECES), max_size=4).map("".join).filter(bool),  # around nothing the template's own meet
    st.sampled_from(PIECES),
    st.sampled_from(PIECES),
)
@example("x", "<|im_", "end|>")
def test_a_message_makes_no_control_token_with_the_text_around_it(content: str, before: str, after: str) -> None:
    """Templates that put a message between `<` and `>`, or two messages next to each other."""
    template = ChatTemplate("{{ '<|im_start|>' }}" + before + "{{ messages[0].content }}" + after, {}, "here")
    tokenizer = small_tokenizer()
    ids = render_gen_prompt(template, tokenizer, [user(content)])
    expected = ["<|im_start|>", *(piece for piece in (before, after) if piece in ADDED_TOKENS)]
    assert spells_controls(tokenizer, ids) == expected


def test_a_message_with_every_private_use_character_is_refused(template: ChatTemplate) -> None:
    content = "".join(map(chr, range(0xE000, 0xF900)))
    with pytest.raises(InvalidField, match="private-use"):
        render_gen_prompt(template, small_tokenizer(), [user(content)])


@pytest.mark.parametrize("messages", [[assistant("a")], [system("s")], [], [user("u"), user("u")]])
def test_what_the_template_would_drop_is_refused(messages: list[Message], template: ChatTemplate) -> None:
    with pytest.raises(InvalidField):
        render_gen_prompt(template, small_tokenizer(), messages)


def test_the_verdict_is_the_third_token(real_tokenizer: Tokenizer) -> None:
    tokens = verdict_token_ids(real_tokenizer)
    assert real_tokenizer.decode(tokens.prefix_ids) == "Safety:"
    assert len(tokens.prefix_ids) == 2
    assert real_tokenizer.decode([tokens.safe_id]) == " Safe"
    for level, token_id in (("Controversial", tokens.controversial_id), ("Unsafe", tokens.unsafe_id)):
        assert real_tokenizer.encode_plain(f"Safety: {level}\nCategories: None")[:3] == [*tokens.prefix_ids, token_id]


def with_merges(merges: list[str]) -> Tokenizer:
    values = json.loads(small_tokenizer_json())
    values["model"]["merges"] = merges
    for merge in merges:
        values["model"]["vocab"].setdefault(merge.replace(" ", ""), len(values["model"]["vocab"]) + 1000)
    return Tokenizer(json.dumps(values).encode())


def test_the_verdict_may_be_decided_by_a_letter() -> None:
    tokens = verdict_token_ids(with_merges([]))
    assert len(tokens.prefix_ids) == len("Safety: ")
    assert len({tokens.safe_id, tokens.controversial_id, tokens.unsafe_id}) == 3


def test_a_vocabulary_in_which_two_levels_begin_alike_is_refused() -> None:
    """Here ` S` is a token of its own, while the other two levels begin with the space."""
    with pytest.raises(StartupError, match="distinct"):
        verdict_token_ids(with_merges(["Ġ S"]))
