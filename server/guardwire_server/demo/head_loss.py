"""The loss of one pair of heads, risk and category, at the tokens that carry a label."""

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn.functional import cross_entropy

from guardwire_server.demo.optimisation import pad, pad_weights
from guardwire_server.demo.training_data import IGNORED, HeadLabels

# Shapes: B sequences, T tokens of the longest, H hidden size, P labelled tokens.

_LABEL_SMOOTHING = 0.05


def head_loss(
    logits: Callable[[Tensor], tuple[Tensor, Tensor]], hidden: Tensor, labels: Sequence[HeadLabels]
) -> Tensor:
    """Weighted mean, over the labelled tokens, of the cross entropies of risk and category; zero if there is none.

    Args:
        logits: Maps hidden states [P, H] to logits of risk and category.
        hidden: [B, T', H]; T' may exceed T.
        labels: One for each sequence.
    """
    risk = pad([each.risk for each in labels], IGNORED)
    chosen = risk != IGNORED
    category = pad([each.category for each in labels], IGNORED)[chosen]
    weight = pad_weights([each.weight for each in labels])[chosen]
    if not len(weight):
        return hidden.sum() * 0
    risk_logits, category_logits = logits(hidden[:, : chosen.shape[1]][chosen])
    each = cross_entropy(risk_logits, risk[chosen], label_smoothing=_LABEL_SMOOTHING, reduction="none")
    # A Safe token has no category and adds nothing to the second sum.
    each = each + cross_entropy(
        category_logits, category, ignore_index=IGNORED, label_smoothing=_LABEL_SMOOTHING, reduction="none"
    )
    return (each * weight).sum() / weight.sum()
