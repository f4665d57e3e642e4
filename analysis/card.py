"""The model card of an exported cell, a README for a hub: study, accuracy, controls, how to load it."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from lthjax import files, imp, models, sweep
from lthjax.arms import ARMS, rewound
from lthjax.config import Study
from lthjax.criteria import CRITERIA
from lthjax.errors import UserError, counted
from lthjax.imp import DENSE, Cell

from . import words
from .differences import FLOORED, difference
from .rows import TICKET, Row, accuracies, arms, images_of, select
from .run import Run

NAME = "README.md"
# In a table, also within backticks, where an entity would be shown as it is written.
_BAR = r"\|"
# The mark names the ticket's file, and has the SHA-256 of the card without it.
_MARK = "<!-- Written by lthjax's analysis.export of {}, sha256 {}; the next export of it replaces this. -->"
_MARKED = re.compile(_MARK.format(r"(\S+)", "([0-9a-f]{64})") + "\n")
_LOADING = """```python
from lthjax import prune

ticket = prune.load({file})
ticket.params, ticket.mask  # nested dictionaries of arrays
ticket.origin  # the weights that training started from, or None
```

Without lthjax:

```python
import numpy as np
from safetensors.numpy import load_file

tensors = load_file({file})
weights = {{name[7:]: of for name, of in tensors.items() if name.startswith("params/")}}
masks = {{
    name[5:]: np.unpackbits(of, count=weights[name[5:]].size).reshape(weights[name[5:]].shape).astype(bool)
    for name, of in tensors.items()
    if name.startswith("mask/")
}}
```

Pruned weights are exactly 0. Leaves without a mask are never pruned."""
_STATISTICS = """
Running statistics, which are no weights, lie beside the weights in the file, under {names}. Split them off
before a forward pass, and of the mask and the origin (empty if there is none) before pruning further:

```python
stats = {{name: ticket.params[name] for name in {collections}}}
params, mask, origin = (
    {{name: of for name, of in (tree or {{}}).items() if name not in stats}}
    for tree in (ticket.params, ticket.mask, ticket.origin)
)
```
"""
_RUNNING = """
Its logits of images, uint8 pixels [N, {sizes}], with lthjax{continued}:

```python
import numpy as np
{scale}
images = (np.asarray(pixels, np.float32) / 255 - mean) / std
model = models.build({model}, {shape}, {classes})
logits, _ = model.apply({params}, images, False)  # [N, {classes}]
```
"""
_FROM_FILE = """from lthjax import models

mean, std = (np.asarray(ticket.metadata[name], np.float32) for name in ("mean", "std"))"""
_FROM_DATA = """from lthjax import data, models

