"""Teaches random weights to answer: greedy decoding then writes an answer of the grammar, and ends.

Random weights write 128 tokens of nothing, while a real answer has 8 to 17 and ends; a call's time is mostly that
length. So a few rows and columns of a random checkpoint are written by hand. No matrix changes its size and no time
depends on the numbers in it: every product, every norm and every head is computed as before, hence at the same cost.

Theory of operation. Some columns of the hidden state are kept free of everything random and mean one thing each: a
constant 1 (`_CONSTANT`), the present token (`_PRESENT` + its rank), the token before it (`_BEFORE` + rank), and a word
of the conversation that decides the answer (`_CAUSE` + rank). Layer 0 does it all:

- One head attends to the token before the present one: its query is constant and turned back by one position, its key
  is constant, and rotary embedding does the rest.
- One head attends to a deciding word, wherever it stands, by dimensions that hardly rotate.
- A gated pair of the MLP multiplies two columns. One pair for each step of an answer says which token is next, most by
  the present token alone; what follows `Safety:` and `Categories:` by the word before the colon and the deciding word.

What is next is written so large into that token's own column that the other layers, which stay random, do not outweigh
it; and since the embedding is the head too, that token's logit is the highest by far.

Shapes: V vocabulary, H hidden size, D width of a head, I width of the MLP.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

_MAX_TOKENS = 64
_CONSTANT = 0
_PRESENT, _BEFORE, _CAUSE = (1 + index * _MAX_TOKENS for index in range(3))
_NUM_RESERVED = 1 + 3 * _MAX_TOKENS

_BEFORE_HEAD, _BEFORE_KV_HEAD = 0, 0
_CAUSE_HEAD, _CAUSE_KV_HEAD = 2, 1
_NUM_FREQUENCIES = 8
"""Of the fastest ones: over 700 positions no other distance comes closer to a step back than 0.84 of its score."""

_SHARPNESS = 4.0  # of q_norm and k_norm: the scores are 181 and, for the next best position, 30 less
_KEY_OF_CAUSE = 4.0  # beside the 1 of every key: 0.97 of the key of a deciding word, nothing of another's
_ATTENDED = 0.25  # attended columns come out three times as high as the constant
_OVERRULES = 3.0  # so what a deciding word says counts nine times what is said without one
_LOUD = 2.0**14


@dataclass(frozen=True)
class _Step:
    """Which token comes next where two columns are both set; `weight` decides between steps that both apply."""

    columns: tuple[int, int]
    next_rank: int
    weight: float = 1.0


def teach_answers(directory: Path, usual_answer: str, answers_by_word: Mapping[str, str]) -> None:
    """Changes the weights of a checkpoint with a tied embedding such that it gives these answers.

    Args:
        directory: The checkpoint, with its weights in one file.
        usual_answer: To conversations with none of the words.
        answers_by_word: To conversations with the word; each word is one token with the space before it.
    """
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    causes = [_only_id(tokenizer, f" {word}") for word in answers_by_word]
    begin, end = _only_id(tokenizer, "\n\n"), _only_id(tokenizer, "<|im_end|>")
    answers = [[begin, *tokenizer.encode(text).ids, end] for text in (usual_answer, *answers_by_word.values())]
    ranks = {token_id: rank for rank, token_id in enumerate(dict.fromkeys(chain(causes, *answers)))}
    assert len(ranks) <= _MAX_TOKENS
    file = directory / "model.safetensors"
    tensors = load_file(file)
    _write_embedding(tensors["model.embed_tokens.weight"], ranks)
    layer = {
        name.removeprefix("model.layers.0.").removesuffix(".weight"): tensor
        for name, tensor in tensors.items()
        if name.startswith("model.layers.0.")
    }
    _write_attention(layer, [ranks[cause] for cause in causes])
    _write_steps(layer, list(_steps([[ranks[token_id] for token_id in answer] for answer in answers])))
    save_file(tensors, file, metadata={"format": "pt"})


def _only_id(tokenizer: Tokenizer, text: str) -> int:
    (token_id,) = tokenizer.encode(text).ids
    return int(token_id)


def _write_embedding(embedding: torch.Tensor, ranks: Mapping[int, int]) -> None:
    """Sets the reserved columns of the embedding [V, H]."""
    embedding[:, :_NUM_RESERVED] = 0
    embedding[:, _CONSTANT] = 1
    for token_id, rank in ranks.items():
        embedding[token_id, _PRESENT + rank] = 1


def _write_attention(layer: Mapping[str, torch.Tensor], causes: Sequence[int]) -> None:
    """Writes the two heads: where they look, and that they carry the columns of `_PRESENT` over to their own."""
    query, key, value = (layer[f"self_attn.{name}_proj"] for name in "qkv")
    out, head_dim = layer["self_attn.o_proj"], len(layer["self_attn.q_norm"])
    half = head_dim // 2
    for name in ("q_norm", "k_norm"):
        layer[f"self_attn.{name}"].fill_(_SHARPNESS)
    out[:_NUM_RESERVED] = 0
    for column, head, kv_head in (
        (_BEFORE, _BEFORE_HEAD, _BEFORE_KV_HEAD),
        (_CAUSE, _CAUSE_HEAD, _CAUSE_KV_HEAD),
    ):
        query[head * head_dim : (head + 1) * head_dim] = 0
        for matrix in (key, value):
            matrix[kv_head * head_dim : (kv_head + 1) * head_dim] = 0
        for rank in range(_MAX_TOKENS):
            value[kv_head * head_dim + rank, _PRESENT + rank] = 1
            out[column + rank, head * head_dim + rank] = _ATTENDED
    for index in range(_NUM_FREQUENCIES):
        angle = 1e6 ** (-index / half)  # rope_theta of the checkpoints
        query[_BEFORE_HEAD * head_dim + index, _CONSTANT] = math.cos(angle)
        query[_BEFORE_HEAD * head_dim + half + index, _CONSTANT] = -math.sin(angle)
        key[_BEFORE_KV_HEAD * head_dim + index, _CONSTANT] = 1
    query[_CAUSE_HEAD * head_dim + half - 1, _CONSTANT] = 1
    key[_CAUSE_KV_HEAD * head_dim + half - 2, _CONSTANT] = 1
    for rank in causes:
        key[_CAUSE_KV_HEAD * head_dim + half - 1, _PRESENT + rank] = _KEY_OF_CAUSE


def _steps(answers: Sequence[Sequence[int]]) -> Iterator[_Step]:
    """The steps of all answers, by the ranks of their tokens; the first is the usual one, number i + 1 cause i's.

    A token that has one successor in all of them needs no more to be known.
    """
    successors: dict[int, set[int]] = defaultdict(set)
    for answer in answers:
        for present, following in pairwise(answer):
            successors[present].add(following)
    for present, found in successors.items():
        if len(found) == 1:
            yield _Step((_PRESENT + present, _CONSTANT), *found)
    for cause, answer in enumerate(answers, start=-1):
        for before, present, following in zip(answer, answer[1:], answer[2:], strict=False):
            if len(successors[present]) > 1:
                usual = cause < 0
                column = _CONSTANT if usual else _CAUSE + cause
                yield _Step((_BEFORE + before, column), following, 1.0 if usual else _OVERRULES)


def _write_steps(layer: Mapping[str, torch.Tensor], steps: Sequence[_Step]) -> None:
    """Gives every step a pair of the MLP: gate and up [I, H] read a column each, down [H, I] says what is next."""
    gate, up, down = (layer[f"mlp.{name}_proj"] for name in ("gate", "up", "down"))
    down[:_NUM_RESERVED] = 0
    gate[: len(steps)] = 0
    up[: len(steps)] = 0
    down[:, : len(steps)] = 0
    for index, step in enumerate(steps):
        gate[index, step.columns[0]] = 1
        up[index, step.columns[1]] = step.weight
        down[_PRESENT + step.next_rank, index] = _LOUD
