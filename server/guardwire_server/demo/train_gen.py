"""Trains the Gen checkpoint: starts from the stream's backbone and learns to write the answer.

The policy text before the conversation is the same in every prompt of a mode. A step computes it once, with its
gradient, and lets the whole batch attend to it; this is what keeps the training within minutes.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import DynamicCache, Qwen3ForCausalLM
from transformers.cache_utils import DynamicLayer

from guardwire_server.demo.conversations import Conversation, ConversationSampler
from guardwire_server.demo.networks import backbone_config
from guardwire_server.demo.optimisation import (
    AveragedOptimiser,
    add_word_dropout,
    length_batches,
    pad,
    pad_weights,
    process_rank,
)
from guardwire_server.demo.training_data import IGNORED, GenRenderer
from guardwire_server.model.stream_guard import StreamGuard

_BATCH_TOKENS = 1_536
_CONVERSATIONS_PER_ROUND = 6_000
_LEARNING_RATE = 1.5e-3
_LABEL_SMOOTHING = 0.002
_MAX_SUFFIX_TOKENS = 288
_FIXED_WORDING_WEIGHT = 0.1


@dataclass(frozen=True)
class GenSequence:
    """One prompt after its shared prefix, with the answer.

    Attributes:
        labels: The token itself in the answer, `IGNORED` before it.
        weights: Weight of each token's loss: most of an answer is fixed wording, which must not dilute the verdict.
    """

    ids: list[int]
    labels: list[int]
    weights: list[float]


@dataclass(frozen=True)
class GenBatch:
    """Sequences of one mode and the prefix they share."""

    prefix: list[int]
    sequences: list[GenSequence]


def train_gen(
    sampler: ConversationSampler,
    tokenizer: Tokenizer,
    chat_template: str,
    start: StreamGuard,
    *,
    num_steps: int,
    seed: int,
    on_step: Callable[[float], None],
) -> Qwen3ForCausalLM:
    """Trains for `num_steps` batches from the weights of `start`'s backbone and returns the averaged weights."""
    torch.manual_seed(seed)
    network = Qwen3ForCausalLM(backbone_config(tokenizer.get_vocab_size(), max_position_embeddings=32768))
    network.model.load_state_dict(start.model.state_dict())
    network.tie_weights()
    add_word_dropout(network.model)
    network.train()
    torch.manual_seed(seed + process_rank())  # the same weights everywhere, other dropout in each process
    optimiser = AveragedOptimiser(network, learning_rate=_LEARNING_RATE, num_steps=num_steps)
    batches = _batches(sampler, GenRenderer(tokenizer, chat_template), random.Random(seed))
    for _ in range(num_steps):
        loss = _loss(network, next(batches))
        optimiser.step(loss)
        on_step(loss.item())
    optimiser.load_averaged()
    network.eval()  # type: ignore[no-untyped-call]
    return network


def _batches(sampler: ConversationSampler, renderer: GenRenderer, rng: random.Random) -> Iterator[GenBatch]:
    while True:
        rendered: dict[bool, list[tuple[list[int], list[int]]]] = {False: [], True: []}
        for conversation in sampler.stream(_CONVERSATIONS_PER_ROUND, answered=0.5):
            answered = conversation.exchanges[-1].answer is not None
            rendered[answered].append((renderer.prompt_ids(conversation.messages), _answer(renderer, conversation)))
        batches: list[GenBatch] = []
        for pairs in rendered.values():
            prefix = _shared_prefix([prompt for prompt, _ in pairs])
            sequences = [_sequence(prompt[len(prefix) :], answer, renderer.fixed_wording) for prompt, answer in pairs]
            short = [sequence for sequence in sequences if len(sequence.ids) <= _MAX_SUFFIX_TOKENS]
            batches += [
                GenBatch(prefix, batch)
                for batch in length_batches(short, lambda sequence: len(sequence.ids), _BATCH_TOKENS, rng)
            ]
        rng.shuffle(batches)
        yield from batches


def _answer(renderer: GenRenderer, conversation: Conversation) -> list[int]:
    last = conversation.exchanges[-1]
    if last.answer is None:
        return renderer.answer_ids(last.prompt.label, None)
    return renderer.answer_ids(last.answer.label, last.answer.refused)


def _shared_prefix(prompts: list[list[int]]) -> list[int]:
    shortest, longest = min(prompts), max(prompts)
    length = 0
    while length < min(len(shortest), len(longest)) and shortest[length] == longest[length]:
        length += 1
    return shortest[:length]


def _sequence(prompt: list[int], answer: list[int], fixed_wording: frozenset[int]) -> GenSequence:
    weights = [_FIXED_WORDING_WEIGHT if token_id in fixed_wording else 1.0 for token_id in answer]
    return GenSequence([*prompt, *answer], [*[IGNORED] * len(prompt), *answer], [*[0.0] * len(prompt), *weights])


def _loss(network: Qwen3ForCausalLM, batch: GenBatch) -> Tensor:
    ids = pad([sequence.ids for sequence in batch.sequences], 0)
    labels = pad([sequence.labels for sequence in batch.sequences], IGNORED)[:, 1:]
    weights = pad_weights([sequence.weights for sequence in batch.sequences])[:, 1:]
    cache = DynamicCache()
    network.model(input_ids=torch.tensor([batch.prefix]), past_key_values=cache, use_cache=True)
    for layer in cache.layers:
        assert isinstance(layer, DynamicLayer)
        assert layer.keys is not None
        assert layer.values is not None
        layer.keys = layer.keys.expand(len(ids), -1, -1, -1)
        layer.values = layer.values.expand(len(ids), -1, -1, -1)
    hidden = network.model(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state[:, :-1]
    at_answer = labels != IGNORED
    logits = hidden[at_answer] @ network.model.embed_tokens.weight.T
    each = cross_entropy(logits, labels[at_answer], label_smoothing=_LABEL_SMOOTHING, reduction="none")
    return (each * weights[at_answer]).sum() / len(ids)
