"""One stream of the fake server."""

from __future__ import annotations

import grpc
from google.protobuf.duration_pb2 import Duration

from guardwire.v1 import moderation_pb2 as pb

VOCABULARY = {
    word: token_id
    for token_id, word in enumerate(
        ("[UNK]", "the", "sky", "is", "blue", "bomb", "boom", "knife", "you", "mix", "hello", "world", "héllo")
    )
}
UNSAFE = {VOCABULARY["bomb"], VOCABULARY["boom"]}
CONTROVERSIAL = {VOCABULARY["knife"]}


class StreamFault(Exception):
    """The contract refuses a request."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def judge(token_id: int) -> pb.RiskLevel.ValueType:
    if token_id in UNSAFE:
        return pb.RISK_LEVEL_UNSAFE
    return pb.RISK_LEVEL_CONTROVERSIAL if token_id in CONTROVERSIAL else pb.RISK_LEVEL_SAFE


def judge_text(text: str) -> pb.RiskLevel.ValueType:
    ids = [VOCABULARY.get(word.strip(".,?!").lower(), 0) for word in text.split()]
    return max(map(judge, ids), default=pb.RISK_LEVEL_SAFE)


def probabilities(risk: pb.RiskLevel.ValueType) -> pb.RiskProbabilities:
    return pb.RiskProbabilities(
        safe=0.75 if risk == pb.RISK_LEVEL_SAFE else 0.125,
        controversial=0.75 if risk == pb.RISK_LEVEL_CONTROVERSIAL else 0.125,
        unsafe=0.75 if risk == pb.RISK_LEVEL_UNSAFE else 0.125,
    )


def judge_words(request: pb.ClassifyRequest) -> pb.ClassifyResponse:
    """What Classify answers; a last message of `gibberish` cannot be judged."""
    last = request.messages[-1]
    policy = request.policy or "default"
    if last.content == "gibberish":
        return pb.ClassifyResponse(
            judged=False,
            action=pb.ACTION_BLOCK,
            reason=pb.DECISION_REASON_NOT_JUDGED,
            answer="?",
            policy=policy,
            observed_only=policy == "observe",
        )
    risk = judge_text(last.content)
    is_answer = last.role == pb.ROLE_ASSISTANT
    return pb.ClassifyResponse(
        judged=True,
        risk_level=risk,
        categories=[] if risk == pb.RISK_LEVEL_SAFE else [pb.CATEGORY_VIOLENT],
        refusal=(pb.REFUSAL_YES if "cannot" in last.content else pb.REFUSAL_NO) if is_answer else 0,  # type: ignore[arg-type]
        probabilities=probabilities(risk),
        action=pb.Action.ValueType(risk),
        reason=pb.DECISION_REASON_VERDICT,
        explanation="the rule of the word",
        answer=f"Safety: {risk}",
        model=request.model or "fake-gen",
        model_revision="1",
        policy=policy,
        observed_only=policy == "observe",
        usage=pb.ClassifyUsage(
            num_prompt_tokens=9, num_answer_tokens=8, num_forward_passes=1, duration=Duration(nanos=1_500_000)
        ),
    )


class FakeStream:
    """The state of one stream and the responses to each request."""

    def __init__(self, stream_open: pb.StreamOpen) -> None:
        self.over = False
        self._open = stream_open
        self._tokens: list[int] = []
        self._ends: list[int] = []
        self._text = ""
        self._tokenised = 0  # characters of the text
        self._answer_start = 0
        self._turn = 0
        self._action = pb.ACTION_ALLOW
        self._prompt = pb.PromptVerdict()

    def handle(self, request: pb.ModerateStreamRequest, limits: pb.Limits) -> list[pb.ModerateStreamResponse]:
        match request.WhichOneof("request"):
            case "open":
                opened = pb.StreamOpened(session_id="fake-1", model="fake-stream", policy="default", limits=limits)
                messages = self._open.conversation.messages
                prompt = messages[-1].content if messages else ""
                return [pb.ModerateStreamResponse(opened=opened), *self._judge_prompt(prompt)]
            case "tokens":
                if len(request.tokens.token_ids) > limits.max_tokens_per_message:
                    raise StreamFault(grpc.StatusCode.INVALID_ARGUMENT, "too many tokens in one message")
                if request.tokens.HasField("start_index") and request.tokens.start_index != len(self._tokens):
                    raise StreamFault(grpc.StatusCode.OUT_OF_RANGE, "a gap or an overlap")
                return self._push([(token_id, 0) for token_id in request.tokens.token_ids])
            case "text":
                self._text += request.text.text
                return self._push(self._words(request.text.flush))
            case "rollback":
                return [self._rollback(request.rollback.num_tokens_kept)]
            case "user_turn":
                self._turn += 1
                self._action = pb.ACTION_ALLOW
                responses = self._push(self._words(flush=True))
                self._answer_start = len(self._tokens)
                return responses + self._judge_prompt(request.user_turn.content)
            case "finish":
                responses = self._push(self._words(flush=True))
                return responses if self.over else [*responses, self._summary(pb.END_REASON_FINISHED)]
            case _:
                raise StreamFault(grpc.StatusCode.INVALID_ARGUMENT, "request is required")

    def _judge_prompt(self, content: str) -> list[pb.ModerateStreamResponse]:
        risk = judge_text(content)
        risky = risk != pb.RISK_LEVEL_SAFE
        self._prompt = pb.PromptVerdict(
            risk_level=risk,
            category=pb.CATEGORY_VIOLENT if risky else pb.CATEGORY_UNSPECIFIED,
            probabilities=probabilities(risk),
            category_probability=0.5 if risky else 0,
            turn=self._turn,
        )
        responses = [pb.ModerateStreamResponse(prompt_verdict=self._prompt)]
        if risky:
            index = len(self._tokens)
            responses.append(self._decide(pb.Action.ValueType(risk), pb.ROLE_USER, index, index))
        return responses

    def _push(self, tokens: list[tuple[int, int]]) -> list[pb.ModerateStreamResponse]:
        verdicts = pb.Verdicts(start_index=max(len(self._tokens), self._open.resume_from))
        responses = []
        for token_id, end in tokens:
            index = len(self._tokens)
            self._tokens.append(token_id)
            self._ends.append(end)
            if index >= self._open.resume_from:
                _append(verdicts, token_id, end if self._open.input == pb.INPUT_KIND_TEXT else None)
            before = judge(self._tokens[index - 1]) if index > self._answer_start else pb.RISK_LEVEL_SAFE
            risk = judge(token_id)
            if risk == before and risk > self._action:
                responses.append(self._decide(pb.Action.ValueType(risk), pb.ROLE_ASSISTANT, index, index - 1))
        if verdicts.risk_levels:
            responses.insert(0, pb.ModerateStreamResponse(verdicts=verdicts))
        if self._action == pb.ACTION_BLOCK and self._open.end_on_block and not self._open.observe_only:
            responses.append(self._summary(pb.END_REASON_BLOCKED))
        return responses

    def _words(self, flush: bool) -> list[tuple[int, int]]:
        """The words that the text settles, each with the byte offset of its end."""
        words = []
        while self._tokenised < len(self._text):
            rest = self._text[self._tokenised :]
            word = rest.split()[0] if rest.split() else ""
            end = self._tokenised + rest.index(word) + len(word)
            if not word or (end == len(self._text) and not flush):
                break
            words.append((VOCABULARY.get(word.strip(".,?!").lower(), 0), len(self._text[:end].encode())))
            self._tokenised = end
        return words

    def _rollback(self, num_tokens_kept: int) -> pb.ModerateStreamResponse:
        if not self._answer_start <= num_tokens_kept <= len(self._tokens):
            raise StreamFault(grpc.StatusCode.OUT_OF_RANGE, "so many tokens cannot be kept")
        del self._tokens[num_tokens_kept:]
        self._action = pb.ACTION_ALLOW
        return pb.ModerateStreamResponse(
            rolled_back=pb.RolledBack(num_tokens_kept=num_tokens_kept, action=self._action)
        )

    def _decide(
        self, action: pb.Action.ValueType, role: pb.Role.ValueType, index: int, cut: int
    ) -> pb.ModerateStreamResponse:
        self._action = action
        decision = pb.Decision(
            action=action,
            role=role,
            turn=self._turn,
            token_index=index,
            cut_index=cut,
            risk_level=pb.RiskLevel.ValueType(action),
            category=pb.CATEGORY_VIOLENT,
            reason=pb.DECISION_REASON_VERDICT,
            explanation="two in a row",
            enforced=not self._open.observe_only,
        )
        if self._open.input == pb.INPUT_KIND_TEXT:
            decision.cut_text_offset = self._ends[cut - 1] if cut else 0
        return pb.ModerateStreamResponse(decision=decision)

    def _summary(self, reason: pb.EndReason.ValueType) -> pb.ModerateStreamResponse:
        self.over = True
        risks = [judge(token_id) for token_id in self._tokens]
        return pb.ModerateStreamResponse(
            summary=pb.Summary(
                end_reason=reason,
                prompt_verdict=self._prompt,
                risk_level=max(risks, default=pb.RISK_LEVEL_UNSPECIFIED),
                action=self._action,
                num_tokens=len(risks),
                num_safe_tokens=risks.count(pb.RISK_LEVEL_SAFE),
                num_controversial_tokens=risks.count(pb.RISK_LEVEL_CONTROVERSIAL),
                num_unsafe_tokens=risks.count(pb.RISK_LEVEL_UNSAFE),
                duration=Duration(seconds=2),
            )
        )


def _append(verdicts: pb.Verdicts, token_id: int, end: int | None) -> None:
    risk = judge(token_id)
    risky = risk != pb.RISK_LEVEL_SAFE
    verdicts.risk_levels.append(risk)
    verdicts.safe_probabilities.append(probabilities(risk).safe)
    verdicts.controversial_probabilities.append(probabilities(risk).controversial)
    verdicts.unsafe_probabilities.append(probabilities(risk).unsafe)
    verdicts.categories.append(pb.CATEGORY_VIOLENT if risky else pb.CATEGORY_UNSPECIFIED)
    verdicts.category_probabilities.append(0.5 if risky else 0)
    if end is not None:
        verdicts.text_end_offsets.append(end)
