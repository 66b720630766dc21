r"""ChatML rendered by hand for the oracle: what a conversation is as token ids, and which position means what.

Nothing here comes from the server. The tokenizer is the library's, over the checkpoint's own `tokenizer.json` without
its added tokens, so that no text can become a control token; the control tokens are put in by id.

    <|im_start|>user\n{U}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n{A}<|im_end|>\n

Source: the Qwen3 chat template (thinking off), and where Qwen3Guard-Stream's training placed its two readings: a prompt
is judged at the `<|im_end|>` that closes it, an answer at each of its tokens.
"""

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

from tokenizers import Tokenizer


class Vocabulary:
    """A checkpoint's vocabulary."""

    def __init__(self, directory: Path) -> None:
        content = json.loads((directory / "tokenizer.json").read_text())
        self.control_ids = {token["content"]: int(token["id"]) for token in content["added_tokens"]}
        self._plain = Tokenizer.from_str(json.dumps({**content, "added_tokens": []}))
        self.im_start, self.im_end = self.control_ids["<|im_start|>"], self.control_ids["<|im_end|>"]
        self.think, self.think_end = self.control_ids["<think>"], self.control_ids["</think>"]
        self.newlines = (self.encode("\n")[0], self.encode("\n\n")[0])

    def encode(self, text: str) -> list[int]:
        """The ids of a text in which control tokens are ordinary characters."""
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        return ids

    def byte_lengths(self, token_ids: Sequence[int]) -> list[int]:
        """How many bytes of UTF-8 each token of `encode` stands for: byte-level tokens spell a byte per character."""
        return [len(self._plain.id_to_token(token_id) or "") for token_id in token_ids]

    def turn(self, role: str, content: str) -> list[int]:
        """A whole turn; what stands between two control tokens is one run of text."""
        return [self.im_start, *self.encode(f"{role}\n{content}"), self.im_end, *self.encode("\n")]

    def answer_header(self, thinking: bool) -> list[int]:
        """What stands before the first token of an answer."""
        header = [self.im_start, *self.encode("assistant\n")]
        if not thinking:
            header += [self.think, *self.encode("\n\n"), self.think_end, *self.encode("\n\n")]
        return header

    def conversation(self, messages: Sequence[tuple[str, str]], thinking: bool) -> list[int]:
        """(role, content) messages up to the answer; earlier answers lose their reasoning, as in Qwen3's template."""
        ids: list[int] = []
        for role, content in messages:
            if role == "assistant" and "</think>" in content:
                content = content.split("</think>")[-1].lstrip("\n")
            ids += self.turn(role, content)
        return ids + self.answer_header(thinking)

    def closing(self, answer_ids: Sequence[int]) -> list[int]:
        """What an answer lacks of its closing `<|im_end|>` and newline."""
        whole = [self.im_end, self.newlines[0]]
        if list(answer_ids[-2:]) == whole:
            return []
        return whole[1:] if list(answer_ids[-1:]) == whole[:1] else whole


@dataclass(frozen=True)
class Branch:
    """What a stream holds at its end, or just before a rollback.

    `contexts` are everything the model sees: the conversation, and before it the conversation as it was each time that
    the answer slid. Positions count through all of them. Of the pushed tokens, in their order: the `positions` at which
    they are judged, `turns` they belong to, `scaffold` marks, `text_ends` in bytes (empty for token streams). `queries`
    are the positions at which the prompts are judged. `num_kept` tokens are left of the branch before.
    """

    contexts: tuple[tuple[int, ...], ...]
    positions: tuple[int, ...]
    turns: tuple[int, ...]
    scaffold: tuple[bool, ...]
    text_ends: tuple[int, ...]
    queries: tuple[int, ...]
    num_kept: int


