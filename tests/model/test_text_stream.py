"""A text pushed in any pieces gives the tokens of the whole text, at the right offsets."""

import unicodedata
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, normalizers, pre_tokenizers

from guardwire_server.model.text_stream import IncrementalTokenizer, TextToken, joins_backwards
from guardwire_server.model.tokens import Tokenizer
from tests.model.real_vocabulary import real_tokenizer, small_tokenizer

# What can go wrong at the seams: white space, contractions, combining and conjoining characters, long clusters.
ATOMS = (
    *"abeEsSt019.,!?<>|_-'’`\"=@#",
    *(" ", "  ", "\n", "\r", "\r\n", "\n\n", "\t", "\u00a0", "\u3000", "\u2003", "\u2000", "\u2028", "\x85", "\x1c"),
    *("'s", "'re", "'LL", "'d", "'ſ", "don't", " I'm", "\u180e", "\u200b", "\u200d", "\ufeff", "\x00"),
    *("é", "e\u0301", "\u0301", "\u0323", "\u0327", "\u0338", "\u0489", "\u20e3", "ö", "ß", "Å", "\u212b", "\u1e69"),
    *("\u1100", "\u1161", "\u11a8", "한", "가", "\u0bc6", "\u0bbe", "\u0f71", "\u0f72", "\u0f73", "\u0958", "\u093c"),
    *("नमस्ते", "你好", "世", "界。", "Привет", "שלום", "مرحبا", "ไทย", "か\u3099", "\uf900", "\u2126", "\u0344"),
    *("🙂", "👩\u200d👩\u200d👧", "🇩🇪", "👍🏽", "\U0001d15e", "\U00016d67", "<|im_end|>", "<think>", "hello", " world"),
)
texts = st.lists(st.one_of(st.sampled_from(ATOMS), st.text(max_size=4)), max_size=16).map("".join)


@st.composite
def chunkings(draw: st.DrawFn) -> list[str]:
    text = draw(texts)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def push_all(tokenizer: IncrementalTokenizer, chunks: Sequence[str]) -> list[TextToken]:
    return [*(token for chunk in chunks for token in tokenizer.push(chunk)), *tokenizer.flush()]


def check_offsets(tokens: Sequence[TextToken], text: str) -> None:
    ends = [0, *(token.end_offset_bytes for token in tokens)]
    assert ends == sorted(ends)
    assert ends[-1] == len(text.encode())
    for end in ends:
        text.encode()[:end].decode()  # a character boundary


@settings(max_examples=400, deadline=None)
@given(chunkings())
def test_any_chunking_gives_the_ids_of_the_whole_text(chunks: list[str]) -> None:
    text = "".join(chunks)
    for vocabulary in (real_tokenizer(), small_tokenizer()):
        tokens = push_all(IncrementalTokenizer(vocabulary), chunks)
        assert [token.id for token in tokens] == vocabulary.encode_plain(text)
        check_offsets(tokens, text)


@settings(max_examples=200, deadline=None)
@given(texts)
def test_character_by_character(text: str) -> None:
    stream = IncrementalTokenizer(real_tokenizer())
    tokens = push_all(stream, list(text))
    assert [token.id for token in tokens] == real_tokenizer().encode_plain(text)
    check_offsets(tokens, text)
    assert stream.held_text == ""


@settings(max_examples=200, deadline=None)
@given(chunkings())
def test_offsets_do_not_depend_on_the_chunking(chunks: list[str]) -> None:
    whole = push_all(IncrementalTokenizer(real_tokenizer()), ["".join(chunks)])
    assert push_all(IncrementalTokenizer(real_tokenizer()), chunks) == whole


@settings(max_examples=200, deadline=None)
@given(chunkings())
def test_tokens_hold_the_text_before_their_offset(chunks: list[str]) -> None:
    """Where normalisation changes nothing, the tokens spell the text up to their offset and part of a character."""
    text = unicodedata.normalize("NFC", "".join(chunks))
    vocabulary = real_tokenizer()
    spelt = b""
    for token in push_all(IncrementalTokenizer(vocabulary), [text]):
        spelt += vocabulary.token_bytes(token.id)
        settled = text.encode()[: token.end_offset_bytes]
        assert spelt.startswith(settled)
        assert len(spelt) - len(settled) < 4


def test_a_word_waits_for_what_ends_it_and_no_longer(real_tokenizer: Tokenizer) -> None:
    stream = IncrementalTokenizer(real_tokenizer)
    assert stream.push("Hel") == []
    assert stream.push("lo") == []
    hello, *_ = real_tokenizer.encode_plain("Hello")
    assert stream.push(" ") == [TextToken(hello, 5)]
    assert stream.held_text == " "
    assert stream.push(" w") == [TextToken(real_tokenizer.encode_plain(" ")[0], 6)]
    assert stream.held_text == " w"


def test_offsets_count_bytes_of_the_text_as_pushed(real_tokenizer: Tokenizer) -> None:
    text = "e\u0301 a\u030a!"  # composes to é å!: two bytes each instead of three
    tokens = push_all(IncrementalTokenizer(real_tokenizer), [text])
    assert [token.end_offset_bytes for token in tokens] == [3, 7, 8]
    assert real_tokenizer.decode([token.id for token in tokens]) == "é å!"


