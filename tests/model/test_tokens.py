"""The tokenizer: the reference's ids for ordinary text, and never a control token from what people write."""

import gc
import hashlib
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from guardwire_server.core.errors import StartupError
from guardwire_server.model.checkpoint import open_checkpoint
from guardwire_server.model.tokens import Tokenizer, load_tokenizer
from tests.model.checkpoints import write_stream_checkpoint
from tests.model.real_vocabulary import (
    ADDED_TOKENS,
    derive_merges,
    merge_by_rank,
    read_ranks,
    real_tokenizer,
    real_tokenizer_json,
    small_tokenizer,
    small_tokenizer_json,
)

CONTROL_LIKE = (*ADDED_TOKENS, "<|im_end|", "im_end|>", "<think", "</", "<|", "|>", " ", "\n", "user\n", "a")


def test_the_scaffold_has_the_ids_of_the_reference(real_tokenizer: Tokenizer) -> None:
    rendered = "<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nA<|im_end|>\n"
    header = [151644, 872, 198, 52, 151645, 198, 151644, 77091, 198]
    answer = [151667, 271, 151668, 271, 32, 151645, 198]
    assert real_tokenizer.encode_template(rendered) == header + answer
    assert real_tokenizer.decode(header + answer) == rendered


def test_the_added_tokens_have_their_published_ids(real_tokenizer: Tokenizer) -> None:
    assert real_tokenizer.added_tokens["<|endoftext|>"] == 151643
    assert real_tokenizer.added_tokens["<tool_call>"] == 151657
    assert real_tokenizer.control.think_end == 151668
    assert real_tokenizer.num_tokens == 151669
    assert len(real_tokenizer.added_tokens) == 26


def test_the_derived_merges_give_what_the_ranks_give(real_tokenizer: Tokenizer) -> None:
    ranks = read_ranks()
    assert len(derive_merges(ranks)) == len(ranks) - 256
    for word in ("antidisestablishmentarianism", " Übergrößenträger", "机器学习模型", " нейросетевой", "naïveté"):
        parts = merge_by_rank(word.encode(), ranks, below=len(ranks))
        assert real_tokenizer.encode_plain(word) == [ranks[part] for part in parts]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(CONTROL_LIKE), st.text(max_size=5)), max_size=8).map("".join))
def test_plain_text_never_becomes_a_control_token(text: str) -> None:
    for vocabulary in (real_tokenizer(), small_tokenizer()):
        ids = vocabulary.encode_plain(text)
        assert set(ids).isdisjoint(vocabulary.added_tokens.values())
        assert vocabulary.decode(ids) == vocabulary.normalize(text)


@pytest.mark.parametrize("token", ADDED_TOKENS)
def test_each_added_token_is_recognised_in_a_template_only(token: str, real_tokenizer: Tokenizer) -> None:
    assert real_tokenizer.encode_template(token) == [real_tokenizer.added_tokens[token]]
    assert len(real_tokenizer.encode_plain(token)) > 1


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60).filter(lambda text: not any(token in text for token in ADDED_TOKENS)))
def test_text_without_control_tokens_is_encoded_alike_both_ways(text: str) -> None:
    for vocabulary in (real_tokenizer(), small_tokenizer()):
        assert vocabulary.encode_plain(text) == vocabulary.encode_template(text)


def test_the_ids_are_those_of_transformers(stream_path: Path, small_tokenizer: Tokenizer) -> None:
    reference = AutoTokenizer.from_pretrained(stream_path)
    for text in ("Hello  world!\n\n It's 12.", "e\u0301 \u212b 한", "  a\t\n b", "你好,世界", "", "🙂👍🏽"):
        expected = reference.encode(text, add_special_tokens=False)
        assert small_tokenizer.encode_plain(text) == expected


