"""Reads the text of a program that was compiled for TPU: cycles by instruction, and their source lines.

The TPU compiler writes its estimate of cycles beside most instructions. A loop has none: its cost is that of
its body, times the number of rounds. Copies that run beside other work have none
either and count as 0. The number of rounds is read from the loop's condition, if it compares with a constant.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^  (?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r" ([a-z][\w\-]*)\(")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_BODY = re.compile(r"\bbody=%?([\w.\-]+)")
_CALLED = re.compile(r"(?:to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CONDITION = re.compile(r"\bcondition=%?([\w.\-]+)")
_LESS = re.compile(r"^  ROOT .* compare\((?:[^%)]*%)?[\w.\-]+, (?:[^%)]*%)?([\w.\-]+)\), direction=LT", re.M)
_FRAME = re.compile(r"\bstack_frame_id=(\d+)")
_SOURCE = re.compile(r'\bsource_file="([^"]*)" source_line=(\d+)')
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s64": 8, "u64": 8, "f64": 8}


class Instruction(NamedTuple):
    """One instruction of a computation.

    Attributes:
        name: its name in the text.
        opcode: `fusion`, `copy`, ...
        result: its type in the text.
        cycles: the compiler's estimate for one execution, without the computations it calls.
        calls: computations that it executes in sequence or of which it executes one.
        rounds: how often it executes them; None if the text does not say.
        source: (file, line) from the innermost frame outwards.
    """

    name: str
    opcode: str
    result: str
    cycles: int
    calls: tuple[str, ...]
    rounds: int | None
    source: tuple[tuple[str, int], ...]

    @property
    def bytes(self) -> int:
        """Bytes of its result, without padding."""
        return sum(
            _BYTES.get(kind, 4) * math.prod(int(side) for side in sides.split(",") if side)
            for kind, sides in _ARRAY.findall(self.result)
        )


class Program(NamedTuple):
    """A compiled program.

    Attributes:
        computations: name -> its instructions.
        entry: the name of the first computation.
    """

    computations: dict[str, list[Instruction]]
    entry: str

    def cycles(self, computation: str) -> int:
        """Estimated cycles of one execution; loops of unknown length count one round."""
        return sum(instruction.cycles * times for instruction, times in self.executed(computation))

    def executed(self, computation: str, times: int = 1) -> Iterator[tuple[Instruction, int]]:
        """(instruction, how often it is executed) of a computation and of those that it executes."""
        for instruction in self.computations[computation]:
            yield instruction, times
            called = instruction.calls
            if instruction.opcode == "conditional":
                called = (max(called, key=self.cycles),)
            for name in called:
                yield from self.executed(name, times * (instruction.rounds or 1))

    def loop(self) -> Instruction:
        """The loop of unknown length whose body is dearest: in a segment, that over the steps.

        Raises:
            ValueError: there is no such loop.
        """
        loops = [
            instruction
            for instructions in self.computations.values()
            for instruction in instructions
            if instruction.opcode == "while" and instruction.rounds is None
        ]
        if not loops:
            raise ValueError("the program has no loop whose length is an argument.")
        return max(loops, key=lambda instruction: self.cycles(instruction.calls[0]))


def parse(text: str) -> Program:
    """Reads `jax.stages.Compiled.as_text()`.

    Raises:
        ValueError: it has no entry computation.
    """
    frames, rounds = _frames(text), _rounds(text)
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (found := _INSTRUCTION.match(line)):
            current.append(_instruction(found[1], found[2], frames, rounds))
    if not entry:
        raise ValueError("text: there is no ENTRY computation; give the text of a compiled program.")
    return Program(computations, entry)


def _rounds(text: str) -> dict[str, int]:
    """Condition of a loop -> its number of rounds, for those that compare with a constant."""
    found = {}
    for name, body in re.findall(r"^%?([\w.\-]+) \([^\n]*-> pred\[\] \{\n(.*?)^\}", text, re.M | re.S):
        constants = dict(re.findall(r"^  %?([\w.\-]+) = s32\[\]\S* constant\((\d+)\)", body, re.M))
        less = _LESS.search(body)
        if less and less[1] in constants:
            found[name] = int(constants[less[1]])
    return found


def _instruction(
    name: str, rest: str, frames: dict[int, tuple[tuple[str, int], ...]], known: dict[str, int]
) -> Instruction:
    found = _OPCODE.search(" " + rest)
    opcode = found[1] if found else ""
    result = rest[: found.start()] if found else rest
    # The estimate of a fusion includes its computation; those that it names are therefore left out.
    calls: tuple[str, ...] = ()
    if opcode == "while":
        calls = tuple(_BODY.findall(rest))
    elif opcode == "conditional":
        listed = _BRANCHES.search(rest)
        calls = tuple(re.findall(r"[\w.\-]+", listed[1])) if listed else tuple(_CALLED.findall(rest))
    elif opcode == "call":
        calls = tuple(_CALLED.findall(rest))
    cycles, condition = _CYCLES.search(rest), _CONDITION.search(rest)
    rounds = known.get(condition[1]) if condition else 1
    source: tuple[tuple[str, int], ...] = ()
    if place := _SOURCE.search(rest):
        source = ((place[1], int(place[2])),)
    elif frame := _FRAME.search(rest):
        source = frames.get(int(frame[1]), ())
    return Instruction(name, opcode, result, int(cycles[1]) if cycles else 0, calls, rounds, source)


def _frames(text: str) -> dict[int, tuple[tuple[str, int], ...]]:
    """The tables at the head of the text: frame -> (file, line) from it outwards."""
    head = text.split("\nENTRY ", 1)[0]
    files = {int(i): name for i, name in re.findall(r'^(\d+) "([^"]*)"$', head, re.M)}
    # Names of functions follow in a table of the same form and would overwrite those of files.
    if part := re.search(r"^FileNames\n(.*?)\n\n", head, re.M | re.S):
        files = {int(i): name for i, name in re.findall(r'^(\d+) "([^"]*)"$', part[1], re.M)}
    places = {
        int(i): (files.get(int(file), ""), int(line))
        for i, file, line in re.findall(r"^(\d+) \{file_name_id=(\d+) .*?\bline=(\d+)", head, re.M)
    }
    found = re.findall(r"^(\d+) \{file_location_id=(\d+)(?: parent_frame_id=(\d+))?\}", head, re.M)
    parents = {int(i): int(parent or 0) for i, _, parent in found}
    at = {int(i): places.get(int(place), ("", 0)) for i, place, _ in found}
    # Some versions print the parent's number plus one, so that the outermost frame seems its own parent.
    shift = any(i == parent for i, parent in parents.items())

    def outwards(frame: int) -> tuple[tuple[str, int], ...]:
        rows = []
        while frame in at:
            rows.append(at[frame])
            parent = parents[frame] - shift
            frame = parent if parent < frame else 0
        return tuple(rows)

    return {frame: outwards(frame) for frame in at}