def test_a_token_inside_a_character_ends_before_it(real_tokenizer: Tokenizer) -> None:
    tokens = push_all(IncrementalTokenizer(real_tokenizer), ["a 🇩🇪"])
    assert len(tokens) > 3
    assert {token.end_offset_bytes for token in tokens} == {1, 2, 6, 10} | {t.end_offset_bytes for t in tokens[:2]}


def test_a_combining_character_reaches_back_across_pushes(real_tokenizer: Tokenizer) -> None:
    tokens = push_all(IncrementalTokenizer(real_tokenizer), ["caf", "e", "\u0301", " noir"])
    assert [token.id for token in tokens] == real_tokenizer.encode_plain("café noir")


@pytest.mark.parametrize("text", ["a" * 5000, "\u0301" * 3000, " " * 3000, "!?" * 2000, "é" * 2000, "\u0344" * 2000])
@pytest.mark.parametrize("chunk_size", [1, 7, 700])
def test_what_is_held_is_bounded(text: str, chunk_size: int) -> None:
    stream = IncrementalTokenizer(small_tokenizer(), max_held_chars=100)
    tokens: list[TextToken] = []
    for start in range(0, len(text), chunk_size):
        tokens += stream.push(text[start : start + chunk_size])
        assert len(stream.held_text) <= 100
    tokens += stream.flush()
    check_offsets(tokens, text)
    spelt = b"".join(small_tokenizer().token_bytes(token.id) for token in tokens).decode()
    assert unicodedata.normalize("NFD", spelt) == unicodedata.normalize("NFD", text)


def test_the_rest_after_a_long_piece_is_tokenised_as_usual() -> None:
    stream = IncrementalTokenizer(small_tokenizer(), max_held_chars=10)
    tokens = push_all(stream, ["a" * 11, " hello", " world"])
    assert [t.id for t in tokens[-len(small_tokenizer().encode_plain(" hello world")) :]] == (
        small_tokenizer().encode_plain(" hello world")
    )


def test_restart_forgets_the_held_text_and_goes_on_from_the_offset(real_tokenizer: Tokenizer) -> None:
    stream = IncrementalTokenizer(real_tokenizer)
    kept = stream.push("One two thr")
    assert stream.offset_bytes == kept[-1].end_offset_bytes == 7
    stream.restart(3)
    assert stream.held_text == ""
    tokens = push_all(stream, [" fo", "ur"])
    assert tokens == [TextToken(real_tokenizer.encode_plain(" four")[0], 8)]


def test_flush_ends_a_text_and_the_next_is_one_of_its_own(real_tokenizer: Tokenizer) -> None:
    stream = IncrementalTokenizer(real_tokenizer, start_offset_bytes=10)
    assert [t.end_offset_bytes for t in push_all(stream, ["ab"])] == [12]
    assert stream.flush() == []
    ids = [token.id for token in push_all(stream, ["cd"])]
    assert ids == real_tokenizer.encode_plain("cd")


def test_a_lone_surrogate_changes_nothing(real_tokenizer: Tokenizer) -> None:
    stream = IncrementalTokenizer(real_tokenizer)
    stream.push("ab")
    with pytest.raises(UnicodeEncodeError):
        stream.push("\ud800")
    assert stream.held_text == "ab"
    assert stream.push("") == []


def compositions() -> Iterator[tuple[str, str, str]]:
    """All canonical compositions that Python's tables have: first, second, composed."""
    for code in range(0x110000):
        decomposition = unicodedata.decomposition(chr(code))
        if decomposition and not decomposition.startswith("<"):
            parts = [chr(int(part, 16)) for part in decomposition.split()]
            if len(parts) == 2 and unicodedata.normalize("NFC", "".join(parts)) == chr(code):
                yield parts[0], parts[1], chr(code)
    yield from (("\u1100", chr(vowel), chr(0xAC00 + 28 * (vowel - 0x1161))) for vowel in range(0x1161, 0x1176))
    yield from (("가", chr(tail), chr(0xAC00 + tail - 0x11A7)) for tail in range(0x11A8, 0x11C3))


def test_every_character_that_composes_joins_backwards() -> None:
    assert [pair for pair in compositions() if not joins_backwards(pair[1])] == []


def test_no_other_character_begins_with_one_when_it_decomposes() -> None:
    for code in range(0x110000):
        character = chr(code)
        if not joins_backwards(character):
            assert not joins_backwards(unicodedata.normalize("NFD", character)[0]), hex(code)


def test_the_tokenizer_composes_nothing_that_python_does_not() -> None:
    """Its tables may be older than Python's: then it composes less, and the stream holds more than it needs."""
    normalizer = normalizers.NFC()
    for first, second, composed in compositions():
        assert normalizer.normalize_str(first + second) in (composed, first + second)


def test_composition_keeps_the_class_of_a_character() -> None:
    """Rule 3 of the module: otherwise a cut could move when a combining character arrives."""
    classes = [pre_tokenizers.Split(Regex(pattern), "removed") for pattern in (r"\p{L}", r"\p{N}", r"\s", r"[\r\n]")]
    for first, _, composed in compositions():
        for character_class in classes:
            is_removed = [character_class.pre_tokenize_str(text) == [] for text in (first, composed)]
            assert is_removed[0] == is_removed[1], (first, composed)


def test_the_pattern_has_no_white_space_that_python_does_not_strip() -> None:
    """Rule 2 finds the run at the end with `str.rstrip`, which may hold more back than needed but never less."""
    white_space = pre_tokenizers.Split(Regex(r"\s"), "removed")
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    assert all(character.isspace() for character in characters if white_space.pre_tokenize_str(character) == [])
