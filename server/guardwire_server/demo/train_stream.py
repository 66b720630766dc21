"""Trains the stream checkpoint: both pairs of heads at once, with language modelling as an auxiliary task."""

import random
from collections.abc import Callable, Iterator

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy

from guardwire_server.demo.conversations import ConversationSampler
from guardwire_server.demo.networks import answer_logits, hidden_states, new_stream_guard, query_logits
from guardwire_server.demo.optimisation import (
    AveragedOptimiser,
    add_word_dropout,
    length_batches,
    pad,
    pad_weights,
    process_rank,
)
from guardwire_server.demo.training_data import IGNORED, StreamRenderer, StreamSequence
from guardwire_server.model.stream_guard import StreamGuard

_BATCH_TOKENS = 2_048
_CONVERSATIONS_PER_ROUND = 6_000
_LEARNING_RATE = 3e-3
_LABEL_SMOOTHING = 0.05
_LANGUAGE_MODEL_WEIGHT = 0.15
_LANGUAGE_MODEL_SHARE = 0.05
_MAX_SEQUENCE_TOKENS = 256


def train_stream(
    sampler: ConversationSampler, tokenizer: Tokenizer, *, num_steps: int, seed: int, on_step: Callable[[float], None]
) -> StreamGuard:
    """Trains for `num_steps` batches and returns the averaged weights; `on_step` receives each loss."""
    torch.manual_seed(seed)
    network = new_stream_guard(tokenizer.get_vocab_size())
    add_word_dropout(network.model)
    network.train()
    torch.manual_seed(seed + process_rank())  # the same weights everywhere, other dropout in each process
    optimiser = AveragedOptimiser(network, learning_rate=_LEARNING_RATE, num_steps=num_steps)
    batches = _batches(sampler, StreamRenderer(tokenizer), random.Random(seed))
    for _ in range(num_steps):
        loss = _loss(network, next(batches))
        optimiser.step(loss)
        on_step(loss.item())
    optimiser.load_averaged()
    return network.eval()


def _batches(
    sampler: ConversationSampler, renderer: StreamRenderer, rng: random.Random
) -> Iterator[list[StreamSequence]]:
    while True:
        sequences = [renderer.render(conversation) for conversation in sampler.stream(_CONVERSATIONS_PER_ROUND)]
        short = [sequence for sequence in sequences if len(sequence.ids) <= _MAX_SEQUENCE_TOKENS]
        yield from length_batches(short, lambda sequence: len(sequence.ids), _BATCH_TOKENS, rng)


def _loss(network: StreamGuard, batch: list[StreamSequence]) -> Tensor:
    ids = pad([sequence.ids for sequence in batch], 0)
    hidden = hidden_states(network, ids)
    query_risk = pad([sequence.query_risk for sequence in batch], IGNORED)
    query_category = pad([sequence.query_category for sequence in batch], IGNORED)
    answer_risk = pad([sequence.answer_risk for sequence in batch], IGNORED)
    answer_category = pad([sequence.answer_category for sequence in batch], IGNORED)
    weight = pad_weights([sequence.answer_weight for sequence in batch])
    at_query, at_answer = query_risk != IGNORED, answer_risk != IGNORED
    risk, category = query_logits(network, hidden[at_query])
    loss = cross_entropy(risk, query_risk[at_query], label_smoothing=_LABEL_SMOOTHING)
    loss = loss + 0.5 * _category_loss(category, query_category[at_query])
    if at_answer.any():
        risk, category = answer_logits(network, hidden[at_answer])
        each = cross_entropy(risk, answer_risk[at_answer], label_smoothing=_LABEL_SMOOTHING, reduction="none")
        loss = loss + (each * weight[at_answer]).sum() / weight[at_answer].sum()
        loss = loss + 0.5 * _category_loss(category, answer_category[at_answer])
    return loss + _LANGUAGE_MODEL_WEIGHT * _language_model_loss(network, hidden, ids)


def _category_loss(logits: Tensor, labels: Tensor) -> Tensor:
    present = (labels != IGNORED).any()
    return (
        cross_entropy(logits, labels, ignore_index=IGNORED, label_smoothing=_LABEL_SMOOTHING)
        if present
        else logits.sum() * 0
    )


def _language_model_loss(network: StreamGuard, hidden: Tensor, ids: Tensor) -> Tensor:
    """Next-token loss through the tied embedding at a random share of positions; the checkpoint keeps no trace."""
    chosen = (torch.rand(ids[:, 1:].shape) < _LANGUAGE_MODEL_SHARE) & (ids[:, 1:] != 0)
    logits = hidden[:, :-1][chosen] @ network.model.embed_tokens.weight.T
    return cross_entropy(logits, ids[:, 1:][chosen])
