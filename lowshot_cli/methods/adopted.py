"""Novel classes beside a classifier of which only the weights are at hand.

Its logits are log odds already, and stay as they are. A novel class is a discriminant
(`Statistics`) whose centre and covariance are those of unlabelled photos, as those of natural
images are in Hariharan, Malik, Ramanan: "Discriminative decorrelation" (ECCV 2012). The mean row of
the classifier is added to it, so that it shares what all rows have in common.

Sizes in shapes: D the size of an embedding, C base classes, N photos, k supports of a class.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lowshot_cli.methods.discriminant import Statistics
from lowshot_cli.models.head import as_read

# The covariance over all photos, whatever they show, is shrunk by this multiple of its mean
# variance, as there are far fewer of them than directions.
_SHRINKAGE = 32.0
# By how many standard deviations of a novel score the class that is decided for leads the mean of
# all classes. Fitted once on real photos for classifiers of 8 and of 1,000 classes.
_DEVIATIONS = 1.5
# Photos that the units are measured on, at most.
_MEASURED = 500
# Without photos: the score of the mean of k supports, and what is taken off it, a k / (k + b) - c,
# in multiples of the lead that the classifier gives its best class on the supports. With these
# numbers 2 % of decisions about other real photos changed, for 1 to 20 supports.
_STEEPNESS, _CAUTION = 2.0, (1.55, 2.0, 0.38)


def statistics_of_photos(features: Tensor, rows: Tensor) -> Statistics:
    """What unlabelled photos tell about the features of a classifier, in units of its logits.

    Args:
        features: `(N, D)` of the photos, N > 1.
        rows: `(C, D + 1)` of the classifier, with offsets.
    """
    one_class = torch.zeros(len(features), dtype=torch.int64)
    found = Statistics.of(features, one_class, _SHRINKAGE)
    some = features[:_MEASURED]
    logits = as_read(some, rows) @ rows.T  # (n, C)
    lead = (logits.amax(1) - logits.mean(1)).mean().item()
    around = some - found.centre  # (n, D)
    # Rows that each photo would give as the only support of a class, half way from the centre.
    alike = around / max(found.variance, torch.finfo(around.dtype).tiny)
    spreads = [
        (rows_of_one / 2 @ around.T).std(1).mean().item()  # over photos, (n,)
        for rows_of_one in (found.whiten(around), alike)
    ]
    whitened, round_ = (_DEVIATIONS * spread / lead if lead > 0 else 1.0 for spread in spreads)
    return replace(found, novel_unit=whitened or 1.0, round_unit=round_ or 1.0)


def cautious_proxies(support: Tensor, rows: Tensor) -> Tensor:
    """Proxies `(..., D + 1)` of novel classes where there are no photos of anything else.

    Nothing tells how far the class reaches, so it wins only what it resembles more than the
    supports resemble their best base class.

    Args:
        support: `(..., k, D)` features of the supports.
        rows: `(C, D + 1)` of the classifier, with offsets.
    """
    mean = support.mean(-2)  # (..., D)
    # What all features have in common says nothing about the class.
    away = mean - mean.mean(-1, keepdim=True)
    logits = as_read(support, rows) @ rows.T  # (..., k, C)
    lead = (logits.amax(-1) - logits.mean(-1)).mean(-1, keepdim=True)  # (..., 1)
    length = (away * mean).sum(-1, keepdim=True).clamp(min=torch.finfo(mean.dtype).tiny)
    most, half_at, less = _CAUTION
    shots = support.shape[-2]
    caution = most * shots / (shots + half_at) - less
    own = torch.cat([_STEEPNESS * lead / length * away, -caution * lead], -1)  # (..., D + 1)
    return own + rows.mean(0)
