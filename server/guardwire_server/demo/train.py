"""Rebuilds the demo tokenizer and both demo checkpoints from the corpus, then prints the table of held-out accuracy.

Run `python -m guardwire_server.demo.train --out DIR`; the same seed, library versions and number of processes give the
same checkpoints.
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import distributed

from guardwire_server.demo import GEN_NAME, STREAM_NAME, corpus_directory, handwritten_file
from guardwire_server.demo.conversations import ConversationSampler
from guardwire_server.demo.corpus import Corpus, load_corpus
from guardwire_server.demo.evaluate import held_out_conversations, judge, read_handwritten
from guardwire_server.demo.labels import CATEGORY_NAMES, UNSAFE, Label
from guardwire_server.demo.networks import load_stream, save_gen, save_stream
from guardwire_server.demo.optimisation import process_rank
from guardwire_server.demo.report import format_table
from guardwire_server.demo.train_gen import train_gen
from guardwire_server.demo.train_stream import train_stream
from guardwire_server.demo.training_data import control_id, gen_answer, guard_chat_template
from guardwire_server.demo.vocabulary import train_tokenizer, write_tokenizer

_TOKENIZER_CONVERSATIONS = 60_000
_SEEDS_PER_PROCESS = 1_000
_STREAM_STEPS = 5_000
_GEN_STEPS = 2_000
_BARE_SHARE = 0.65
_HELD_OUT_CONVERSATIONS = 600


class Progress:
    """One line on standard error that shows how far a training is; owned by the training loop's thread."""

    def __init__(self, title: str, num_steps: int, *, silent: bool = False) -> None:
        self._silent = silent
        self._title = title
        self._num_steps = num_steps
        self._step = 0
        self._loss = 0.0
        self._started_s = time.monotonic()

    def advance(self, loss: float) -> None:
        """Counts one step and now and then redraws the line."""
        self._step += 1
        self._loss = loss if self._step == 1 else 0.98 * self._loss + 0.02 * loss
        if self._silent or (self._step % 25 and self._step != self._num_steps):
            return
        elapsed_s = time.monotonic() - self._started_s
        left_s = elapsed_s / self._step * (self._num_steps - self._step)
        end = "\n" if self._step == self._num_steps else ""
        steps = f"{self._title}: step {self._step}/{self._num_steps}, loss {self._loss:.3f}"
        print(f"\r{steps}, {elapsed_s:.0f} s, {left_s:.0f} s left ", end=end, file=sys.stderr, flush=True)


def build_tokenizer(corpus: Corpus, seed: int) -> Tokenizer:
    """Learns the vocabulary from training conversations."""
    sampler = ConversationSampler(corpus, "train", seed)
    conversations = sampler.stream(_TOKENIZER_CONVERSATIONS)
    texts = (message["content"] for conversation in conversations for message in conversation.messages)
    fixed = [
        guard_chat_template(),
        *(gen_answer(Label(UNSAFE, category), True) for category in range(len(CATEGORY_NAMES))),
    ]
    return train_tokenizer(texts, fixed)


def train(out: Path, *, seed: int, scale: float) -> None:
    """Writes both checkpoints below `out`; every process of the group takes part, the first one writes."""
    rank = process_rank()
    corpus = load_corpus(corpus_directory())
    template = guard_chat_template()
    if rank == 0:
        tokenizer = build_tokenizer(corpus, seed)
        write_tokenizer(tokenizer, out / STREAM_NAME, None)
        write_tokenizer(tokenizer, out / GEN_NAME, template)
    distributed.barrier()
    tokenizer = Tokenizer.from_file(str(out / STREAM_NAME / "tokenizer.json"))
    first_seed = seed + 1 + rank * _SEEDS_PER_PROCESS  # no two processes see the same conversations
    stream_steps, gen_steps = int(_STREAM_STEPS * scale), int(_GEN_STEPS * scale)
    progress = Progress("stream", stream_steps, silent=rank > 0)
    sampler = ConversationSampler(corpus, "train", first_seed, bare=_BARE_SHARE)
    stream = train_stream(sampler, tokenizer, num_steps=stream_steps, seed=seed, on_step=progress.advance)
    if rank == 0:
        save_stream(stream, out / STREAM_NAME)
    distributed.barrier()
    # From the saved, rounded weights: so Gen can be trained again from the files alone.
    start = load_stream(out / STREAM_NAME)
    progress = Progress("gen", gen_steps, silent=rank > 0)
    sampler = ConversationSampler(corpus, "train", first_seed + 1)
    gen = train_gen(sampler, tokenizer, template, start, num_steps=gen_steps, seed=seed, on_step=progress.advance)
    if rank == 0:
        eos = [control_id(tokenizer, "<|im_end|>"), control_id(tokenizer, "<|endoftext|>")]
        save_gen(gen, eos, out / GEN_NAME)


def _train_in_group(rank: int, num_processes: int, store: str, out: Path, seed: int, scale: float) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=num_processes)
    train(out, seed=seed, scale=scale)
    distributed.destroy_process_group()


def evaluate(out: Path, names: list[str]) -> str:
    """The table for the checkpoints under `out`."""
    corpus = load_corpus(corpus_directory())
    sets = {
        "templates": held_out_conversations(corpus.templates(), _HELD_OUT_CONVERSATIONS),
        "all corpus lines": held_out_conversations(corpus, _HELD_OUT_CONVERSATIONS),
    }
    sets.update(
        {
            f"handwritten {name}": read_handwritten(handwritten_file(name))
            for name in names
            if handwritten_file(name).exists()
        }
    )
    return format_table(
        {name: judge(out / STREAM_NAME, out / GEN_NAME, conversations) for name, conversations in sets.items()}
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder that receives the folders of both checkpoints")
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full number of training steps")
    parser.add_argument("--processes", type=int, default=2, help="processes that train together, one thread each")
    parser.add_argument(
        "--sets", nargs="*", default=["test"], help="hand-written sets to measure on, besides the template set"
    )
    parser.add_argument(
        "--evaluate-only", action="store_true", help="measure the checkpoints that are already in --out"
    )
    arguments = parser.parse_args()
    started_s = time.monotonic()
    if not arguments.evaluate_only:
        shutil.rmtree(arguments.out, ignore_errors=True)
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(  # type: ignore[attr-defined, no-untyped-call]
                _train_in_group,
                args=(arguments.processes, f"{folder}/store", arguments.out, arguments.seed, arguments.scale),
                nprocs=arguments.processes,
            )
        print(f"trained in {(time.monotonic() - started_s) / 60:.1f} minutes", file=sys.stderr)
    print(evaluate(arguments.out, arguments.sets))


if __name__ == "__main__":
    main()