split = data.split(data.load({name}), {seed}, {validation})  # its data were not there when this was written
mean, std = split.mean, split.std"""


def write(run: Run, cell: Cell, file: Path, metadata: Mapping[str, Any]) -> Path:
    """Writes the card of a cell beside the file that it was exported to; returns its path.

    Args:
        run: the run.
        cell: a cell of it that did not diverge.
        file: the file that it was exported to.
        metadata: of that file.

    Raises:
        UserError: as for `check`, or it cannot be written.
    """
    check(file)
    to = file.parent / NAME
    try:
        files.write_whole(to, card(run, cell, file.name, metadata).encode())
    except OSError as error:
        raise UserError(f"{to}: it cannot be written ({error.strerror}).") from error
    return to


def check(file: Path) -> None:
    """Raises if the card of an exported file would replace what is not that file's card as it was written.

    Raises:
        UserError: a README.md is there that is no card, one of an earlier version or of another file, or was
            edited, or it cannot be read.
    """
    to = file.parent / NAME
    if not to.exists():
        return
    text = _read(to)
    found = _MARKED.search(text)
    if found is None:
        raise UserError(
            f"{to}: it is there and is no model card, and is not replaced (nor is one of an earlier version, "
            "which may have been edited); move it away or name another folder."
        )
    of = unquote(found[1])
    if of != file.name:
        raise UserError(
            f"{to}: it is the card of {of}, and is not replaced; name that file or another folder."
        )
    if _digest(text.replace(found[0], "")) != found[2]:
        raise UserError(
            f"{to}: it was edited since it was written, and is not replaced; move it away or name another "
            "folder."
        )


def there(file: Path) -> bool:
    """Whether the card of an exported file is beside it, edited or not; a UserError if it cannot be read."""
    to = file.parent / NAME
    found = _MARKED.search(_read(to)) if to.exists() else None
    return found is not None and unquote(found[1]) == file.name


def _read(to: Path) -> str:
    try:
        return to.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{to}: it cannot be read ({error.strerror}).") from error


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def card(run: Run, cell: Cell, file: str, metadata: Mapping[str, Any]) -> str:
    """The card as Markdown, with the front matter that hubs read.

    Args:
        run: the run.
        cell: a cell of it that did not diverge.
        file: the name of the file that it was exported to.
        metadata: of that file; its `mean` and `std` are those by which images are normalised.
    """
    row = next(row for row in run.rows if row.cell == cell)
    title = words.title(run.about)
    what = (
        "the dense network" if cell.arm == DENSE else f"{cell.arm}, {words.share(row.density)} of the weights"
    )
    front = {"library_name": "lthjax", "pipeline_tag": "image-classification",
             "tags": ["lottery-ticket", "pruning", "jax"], "metrics": ["accuracy"]}  # fmt: skip
    lines = [
        "---",
        *(f"{name}: {json.dumps(value)}" for name, value in front.items()),
        "---",
        f"# {title}: {what}",
        "",
        _sentence(run, row),
        "",
        "| | |\n|---|---|",
        *(f"| {name} | {value.replace('|', _BAR)} |" for name, value in _facts(run, row)),
        "",
        "## Accuracy",
        "",
        *_accuracies(run, row),
        "",
        "## Loading it",
        "",
        _LOADING.format(file=json.dumps(file)),
        _statistics(run, cell),
        *_running(run, cell, metadata),
        "",
    ]
    text = "\n".join(lines)
    mark = _MARK.format(quote(file), _digest(text))
    return text.replace("\n---\n", f"\n---\n{mark}\n", 1)


def _statistics(run: Run, cell: Cell) -> str:
    """Where the network's statistics are in the file; empty if it has none."""
    collections = sorted(run.variables(cell).stats)
    if not collections:
        return ""
    return _STATISTICS.format(
        names=", ".join(f"`{name}`" for name in collections),
        collections=json.dumps(collections),
    )


def _running(run: Run, cell: Cell, metadata: Mapping[str, Any]) -> list[str]:
    """How its logits are computed: of a shipped network the code, of any the images that it takes."""
    made, study = run.about["data"], run.study
    sizes = ", ".join(map(str, made["shape"]))
    known = "mean" in metadata
    there = f", which are {_numbers(metadata['mean'])} and {_numbers(metadata['std'])}" if known else ""
    takes = (
        "The network takes pixels / 255, normalised by mean and standard deviation of the seed's train split "
        f"(`lthjax.data.split`){there}, as [N, {sizes}]."
    )
    if study.model not in models.SHIPPED:
        return [takes, ""]
    has_stats = bool(run.variables(cell).stats)
    code = _RUNNING.format(
        sizes=sizes,
        continued=", after the code above" if has_stats else "",
        scale=_FROM_FILE
        if known
        else _FROM_DATA.format(
            name=json.dumps(study.data.name), seed=cell.seed, validation=study.data.validation
        ),
        model=json.dumps(study.model),
        shape=tuple(made["shape"]),
        classes=made["classes"],
        params="params, stats" if has_stats else "ticket.params, {}",
    )
    return [takes, code]


def _numbers(values: Sequence[float]) -> str:
    """The numbers of the channels, for a sentence."""
    return ", ".join(f"{value:.4f}" for value in values)


