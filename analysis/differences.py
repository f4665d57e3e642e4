"""Mean accuracies, and their differences between two sets of seeds, with intervals."""

from collections.abc import Mapping

from lthjax.measures.stats import PERCENT, Interval, difference_error, mean_interval

# How captions and remarks name `floor`.
FLOORED = "the spread between seeds taken as no less than the test set's own error of a difference"


def mean_accuracy(of: Mapping[int, float]) -> Interval:
    """The mean over seeds of accuracies in percent, with its interval within 0 and 100."""
    return mean_interval(list(of.values()), within=PERCENT)


def difference(ours: dict[int, float], theirs: dict[int, float], images: int = 0) -> Interval:
    """The mean difference with its interval, paired over the seeds that both have; `images` as `floor`."""
    least = floor(ours, theirs, images)
    return mean_interval([ours[seed] - theirs[seed] for seed in ours if seed in theirs], floor=least)


def floor(ours: Mapping[int, float], theirs: Mapping[int, float], images: int) -> float:
    """The least standard deviation of a seed's difference of two accuracies: the test set's own error.

    Args:
        ours: seed -> accuracy in percent.
        theirs: likewise.
        images: of the test set; 0 for no floor.

    Returns:
        Percentage points; 0 where no seed has both.
    """
    both = [seed for seed in ours if seed in theirs]
    if not (both and images):
        return 0.0
    # Rounding may carry a mean beyond 1.
    mine, other = (min(1.0, sum(of[seed] for seed in both) / len(both) / 100) for of in (ours, theirs))
    return 100 * difference_error(mine, other, images)
