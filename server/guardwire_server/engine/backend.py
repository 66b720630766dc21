"""What the engine needs of a model: the Protocols at which engine and model meet.

A backend is used from one thread, the device thread. It owns the tensors: weights, and the key-value arena whose slots
the plans name. It keeps no state between steps but the arena's contents.
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from guardwire_server.core.step_plan import StepPlan
from guardwire_server.core.verdict import VerdictArrays


@dataclass(frozen=True, slots=True)
class StreamReadings:
    """What a step of the stream model read.

    `responses`: one entry for every token with Read.RESPONSE, in the plan's order; `queries`: likewise Read.QUERY.
    """

    responses: VerdictArrays
    queries: VerdictArrays


class StreamBackend(Protocol):
    """A Qwen3Guard-Stream model on a device."""

    def step(self, plan: StepPlan) -> StreamReadings:
        """Runs one step. May raise anything; the sequences of the plan are lost then, the others are not."""
        ...


@dataclass(frozen=True, slots=True)
class GenReadings:
    """What a step of the generative model read, one entry for every token with Read.LOGITS, in the plan's order.

    `next_ids` ("i"): the token of the highest logit. `verdict_probabilities` ("f"): three entries each (safe,
    controversial, unsafe), the softmax over the logits of the three tokens that begin the verdict's word.
    """

    next_ids: "array[int]"
    verdict_probabilities: "array[float]"


class GenBackend(Protocol):
    """A Qwen3Guard-Gen model on a device.

    `verdict_prefix` is what the answer begins with up to the verdict's word; `end_ids` end an answer. `likely_answers`
    are the answers of the grammar in tokens, their end included, the likeliest first: those about a prompt (False) and
    those about an answer (True).
    """

    verdict_prefix: tuple[int, ...]
    end_ids: frozenset[int]
    likely_answers: Mapping[bool, Sequence[tuple[int, ...]]]

    def step(self, plan: StepPlan) -> GenReadings:
        """Runs one step. May raise anything; the sequences of the plan are lost then, the others are not."""
        ...
