"""Trains the stream checkpoint: both pairs of heads at once, with language modelling as an auxiliary task."""

import random
from collections.abc import Callable, Iterator
from functools import partial

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy

from guardwire_server.demo.conversations import ConversationSampler
from guardwire_server.demo.head_loss import head_loss
from guardwire_server.demo.networks import answer_logits, hidden_states, new_stream_guard, query_logits
from guardwire_server.demo.optimisation import (
    AveragedOptimiser,
    add_word_dropout,
    length_batches,
    pad,
    process_rank,
)
from guardwire_server.demo.training_data import StreamRenderer, StreamSequence
from guardwire_server.demo.word_vectors import learn_word_vectors
from guardwire_server.model.stream_guard import StreamGuard

_BATCH_TOKENS = 2_048
_CONVERSATIONS_PER_ROUND = 20_000
_WORD_VECTOR_STEPS = 6_000
_LEARNING_RATE = 3e-3
_QUERY_WEIGHT = 2.0
_LANGUAGE_MODEL_WEIGHT = 0.15
_LANGUAGE_MODEL_SHARE = 0.05
_MAX_SEQUENCE_TOKENS = 256


def train_stream(
    sampler: ConversationSampler, tokenizer: Tokenizer, *, num_steps: int, seed: int, on_step: Callable[[float], None]
) -> StreamGuard:
    """Trains for `num_steps` batches and returns the averaged weights; `on_step` receives each loss."""
    torch.manual_seed(seed)
    network = new_stream_guard(tokenizer.get_vocab_size())
    rng = random.Random(seed)
    embedding = network.model.embed_tokens.weight
    vectors = learn_word_vectors(sampler, tokenizer, embedding.shape[1], num_steps=_WORD_VECTOR_STEPS, rng=rng)
    embedding.data.copy_(vectors)
    add_word_dropout(network.model)
    network.train()
    torch.manual_seed(seed + process_rank())  # the same weights everywhere, other dropout in each process
    optimiser = AveragedOptimiser(network, learning_rate=_LEARNING_RATE, num_steps=num_steps)
    batches = _batches(sampler, StreamRenderer(tokenizer), rng)
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
    queries = head_loss(partial(query_logits, network), hidden, [sequence.queries for sequence in batch])
    answers = head_loss(partial(answer_logits, network), hidden, [sequence.answers for sequence in batch])
    return _QUERY_WEIGHT * queries + answers + _LANGUAGE_MODEL_WEIGHT * _language_model_loss(network, hidden, ids)


def _language_model_loss(network: StreamGuard, hidden: Tensor, ids: Tensor) -> Tensor:
    """Next-token loss through the tied embedding at a random share of positions; the checkpoint keeps no trace."""
    chosen = (torch.rand(ids[:, 1:].shape) < _LANGUAGE_MODEL_SHARE) & (ids[:, 1:] != 0)
    logits = hidden[:, :-1][chosen] @ network.model.embed_tokens.weight.T
    return cross_entropy(logits, ids[:, 1:][chosen])