def test_pieces_number_the_matches_of_the_split_pattern(real_tokenizer: Tokenizer) -> None:
    ids, pieces = real_tokenizer.encode_plain_pieces("Hello world 12")
    assert ids == real_tokenizer.encode_plain("Hello world 12")
    assert pieces == [0, 1, 2, 3, 4]
    _, pieces = real_tokenizer.encode_plain_pieces("antidisestablishmentarianism!")
    assert len(set(pieces)) == 2


def test_token_bytes_spell_parts_of_characters(real_tokenizer: Tokenizer) -> None:
    ids = real_tokenizer.encode_plain("🇩🇪")
    assert len(ids) > 1
    assert b"".join(map(real_tokenizer.token_bytes, ids)) == "🇩🇪".encode()
    assert real_tokenizer.plain_byte_lengths(ids) == [len(real_tokenizer.token_bytes(token_id)) for token_id in ids]
    assert real_tokenizer.token_bytes(real_tokenizer.control.think) == b"<think>"


def test_ids_without_a_token_stand_for_nothing(real_tokenizer: Tokenizer) -> None:
    assert real_tokenizer.token_bytes(151_900) == b""
    assert real_tokenizer.decode([151_900, 52]) == "U"


def test_an_answer_is_decoded_without_special_tokens(real_tokenizer: Tokenizer) -> None:
    ids = real_tokenizer.encode_template("Safety: Safe\nCategories: None<|im_end|>")
    assert real_tokenizer.decode_answer(ids) == "Safety: Safe\nCategories: None"


def test_the_fingerprint_is_what_the_contract_says(small_tokenizer: Tokenizer) -> None:
    vocabulary = tokenizers.Tokenizer.from_buffer(small_tokenizer_json()).get_vocab(with_added_tokens=True)
    lines = [f"{token_id}\t{token}\n" for token, token_id in sorted(vocabulary.items(), key=lambda item: item[1])]
    assert small_tokenizer.fingerprint == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_the_fingerprint_does_not_depend_on_layout(small_tokenizer: Tokenizer) -> None:
    values = json.loads(small_tokenizer_json())
    values["model"]["vocab"] = dict(reversed(values["model"]["vocab"].items()))
    values["model"]["merges"] = [merge.split(" ") for merge in values["model"]["merges"]]
    other = Tokenizer(json.dumps(values, indent=1).encode())
    assert other.fingerprint == small_tokenizer.fingerprint
    assert other.encode_plain("the quick") == small_tokenizer.encode_plain("the quick")
    assert real_tokenizer().fingerprint != small_tokenizer.fingerprint


def test_truncation_and_padding_in_the_file_have_no_effect(small_tokenizer: Tokenizer) -> None:
    draft = tokenizers.Tokenizer.from_buffer(small_tokenizer_json())
    draft.enable_truncation(max_length=3)
    draft.enable_padding(length=50)
    tokenizer = Tokenizer(draft.to_str().encode())
    text = "the quick brown fox jumps"
    assert tokenizer.encode_plain(text) == tokenizer.encode_template(text) == small_tokenizer.encode_plain(text)


def test_control_tokens_inside_the_model_vocabulary_are_not_found_in_plain_text() -> None:
    """A trainer that was told of the control tokens puts them into the vocabulary as well."""

    def add(values: dict[str, Any]) -> None:
        for token in values["added_tokens"]:
            values["model"]["vocab"][token["content"]] = token["id"]
        values["model"]["ignore_merges"] = True

    tokenizer = Tokenizer(changed(add))
    for token in ADDED_TOKENS:
        assert set(tokenizer.encode_plain(token)).isdisjoint(tokenizer.added_tokens.values())
        assert tokenizer.encode_template(token) == [tokenizer.added_tokens[token]]


def changed(change: Callable[[dict[str, Any]], None]) -> bytes:
    values = json.loads(small_tokenizer_json())
    change(values)
    return json.dumps(values).encode()


