"""Fields of a study that have no effect, because of other fields; imports neither jax nor flax."""

from lthjax.config import Study

# Rows of `optim.OPTIMISERS` and `optim.SCHEDULES` that do not read a field; a row of the user's own may.
_OWN_MOMENTUM = ("adam", "adamw", "lion", "muon")
_NEVER_DROP = ("constant", "cosine", "linear")


def fields(study: Study) -> dict[str, str]:
    """The fields that change no number of this study, by dotted name, and in which case they do not."""
    optim, prune, found = study.optim, study.prune, {}
    if optim.name in _OWN_MOMENTUM:
        found["optim.momentum"] = f"where optim.name is {optim.name!r}, which has constants of its own"
    if optim.schedule in _NEVER_DROP:
        found["optim.decay"] = f"where optim.schedule is {optim.schedule!r}, which has no milestones"
    if prune.density is None:
        found["prune.course"] = "without prune.density"
    elif study.levels <= 1:
        found["prune.course"] = "in one level"
    if prune.scope != "group" and (prune.rates or prune.density is not None):
        found["prune.rate"] = f"where {'prune.rates' if prune.rates else 'prune.density'} is given"
    return found
