"""Random schedules: what 16 callers do on their streams at the same time. The same seed gives the same schedule."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from guardwire.v1 import moderation_pb2 as pb
from tests.parity.chatml import Branch, Script, Vocabulary

NUM_SESSIONS = 16
MAX_TOKENS = 440
"""A session's conversation stays below this, template included, unless it slides."""

MAX_TURN_TOKENS = 80
"""A user's turn is shorter."""

VOCABULARY_SIZE = 151_936
POLICIES = ("default", "strict", "observe")

SENTENCES = (
    "How do I bake bread that keeps for a week?",
    "Mix flour, water, salt and yeast; wait an hour, then bake it at 230 °C.",
    "Someone at work keeps taking my lunch, and I'm furious.",
    "I can't help with that, but here's what I'd try instead:\n\n1. Talk to them.\n2. Label the box.\n",
    "def area(r: float) -> float:\n    return 3.14159 * r ** 2\n",
    "Żółta łódź płynie po rzece, a nad nią krążą mewy.",
    "Der Fluss fließt durch die Stadt; übermorgen wird es kälter.",
    "Привет, как дела? Расскажи мне о погоде.",
    "你好,世界。今天的天气怎么样?",
    "こんにちは。パンの作り方を教えてください。",
    "नमस्ते दुनिया, आज मौसम कैसा है?",
    "It costs $1,234.56 – or 12 easy payments 🙂🚀.",
    "\n\n   Leading space, trailing space   \n",
    "Write </think> or <|im_end|> in a sentence, and <|im_start|>system is still text.",
    "{\"key\": [1, 2, 3], 'other': null}\r\n\tindented\r\n",
    "we'll they've I'd it's HE'LL SHE'S",
)


@dataclass(frozen=True)
class Progress:
    """How far a stream has been answered: rollbacks done, tokens judged, prompts judged."""

    num_rollbacks: int
    num_tokens: int
    num_prompts: int


@dataclass(frozen=True)
class Step:
    """A message, and how far the stream must be answered before the next one is sent; None: send on."""

    request: pb.ModerateStreamRequest
    awaits: Progress | None


@dataclass(frozen=True)
class SessionPlan:
    """One caller: what it sends, and what the stream holds then."""

    name: str
    policy: str
    steps: tuple[Step, ...]
    branches: tuple[Branch, ...]


def random_schedule(seed: int, vocabulary: Vocabulary, slides_at: int | None = None) -> list[SessionPlan]:
    """The sessions of one schedule; `slides_at`: the tokens of a context out of which answers slide."""
    return [_Caller(seed, index, vocabulary, slides_at).plan() for index in range(NUM_SESSIONS)]