def _sentence(run: Run, row: Row) -> str:
    accuracy = f"{100 * (row.test_accuracy or 0):.2f} % test accuracy"
    if row.arm == DENSE:
        return f"A dense network with {accuracy}, before any pruning."
    told = f" ({ARMS[row.arm].summary})" if row.arm in ARMS else ""
    how = "iterative" if max(run.study.levels, row.level) > 1 else "one-shot"
    return (
        f"A network of {row.weights_left:,} weights with {accuracy} at the end of training: arm "
        f"`{row.arm}`{told}, level {row.level} of {how} pruning."
    )


def _facts(run: Run, row: Row) -> list[tuple[str, str]]:
    """(name, value): what it is, and what made it."""
    about, study = run.about, run.study
    place = "dense" if row.arm == DENSE else f"{row.chain}, level {row.level}"
    rewinds = row.arm in ARMS and ARMS[row.arm].params is rewound
    start = run.results[row.cell]["start"]
    versions = ", ".join(f"{name} {version}" for name, version in about.get("versions", {}).items())
    return [
        ("study", f"`{run.name}`"),
        ("network, data", f"{study.model}, {about['data']['name']} (content hash {about['data']['digest']})"),
        ("seed", str(row.seed)),
        ("chain", place),
        ("density", f"{words.share(row.density)}: {row.weights_left:,} prunable weights left"),
        ("pruning", sweep.schedule(study)),
        ("criterion", _criterion(study, row)),
        ("rewound to step", str(imp.rewind_of(row.chain)) if rewinds else "–"),
        ("trained from step", str(start)),
        ("trained for", counted(row.steps, "step")),
        ("command", f"`{'; '.join(about.get('commands', [])) or 'not known'}`"),
        ("versions, commit", f"{versions or 'not known'}; {about.get('git') or 'not known'}"),
    ]


def _criterion(study: Study, row: Row) -> str:
    """The criterion that made the mask, or that of the chain's leader where an arm has a mask of its own."""
    if row.arm == DENSE:
        return "–"
    name, leader, arm = imp.criterion_of(study, row.chain), imp.leader(row.chain), ARMS.get(row.arm)
    said = f"{name} ({CRITERIA[name].summary})" if name in CRITERIA else name
    if arm is not None and arm.mask is ARMS[TICKET].mask and arm.scores is None:
        return said
    beside = "" if row.arm == leader else f"of `{leader}` beside it: "
    own = "" if arm is None else "; the mask here is the arm's own"
    return f"{beside}{said}{own}"


def _accuracies(run: Run, row: Row) -> list[str]:
    """The table of this network beside the dense one and the other arms of its level, here and over seeds."""
    own = select(run.rows, chain=row.chain, level=row.level)
    ours = accuracies(select(own, arm=row.arm))
    others: dict[str, Sequence[Row]] = {} if row.arm == DENSE else {DENSE: select(run.rows, chain=DENSE)}
    others |= {arm: select(own, arm=arm) for arm in arms(own) if arm != row.arm}
    lines = ["| | this seed (%) | difference over seeds (points) | seeds |\n|---|---|---|---|"]
    lines.append(f"| **{row.arm}** | **{100 * (row.test_accuracy or 0):.2f}** | | {len(ours)} |")
    for arm, rows in others.items():
        theirs = accuracies(rows)
        gap = difference(ours, theirs, images_of(run.about))
        here = f"{theirs[row.seed]:.2f}" if row.seed in theirs else "–"
        lines.append(f"| {arm} | {here} | {row.arm} − {arm}: {words.points(gap)} | {gap.n} |")
    if not others:
        return lines
    controls = [arm for arm in others if arm != DENSE]
    said = "" if controls else " No control was trained at this level."
    return [
        *lines,
        "",
        f"Differences are paired by seed, with 95 % intervals (Student's t; {FLOORED}).{said}",
    ]