@dataclass
class Script:
    """Follows a stream message by message and remembers its branches.

    `max_ids`: how many the context holds; an answer that outgrows it slides. None: no answer does. `ids` is the present
    context, `left` are those before it; the window is what is left in it of the present answer.
    """

    vocabulary: Vocabulary
    thinking: bool
    max_ids: int | None = None
    ids: list[int] = field(default_factory=list)
    left: list[tuple[int, ...]] = field(default_factory=list)
    pushed: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    text_ends: list[int] = field(default_factory=list)
    queries: list[int] = field(default_factory=list)
    branches: list[Branch] = field(default_factory=list)
    first_index: int = 0
    window_index: int = 0
    num_kept: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens pushed and not rolled back."""
        return len(self.positions)

    def open(self, ids: Sequence[int]) -> None:
        """Opens with rendered ids; the last `<|im_end|>` in them closes the user's turn."""
        self.ids += ids
        self.queries.append(max(i for i, token_id in enumerate(ids) if token_id == self.vocabulary.im_end))

    def push(self, ids: Sequence[int]) -> None:
        """Appends answer tokens."""
        for token_id in ids:
            if len(self.ids) == self.max_ids:
                self._slide()
            self.positions.append(self._num_left + len(self.ids))
            self.turns.append(len(self.queries) - 1)
            self.ids.append(token_id)
            self.pushed.append(token_id)

    def push_text(self, text: str) -> None:
        """Appends a text that is settled at its end. It must be in normal form, which keeps offsets simple."""
        assert unicodedata.is_normalized("NFC", text)
        ids = self.vocabulary.encode(text)
        start = self.text_ends[-1] if self.text_ends else 0
        boundaries = [0, *accumulate(len(character.encode()) for character in text)]
        for end in accumulate(self.vocabulary.byte_lengths(ids)):
            self.text_ends.append(start + max(boundary for boundary in boundaries if boundary <= end))
        self.push(ids)

    def roll_back(self, num_kept: int) -> None:
        """Forgets the present answer's tokens from that index on."""
        self.branches.append(self._branch())
        del self.ids[len(self.ids) - (self.num_tokens - num_kept) :]
        for values in (self.positions, self.turns, self.text_ends, self.pushed):
            del values[num_kept:]
        self.num_kept = num_kept

    def user_turn(self, content: str | Sequence[int]) -> None:
        """Closes the answer, adds the user's message and opens the next answer."""
        words = self.vocabulary
        self.ids += words.closing(self.pushed[self.first_index :])
        run = words.encode(f"user\n{content}") if isinstance(content, str) else [*words.encode("user\n"), *content]
        self.ids += [words.im_start, *run]
        self.queries.append(self._num_left + len(self.ids))
        self.ids += [words.im_end, *words.encode("\n"), *words.answer_header(self.thinking)]
        self.first_index = self.window_index = self.num_tokens

    def finish(self) -> tuple[Branch, ...]:
        """All branches, the last one at the end of the stream."""
        return (*self.branches, self._branch())

    @property
    def _num_left(self) -> int:
        return sum(map(len, self.left))

    def _slide(self) -> None:
        """The older half of the window leaves the context."""
        self.left.append(tuple(self.ids))
        num_leaving = (self.num_tokens - self.window_index) // 2
        start = len(self.ids) - (self.num_tokens - self.window_index)
        del self.ids[start : start + num_leaving]
        self.window_index += num_leaving

    def _branch(self) -> Branch:
        return Branch(
            contexts=(*self.left, tuple(self.ids)),
            positions=tuple(self.positions),
            turns=tuple(self.turns),
            scaffold=tuple(map(self._is_scaffold, range(self.num_tokens))),
            text_ends=tuple(self.text_ends),
            queries=tuple(self.queries),
            num_kept=self.num_kept,
        )

    def _is_scaffold(self, index: int) -> bool:
        """The template's control tokens, and a newline right behind one of them in the same answer."""
        words = self.vocabulary
        control = (words.im_start, words.im_end, words.think, words.think_end)
        token_id = self.pushed[index]
        same_answer = index > 0 and self.turns[index - 1] == self.turns[index]
        return token_id in control or (same_answer and token_id in words.newlines and self.pushed[index - 1] in control)
