"""What a server offers, put together from its settings, models and policies."""

from collections.abc import Callable

from guardwire_server import __version__
from guardwire_server.config import ServerConfig
from guardwire_server.core.policy_set import PolicySet
from guardwire_server.core.verdict import Category
from guardwire_server.model.loading import LoadedModel
from guardwire_server.rpc.catalogue import Catalogue, RequestLimits, ServedModel
from guardwire_server.served_models import Models


def catalogue(config: ServerConfig, models: Models, policies: Callable[[], PolicySet]) -> Catalogue:
    """Everything that requests to a server with these settings and models may name."""
    stream_model = gen_model = None
    if models.stream:
        labels = models.stream.checkpoint.labels
        assert labels is not None  # every stream checkpoint has them
        stream_model = _served(models.stream, labels.query.categories, labels.response.categories)
    if models.gen:
        answer_categories = tuple(category for category in Category if category is not Category.JAILBREAK)
        gen_model = _served(models.gen, tuple(Category), answer_categories)
    return Catalogue(
        version=__version__,
        stream_model=stream_model,
        gen_model=gen_model,
        policies=policies,
        limits=RequestLimits(
            max_sessions=config.max_sessions,
            max_classify_calls=config.max_classify_calls,
            max_tokens_per_message=config.max_tokens_per_message,
            max_message_bytes=config.max_message_bytes,
            max_messages=config.max_messages,
            idle_timeout_s=config.idle_timeout_s,
            max_lifetime_s=config.max_lifetime_s,
            write_timeout_s=config.write_timeout_s,
        ),
    )


def _served(
    model: LoadedModel, prompt_categories: tuple[Category, ...], response_categories: tuple[Category, ...]
) -> ServedModel:
    return ServedModel(
        name=model.checkpoint.name,
        revision=model.checkpoint.revision,
        tokenizer_fingerprint=model.tokenizer.fingerprint,
        tokenizer_json=model.tokenizer.json_bytes,
        vocabulary_size=model.checkpoint.vocabulary_size,
        max_context_tokens=model.max_context_tokens,
        prompt_categories=tuple(sorted(prompt_categories)),
        response_categories=tuple(sorted(response_categories)),
        dtype=model.dtype_name,
        device=model.device_name,
        is_demo=model.checkpoint.is_demo,
    )
