"""The oracle of Gen: transformers' own greedy `generate` behind the checkpoint's chat template, no code of the server.

Conversations are answered in batches, padded at their left. Padding changes the order of float32 sums and so the last
digits of the logits; an answer on whose way two logits came close is therefore generated again, alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

Conversation = Sequence[tuple[str, str]]
"""(role, content) messages."""

MAX_NEW_TOKENS = 128
CLOSE_LOGITS = 1e-4
"""Logits are of the order of 1; sums in another order move them by about 1e-6."""

_BATCH_SIZE = 50


@dataclass(frozen=True)
class GenAnswer:
    """A greedy answer. `verdict` holds the probabilities of Safe, Controversial, Unsafe, None if it never chose.

    `min_margin` is the smallest distance between the two highest logits on the way.
    """

    text: str
    num_prompt_tokens: int
    num_answer_tokens: int
    verdict: tuple[float, float, float] | None
    min_margin: float


class GenOracle:
    """Qwen3Guard-Gen by transformers alone."""

    def __init__(self, directory: Path) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(directory, padding_side="left")
        self._model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        end = self._model.generation_config.eos_token_id
        self._end_ids = {end} if isinstance(end, int) else set(end)
        answers = [self._tokenizer.encode(f"Safety: {level}") for level in ("Safe", "Controversial", "Unsafe")]
        self._num_common = next(i for i, ids in enumerate(zip(*answers, strict=False)) if len(set(ids)) > 1)
        self._prefix = answers[0][: self._num_common]
        self._verdict_ids = [answer[self._num_common] for answer in answers]

    def answer_all(self, conversations: Sequence[Conversation]) -> list[GenAnswer]:
        """What the model answers, one conversation after another in the end where it matters."""
        by_length = sorted(range(len(conversations)), key=lambda i: sum(len(text) for _, text in conversations[i]))
        answers: dict[int, GenAnswer] = {}
        for start in range(0, len(by_length), _BATCH_SIZE):
            rows = by_length[start : start + _BATCH_SIZE]
            answers.update(zip(rows, self.answer_batch([conversations[row] for row in rows]), strict=True))
        for row, answer in answers.items():
            if answer.min_margin < CLOSE_LOGITS:
                answers[row] = self.answer_batch([conversations[row]])[0]
        return [answers[row] for row in range(len(conversations))]

    @torch.inference_mode()
    def answer_batch(self, conversations: Sequence[Conversation]) -> list[GenAnswer]:
        """What the model answers to some conversations in one batch."""
        chats = [[{"role": role, "content": content} for role, content in messages] for messages in conversations]
        prompt = self._tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        output = self._model.generate(
            **prompt,
            do_sample=False,
            max_new_tokens=MAX_NEW_TOKENS,
            pad_token_id=self._tokenizer.pad_token_id,
            output_logits=True,
            return_dict_in_generate=True,
        )
        generated = output.sequences[:, prompt["input_ids"].shape[1] :].tolist()
        logits = torch.stack(output.logits, dim=1)
        num_prompt_tokens = prompt["attention_mask"].sum(dim=1).tolist()
        return [self._answer(*row) for row in zip(generated, logits, num_prompt_tokens, strict=True)]

    def _answer(self, generated: list[int], logits: torch.Tensor, num_prompt_tokens: int) -> GenAnswer:
        end = next((at for at, token_id in enumerate(generated) if token_id in self._end_ids), len(generated) - 1)
        answer_ids = generated[: end + 1]
        highest = logits[: end + 1].topk(2, dim=-1).values
        verdict = None
        if answer_ids[: self._num_common] == self._prefix and len(answer_ids) > self._num_common:
            safe, controversial, unsafe = torch.softmax(logits[self._num_common, self._verdict_ids], dim=-1).tolist()
            verdict = (safe, controversial, unsafe)
        return GenAnswer(
            text=self._tokenizer.decode(answer_ids, skip_special_tokens=True),
            num_prompt_tokens=num_prompt_tokens,
            num_answer_tokens=len(answer_ids),
            verdict=verdict,
            min_margin=float((highest[:, 0] - highest[:, 1]).min()),
        )
