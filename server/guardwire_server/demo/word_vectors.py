"""Embeddings to start from: those of a bag-of-words classifier, which learns in a minute what single words tell.

A transformer that starts from random embeddings spends most of a short training on finding out which words matter. The
classifier averages the embeddings of a message's tokens and reads risk and category from the mean; it keeps pace with a
linear model over n-grams, which on few data is hard to beat. The transformer then has the order of the words to learn.
"""

import random
from collections.abc import Iterator

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from guardwire_server.demo.conversations import ConversationSampler
from guardwire_server.demo.labels import CATEGORY_NAMES, SAFE, Label
from guardwire_server.demo.optimisation import AveragedOptimiser
from guardwire_server.demo.training_data import StreamRenderer

_BATCH_MESSAGES = 256
_CONVERSATIONS = 120_000  # read again and again: drawing them takes longer than learning from them
_LEARNING_RATE = 3e-3
_KEPT_WORDS = 0.85  # dropping some keeps single words from deciding alone
_NUM_LABELS = 1 + 2 * len(CATEGORY_NAMES)  # Safe, and both risk levels of every category
_MEAN_SCALE = 16.0  # a mean of many vectors is short
_SPREAD = 0.1
"""Standard deviation of the embeddings handed over: wide beside the steps of the training that follows, so that it
refines them and does not overwrite them."""


class _BagOfWords(nn.Module):
    """Scores of a message's label from the mean of its tokens' embeddings, one set of scores for each role."""

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(vocab_size, hidden_size, mode="mean")
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.scores = nn.Linear(hidden_size, 2 * _NUM_LABELS)

    def forward(self, ids: Tensor, offsets: Tensor, is_answer: Tensor) -> Tensor:
        """Ids of B messages in a row, int64; where each starts and whether it is an answer [B] → scores [B, L]."""
        scores: Tensor = self.scores(self.embedding(ids, offsets) * _MEAN_SCALE).view(len(offsets), 2, _NUM_LABELS)
        return scores[torch.arange(len(offsets)), is_answer]


Message = tuple[list[int], int, int]
"""Token ids, 1 for an answer or 0 for a user message, and the index of the label."""


def learn_word_vectors(
    sampler: ConversationSampler, tokenizer: Tokenizer, hidden_size: int, *, num_steps: int, rng: random.Random
) -> Tensor:
    """Trains the classifier for `num_steps` batches and returns embeddings [vocabulary, hidden_size]."""
    network = _BagOfWords(tokenizer.get_vocab_size(), hidden_size)
    optimiser = AveragedOptimiser(network, learning_rate=_LEARNING_RATE, num_steps=num_steps, average_decay=0.98)
    messages = _messages(sampler, StreamRenderer(tokenizer), rng)
    for _ in range(num_steps):
        batch = [next(messages) for _ in range(_BATCH_MESSAGES)]
        kept = [[token for token in ids if rng.random() < _KEPT_WORDS] for ids, _, _ in batch]
        lengths = torch.tensor([len(ids) for ids in kept])
        scores = network(
            torch.tensor([token for ids in kept for token in ids]),
            lengths.cumsum(0) - lengths,
            torch.tensor([is_answer for _, is_answer, _ in batch]),
        )
        optimiser.step(cross_entropy(scores, torch.tensor([label for _, _, label in batch])))
    optimiser.load_averaged()
    vectors = network.embedding.weight.detach()
    return vectors * (_SPREAD / vectors.std())


def _messages(sampler: ConversationSampler, renderer: StreamRenderer, rng: random.Random) -> Iterator[Message]:
    """Every user message, and every answer that is all of one label; over and over, in random order."""
    messages: list[Message] = []
    for conversation in sampler.stream(_CONVERSATIONS):
        for exchange in conversation.exchanges:
            prompt, answer = exchange.prompt, exchange.answer
            messages.append((renderer.encode(f"user\n{prompt.text}"), 0, _index(prompt.label)))
            if answer is not None and not answer.harm_start:
                messages.append((renderer.encode(answer.text), 1, _index(answer.label)))
    while True:
        rng.shuffle(messages)
        yield from messages


def _index(label: Label) -> int:
    return 0 if label.category is None or label.risk == SAFE else 2 * label.category + label.risk