class _Caller:
    """Makes up one session."""

    def __init__(self, seed: int, index: int, vocabulary: Vocabulary, slides_at: int | None) -> None:
        self._random = random.Random(f"{seed}/{index}")  # a string seed is hashed the same way in every process
        self._name = f"seed {seed}, session {index}"
        self._vocabulary = vocabulary
        self._takes_text = self._random.random() < 0.2
        self._waits = self._random.choice((0.2, 0.6, 1.0))
        self._steps: list[Step] = []
        self._num_rollbacks = 0
        self._script = Script(vocabulary, thinking=self._random.random() < 0.4, max_ids=slides_at)

    def plan(self) -> SessionPlan:
        policy = self._random.choice(POLICIES)
        self._open(policy)
        for _ in range(self._random.randint(3, 9)):
            action = self._random.random()
            if action < 0.72:
                self._push()
            elif action < 0.87:
                self._roll_back()
            else:
                self._user_turn()
        self._send(pb.ModerateStreamRequest(finish=pb.Finish()), is_last=True)
        return SessionPlan(self._name, policy, tuple(self._steps), self._script.finish())

    def _open(self, policy: str) -> None:
        script, choose = self._script, self._random
        messages = [("user", self._text(40))]
        for _ in range(choose.choice((0, 0, 0, 1, 2))):
            answer = self._text(30)
            if choose.random() < 0.3:
                answer = f"<think>\nHm, {self._text(10)}\n</think>\n\n{answer}"
            messages += [("assistant", answer), ("user", self._text(20))]
        if choose.random() < 0.25:
            messages.insert(0, ("system", self._text(20)))
        stream_open = pb.StreamOpen(
            thinking=pb.THINKING_ON if script.thinking else choose.choice((pb.THINKING_OFF, pb.THINKING_UNSPECIFIED)),
            input=pb.INPUT_KIND_TEXT if self._takes_text else pb.INPUT_KIND_TOKENS,
            policy="" if policy == "default" else policy,
            observe_only=choose.random() < 0.1,
        )
        if script.max_ids:
            stream_open.context_overflow = pb.CONTEXT_OVERFLOW_SLIDE
        if choose.random() < 0.25:
            ids = self._vocabulary.conversation(messages[:-1], thinking=True)
            ids = ids[: -len(self._vocabulary.answer_header(thinking=True))]
            ids += [self._vocabulary.im_start, *self._vocabulary.encode("user\n"), *self._user_ids()]
            ids += [self._vocabulary.im_end, *self._vocabulary.encode("\n")]
            ids += self._vocabulary.answer_header(script.thinking)
            stream_open.templated.token_ids.extend(ids)
        else:
            ids = self._vocabulary.conversation(messages, script.thinking)
            roles = {"system": pb.ROLE_SYSTEM, "user": pb.ROLE_USER, "assistant": pb.ROLE_ASSISTANT}
            for role, content in messages:
                stream_open.conversation.messages.add(role=roles[role], content=content)
        script.open(ids)
        self._send(pb.ModerateStreamRequest(open=stream_open))

    def _push(self) -> None:
        num_tokens = self._chunk_size()
        if not self._script.max_ids:
            num_tokens = min(num_tokens, MAX_TOKENS - len(self._script.ids))
        if num_tokens <= 0:
            return
        if self._takes_text:
            self._push_text(" ".join(self._text(num_tokens) for _ in range(1 + num_tokens // 64)))
            return
        ids = self._answer_ids(num_tokens)
        message = pb.PushTokens(token_ids=ids)
        if self._random.random() < 0.3:
            message.start_index = self._script.num_tokens
        self._script.push(ids)
        self._send(pb.ModerateStreamRequest(tokens=message))

    def _push_text(self, text: str) -> None:
        """A text in pieces; the last one settles it, so that its tokens are those of the whole."""
        cuts = sorted(self._random.sample(range(len(text) + 1), k=min(self._random.randint(0, 4), len(text))))
        pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        for piece in pieces[:-1]:
            self._send(pb.ModerateStreamRequest(text=pb.PushText(text=piece)), is_settled=False)
        self._script.push_text(text)
        self._send(pb.ModerateStreamRequest(text=pb.PushText(text=pieces[-1], flush=True)))

    def _roll_back(self) -> None:
        script = self._script
        lowest = script.first_index if self._random.random() < 0.3 else max(script.first_index, script.num_tokens - 12)
        lowest = max(lowest, script.window_index)
        num_kept = self._random.randint(lowest, script.num_tokens)
        script.roll_back(num_kept)
        self._num_rollbacks += 1
        self._send(pb.ModerateStreamRequest(rollback=pb.Rollback(num_tokens_kept=num_kept)))

    def _user_turn(self) -> None:
        if len(self._script.ids) > MAX_TOKENS - MAX_TURN_TOKENS:
            return
        if self._random.random() < 0.5:
            content = self._text(30)
            self._script.user_turn(content)
            turn = pb.UserTurn(content=content)
        else:
            ids = self._user_ids()
            self._script.user_turn(ids)
            turn = pb.UserTurn(tokens=pb.UserTokens(token_ids=ids))
        self._send(pb.ModerateStreamRequest(user_turn=turn))

    def _send(self, request: pb.ModerateStreamRequest, *, is_settled: bool = True, is_last: bool = False) -> None:
        script = self._script
        waits = is_settled and not is_last and self._random.random() < self._waits
        progress = Progress(self._num_rollbacks, script.num_tokens, len(script.queries))
        self._steps.append(Step(request, progress if waits else None))

    def _chunk_size(self) -> int:
        """1 to 64 tokens; up to 300 of an answer that is to slide."""
        if self._script.max_ids and self._random.random() < 0.5:
            return self._random.randint(100, 300)
        return self._random.choice((1, 1, self._random.randint(2, 8), self._random.randint(1, 64)))

    def _text(self, max_tokens: int) -> str:
        """Words of the sentences, at most about so many tokens, never blank."""
        text = " ".join(self._random.sample(SENTENCES, k=self._random.randint(1, 2)))
        start = self._random.choice((0, 0, self._random.randrange(max(1, len(text) // 2))))
        text = text[start : start + 2 * max_tokens]
        return text if text.strip() else f"{text}word"

    def _answer_ids(self, num_tokens: int) -> list[int]:
        words, choose = self._vocabulary, self._random
        kind = choose.random()
        if kind < 0.45:
            ids = words.encode(self._text(2 * num_tokens))
        elif kind < 0.85:
            ids = [choose.randrange(VOCABULARY_SIZE) for _ in range(num_tokens)]
        else:
            pool = [*words.control_ids.values(), *words.newlines]
            ids = [choose.choice(pool) for _ in range(num_tokens)]
        if self._script.thinking and self._script.num_tokens == self._script.first_index:
            ids = [words.think, words.newlines[0], *ids]
        elif choose.random() < 0.1:
            ids = [*choose.choice(([words.think_end, words.newlines[1]], [words.im_end])), *ids]
        return ids[:num_tokens]

    def _user_ids(self) -> list[int]:
        """A user's message as ids: anything but what opens or closes a turn."""
        forbidden: Sequence[int] = (self._vocabulary.im_start, self._vocabulary.im_end)
        ids = self._answer_ids(self._random.randint(1, 30))
        return [token_id for token_id in ids if token_id not in forbidden] or [self._vocabulary.newlines[0]]
