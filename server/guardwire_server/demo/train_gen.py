"""Trains the Gen checkpoint: starts from the stream's backbone and learns to write the answer.

The stream's heads go on being trained on the judged message meanwhile, so that the backbone does not forget what it can
do; the checkpoint keeps no trace of them.

The policy text before the conversation is the same in every prompt of a mode. A step computes it once, with its
gradient, and lets the whole batch attend to it; this is what keeps the training within minutes.
"""

import copy
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import DynamicCache, Qwen3ForCausalLM
from transformers.cache_utils import DynamicLayer

from guardwire_server.demo.conversations import ConversationSampler, Exchange
from guardwire_server.demo.head_loss import head_loss
from guardwire_server.demo.networks import answer_logits, backbone_config, query_logits
from guardwire_server.demo.optimisation import (
    AveragedOptimiser,
    add_word_dropout,
    length_batches,
    pad,
    pad_weights,
    process_rank,
)
from guardwire_server.demo.training_data import IGNORED, GenPrompt, GenRenderer, HeadLabels
from guardwire_server.model.stream_guard import StreamGuard

_BATCH_TOKENS = 1_536
_CONVERSATIONS_PER_ROUND = 6_000
_LEARNING_RATE = 1.5e-3
_LABEL_SMOOTHING = 0.002
_MAX_SUFFIX_TOKENS = 288
_FIXED_WORDING_WEIGHT = 0.1
_HEADS_WEIGHT = 0.5


@dataclass(frozen=True)
class GenSequence:
    """One prompt after its shared prefix, with the answer.

    Attributes:
        labels: The token itself in the answer, `IGNORED` before it.
        weights: Weight of each token's loss: most of an answer is fixed wording, which must not dilute the verdict.
        judged: Labels of the judged message's tokens, for the stream's heads.
    """

    ids: list[int]
    labels: list[int]
    weights: list[float]
    judged: HeadLabels


@dataclass(frozen=True)
class GenBatch:
    """Sequences of one mode and the prefix they share."""

    is_answered: bool
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
    heads = copy.deepcopy(start)
    del heads.model
    optimiser = AveragedOptimiser(nn.ModuleList([network, heads]), learning_rate=_LEARNING_RATE, num_steps=num_steps)
    batches = _batches(sampler, GenRenderer(tokenizer, chat_template), random.Random(seed))
    for _ in range(num_steps):
        loss = _loss(network, heads, next(batches))
        optimiser.step(loss)
        on_step(loss.item())
    optimiser.load_averaged()
    network.eval()  # type: ignore[no-untyped-call]
    return network


def _batches(sampler: ConversationSampler, renderer: GenRenderer, rng: random.Random) -> Iterator[GenBatch]:
    while True:
        rendered: dict[bool, list[tuple[GenPrompt, Exchange]]] = {False: [], True: []}
        for conversation in sampler.stream(_CONVERSATIONS_PER_ROUND, answered=0.5):
            last = conversation.exchanges[-1]
            rendered[last.answer is not None].append((renderer.prompt(conversation.messages), last))
        batches: list[GenBatch] = []
        for is_answered, pairs in rendered.items():
            prefix = _shared_prefix([prompt.ids for prompt, _ in pairs])
            sequences = [_sequence(renderer, prompt, exchange, len(prefix)) for prompt, exchange in pairs]
            short = [sequence for sequence in sequences if len(sequence.ids) <= _MAX_SUFFIX_TOKENS]
            batches += [
                GenBatch(is_answered, prefix, batch)
                for batch in length_batches(short, lambda sequence: len(sequence.ids), _BATCH_TOKENS, rng)
            ]
        rng.shuffle(batches)
        yield from batches


def _shared_prefix(prompts: list[list[int]]) -> list[int]:
    shortest, longest = min(prompts), max(prompts)
    length = 0
    while length < min(len(shortest), len(longest)) and shortest[length] == longest[length]:
        length += 1
    return shortest[:length]


def _sequence(renderer: GenRenderer, prompt: GenPrompt, exchange: Exchange, num_shared: int) -> GenSequence:
    """The prompt from token `num_shared` on, with the answer."""
    ids, answer = prompt.ids[num_shared:], exchange.answer
    tokens = [(index - num_shared, end) for index, end in prompt.judged]
    judged = HeadLabels()
    judged.extend(len(ids))
    if answer is not None:
        written = renderer.answer_ids(answer.label, answer.refused)
        judged.set_answer(tokens, answer.label, 0 if answer.reasoning_harmful else answer.harm_start, 0)
    else:
        written = renderer.answer_ids(exchange.prompt.label, None)
        judged.set_query([index for index, _ in tokens], exchange.prompt.label)
    weights = [_FIXED_WORDING_WEIGHT if token_id in renderer.fixed_wording else 1.0 for token_id in written]
    return GenSequence(
        ids=[*ids, *written],
        labels=[*[IGNORED] * len(ids), *written],
        weights=[*[0.0] * len(ids), *weights],
        judged=judged,
    )


def _loss(network: Qwen3ForCausalLM, heads: StreamGuard, batch: GenBatch) -> Tensor:
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
    hidden = network.model(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state
    at_answer = labels != IGNORED
    logits = hidden[:, :-1][at_answer] @ network.model.embed_tokens.weight.T
    each = cross_entropy(logits, labels[at_answer], label_smoothing=_LABEL_SMOOTHING, reduction="none")
    verdict = (each * weights[at_answer]).sum() / len(ids)
    read = partial(answer_logits if batch.is_answered else query_logits, heads)
    return verdict + _HEADS_WEIGHT * head_loss(read, hidden, [sequence.judged for sequence in batch.sequences])
