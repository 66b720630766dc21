"""Every name that telemetry uses, once: instruments, spans, events, attributes.

Sources: the RPC conventions of OpenTelemetry (release candidate) for what begins with `rpc.` and `error.`; the GenAI
conventions, on evaluations, for what begins with `gen_ai.`; all else is our own, below `guardwire.`.
"""

SCOPE = "guardwire"
"""The instrumentation scope of all telemetry."""

# --- instruments -------------------------------------------------------------------------------------------------

CALL_DURATION = "rpc.server.call.duration"
TIME_TO_PROMPT_VERDICT = "guardwire.stream.time_to_prompt_verdict"
VERDICT_LAG = "guardwire.token.verdict_lag"
QUEUE_WAIT = "guardwire.step.queue_wait"
STEP_DURATION = "guardwire.step.duration"
STEP_TOKENS = "guardwire.step.tokens"
STEP_SEQUENCES = "guardwire.step.sequences"
SESSIONS_ACTIVE = "guardwire.session.active"
SESSIONS_LIMIT = "guardwire.session.limit"  # gauge: max_sessions, which alerts compare the open ones with
SESSIONS_OPENED = "guardwire.session.opened"
SESSIONS_ENDED = "guardwire.session.ended"
CALLS_ACTIVE = "guardwire.classify.active"
PENDING_TOKENS = "guardwire.token.pending"
KV_ARENA_USED = "guardwire.kv_arena.used_ratio"  # collectors append _ratio to gauges of unit 1, our own page does not
KV_ARENA_EVICTIONS = "guardwire.kv_arena.evictions"
REPREFILLED_TOKENS = "guardwire.kv_arena.reprefilled_tokens"
TOKENS_JUDGED = "guardwire.token.judged"
DECISIONS = "guardwire.decision.taken"
CLASSIFY_PASSES = "guardwire.classify.passes"
CLASSIFY_TOKENS = "guardwire.classify.tokens"
REJECTIONS = "guardwire.request.rejected"
RELOADS = "guardwire.config.reloads"
CONFIG_REFUSED = "guardwire.config.refused"  # gauge: for as long as it lasts, which RELOADS does not tell
CERTIFICATE_EXPIRY = "guardwire.tls.certificate_expiry"
SERVING = "guardwire.health.serving"
START_TIME = "guardwire.process.start_time"  # gauge, Unix time in seconds: it changes with every restart

# --- spans and events --------------------------------------------------------------------------------------------

STEP_SPAN = "guardwire.step"
STREAM_SPAN = "guardwire.stream"
PREFILL_SPAN = "guardwire.prefill"
DECISION_SPAN = "guardwire.decision"
EVALUATION_EVENT = "gen_ai.evaluation.result"

# --- attributes --------------------------------------------------------------------------------------------------

RPC_SYSTEM = "rpc.system.name"
RPC_METHOD = "rpc.method"
RPC_STATUS = "rpc.response.status_code"
ERROR_TYPE = "error.type"
MODEL_KIND = "guardwire.model.kind"  # stream or gen
RISK_LEVEL = "guardwire.risk_level"  # safe, controversial or unsafe; of decisions also not_judged
CATEGORY = "guardwire.category"  # as core.verdict.Category names it, in lower case; none
ACTION = "guardwire.action"  # allow, flag or block
ROLE = "guardwire.role"  # user or assistant: whose text was judged
REASON = "guardwire.reason"  # ErrorInfo.reason, in lower case
END_REASON = "guardwire.end_reason"  # finished, blocked, abandoned, or the reason of the error
POLICY = "guardwire.policy"
TENANT = "guardwire.tenant"
PREFIX = "guardwire.prefix"  # reused: copied from an earlier call; or computed
SETTING = "guardwire.setting"
OUTCOME = "guardwire.outcome"  # taken or refused
SESSION_ID = "guardwire.session.id"
STREAM_COUNT = "guardwire.stream.count"  # streams of one ModerateStreams call
NUM_TOKENS = "guardwire.num_tokens"
NUM_PROMPT_TOKENS = "guardwire.num_prompt_tokens"
NUM_SEQUENCES = "guardwire.num_sequences"
NUM_PASSES = "guardwire.num_passes"
TOKEN_INDEX = "guardwire.token_index"
CUT_INDEX = "guardwire.cut_index"
ENFORCED = "guardwire.enforced"
REQUEST_ID = "guardwire.request_id"
EVALUATION_NAME = "gen_ai.evaluation.name"
EVALUATION_LABEL = "gen_ai.evaluation.score.label"
EVALUATION_SCORE = "gen_ai.evaluation.score.value"
EVALUATION_EXPLANATION = "gen_ai.evaluation.explanation"
REQUEST_MODEL = "gen_ai.request.model"