def split_step(values: dict[str, Any]) -> dict[str, Any]:
    step: dict[str, Any] = values["pre_tokenizer"]["pretokenizers"][0]
    return step


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["added_tokens"].pop(1), r"added_tokens has no <\|im_start\|>"),
        (lambda v: v.update(added_tokens=[]), "no <think> and no </think>"),
        (lambda v: v["added_tokens"][3].update(lstrip=True), r"added_tokens\[3\]: lstrip is not served"),
        (lambda v: v["added_tokens"][3].pop("id"), r"added_tokens\[3\] must have an id"),
        (lambda v: v.update(normalizer={"type": "Lowercase"}), "normalizer must be NFC or null"),
        (lambda v: v.update(pre_tokenizer=None), "pre_tokenizer must be Split, then ByteLevel"),
        (lambda v: split_step(v).update(pattern={"Regex": r"\w+"}), r"pre_tokenizer\[0\] must be Qwen's Split"),
        (lambda v: split_step(v).update(behavior="Removed"), r"pre_tokenizer\[0\] must be Qwen's Split"),
        (lambda v: v["pre_tokenizer"]["pretokenizers"][1].update(use_regex=True), r"pre_tokenizer\[1\] must be"),
        (lambda v: v["model"].update(type="WordPiece"), "model must be BPE"),
        (lambda v: v["model"].update(dropout=0.1), "model must be BPE without dropout"),
        (lambda v: v["model"].update(vocab=["a"]), "model.vocab must be an object"),
        (lambda v: v["model"]["vocab"].pop("Ġ"), "no token for 1 of the 256 bytes: 32"),
        (lambda v: v["model"]["vocab"].update({"a b": 9999}), "which does not spell bytes"),
        (lambda v: v["model"]["merges"].append("<thi nk>"), "makes the control token <think> from plain text"),
        (lambda v: v["model"]["merges"].append("zz zz"), "cannot be loaded"),
    ],
)
def test_another_pipeline_is_refused(change: Callable[[dict[str, Any]], None], message: str) -> None:
    with pytest.raises(StartupError, match=message) as raised:
        Tokenizer(changed(change), "there/tokenizer.json")
    assert raised.value.message.startswith("there/tokenizer.json: ")


@pytest.mark.parametrize(("content", "message"), [(b"{", "not valid JSON"), (b"[]", "must hold a JSON object")])
def test_broken_files_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(StartupError, match=message):
        Tokenizer(content)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"nowhere: cannot be read"):
        Tokenizer.load(tmp_path / "nowhere")


def test_a_tokenizer_for_a_larger_embedding_is_refused(tmp_path: Path) -> None:
    path = write_stream_checkpoint(tmp_path / "a")
    assert load_tokenizer(open_checkpoint(path)).num_tokens == small_tokenizer().num_tokens
    write_stream_checkpoint(tmp_path / "b", vocabulary_size=small_tokenizer().num_tokens - 1)
    with pytest.raises(StartupError, match="gives ids up to"):
        load_tokenizer(open_checkpoint(tmp_path / "b"))


def test_loading_keeps_the_bytes_for_clients(tmp_path: Path) -> None:
    path = write_stream_checkpoint(tmp_path, tokenizer_json=real_tokenizer_json())
    assert Tokenizer.load(path).json_bytes == (path / "tokenizer.json").read_bytes()


def test_files_with_the_same_content_share_a_tokenizer(tmp_path: Path) -> None:
    first, same, other = (write_stream_checkpoint(tmp_path / name) for name in ("first", "same", "other"))
    for checkpoint, end in ((first, " \n"), (same, " \n"), (other, "\n")):  # as no server in this process has it
        with (checkpoint / "tokenizer.json").open("a") as file:
            file.write(end)
    tokenizer = Tokenizer.load(first)
    assert Tokenizer.load(same) is tokenizer
    assert Tokenizer.load(other) is not tokenizer
    kept = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert kept() is None  # nobody uses it any more
