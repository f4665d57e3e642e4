"""The cost of programs on TPU: how the compiler's text is read, and the study's programs compiled with it."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from benchmarks import hlo, tpu
from lthjax.errors import UserError

ROOT = Path(__file__).parent.parent
OURS = str(ROOT / "lthjax" / "devices" / "conv.py")
TEXT = f"""HloModule jit_segment, is_scheduled=true

FileNames
1 "{ROOT}/lthjax/training/step.py"
2 "{OURS}"
3 "/elsewhere/flax/linen/linear.py"

FunctionNames
1 "segment"
2 "conv2d"

FileLocations
1 {{file_name_id=1 function_name_id=1 line=10 end_line=10 column=1 end_column=2}}
2 {{file_name_id=2 function_name_id=2 line=52 end_line=53 column=1 end_column=2}}
3 {{file_name_id=3 function_name_id=2 line=7 end_line=7 column=1 end_column=2}}

StackFrames
1 {{file_location_id=1 parent_frame_id=1}}
2 {{file_location_id=2 parent_frame_id=2}}
3 {{file_location_id=3 parent_frame_id=3}}

%fused (p: f32[4]) -> f32[4] {{
  ROOT %inside = f32[4]{{0}} exponential(%p), backend_config={{"window_config":{{"estimated_cycles":"999"}}}}
}}

%less_three (t: (s32[], f32[4])) -> pred[] {{
  %three = s32[]{{:T(128)}} constant(3)
  %i = s32[]{{:T(128)}} get-tuple-element(%t), index=0
  ROOT %lt = pred[]{{:T(512)}} compare(%i, %three), direction=LT, metadata={{op_name="lt"}}
}}

%less_argument (t: (s32[], f32[4], s32[])) -> pred[] {{
  %one = s32[]{{:T(128)}} constant(1)
  %i.1 = s32[]{{:T(128)}} get-tuple-element(%t), index=0
  %n = s32[]{{:T(128)}} get-tuple-element(%t), index=2
  ROOT %lt.1 = pred[]{{:T(512)}} compare(%i.1, %n), direction=LT
}}

%inner (t: (s32[], f32[4])) -> (s32[], f32[4]) {{
  %x = f32[4]{{0}} get-tuple-element(%t), index=1
  %add.1 = f32[4]{{0:T(8,128)}} add(%x, %x), backend_config={{"window_config":{{"estimated_cycles":"5"}}}}
  ROOT %tuple.1 = (s32[], f32[4]{{0}}) tuple(%i, %add.1)
}}

%steps (t: (s32[], f32[4], s32[])) -> (s32[], f32[4], s32[]) {{
  %x.1 = f32[4]{{0}} get-tuple-element(%t), index=1
  %fusion.1 = f32[2,3]{{1,0:T(8,128)S(1)}} fusion(%x.1), kind=kLoop, calls=%fused, metadata={{op_name="a"\
 stack_frame_id=3}}, backend_config={{"window_config":{{"estimated_cycles":"100"}}}}
  %copy.1 = u8[7]{{0}} copy(%x.1), metadata={{op_name="b" source_file="{OURS}" source_line=3}},\
 backend_config={{"window_config":{{"estimated_cycles":"20"}}}}
  %while.1 = (s32[], f32[4]{{0}}) while(%t.1), condition=%less_three, body=%inner
  ROOT %tuple.2 = (s32[], f32[4]{{0}}, s32[]) tuple(%i, %x.1, %n)
}}

ENTRY %main (p: f32[4]) -> f32[4] {{
  %copy.2 = f32[4]{{0}} copy(%p), backend_config={{"window_config":{{"estimated_cycles":"1000"}}}}
  %while.2 = (s32[], f32[4]{{0}}, s32[]) while(%t.2), condition=%less_argument, body=%steps
  ROOT %x.2 = f32[4]{{0}} get-tuple-element(%while.2), index=1
}}
"""


def test_cycles_of_a_loop_are_those_of_its_body_times_its_rounds() -> None:
    """A fusion's computation is part of its own estimate; the step loop's length is not in the text."""
    program = hlo.parse(TEXT)
    loop = program.loop()
    assert (loop.name, loop.rounds, loop.calls) == ("while.2", None, ("steps",))
    assert program.cycles("steps") == 100 + 20 + 3 * 5
    assert program.cycles(program.entry) == 1000 + 135
    inner = next(i for i in program.computations["steps"] if i.opcode == "while")
    assert inner.rounds == 3


def test_the_dearest_instructions_and_their_lines() -> None:
    """The innermost line of this project, from a table of frames or from the instruction itself."""
    program = hlo.parse(TEXT)
    rows = tpu.dearest(program, "steps", 2)
    assert [(row["name"], row["cycles"]) for row in rows] == [
        ("fusion.1", 50),
        ("copy.1", 10),
        ("add.1", 7.5),
    ]
    assert [row["line"] for row in rows] == ["lthjax/devices/conv.py:52", "lthjax/devices/conv.py:3", ""]
    fusion, copy = program.computations["steps"][1:3]
    assert [line for _, line in fusion.source] == [7, 52, 10]
    assert (fusion.bytes, copy.bytes) == (24, 7)


def test_frames_whose_parents_are_numbered_as_written() -> None:
    """The outermost frame then has no parent, or 0."""
    text = TEXT
    for frame in (1, 2, 3):
        text = text.replace(f"parent_frame_id={frame}", f"parent_frame_id={frame - 1}")
    assert hlo.parse(text) == hlo.parse(TEXT)


@pytest.mark.parametrize(
    ("text", "expected"), [("HloModule m\n", "no ENTRY"), (TEXT.replace("while(", "call("), "no loop")]
)
def test_texts_without_what_is_read(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        hlo.parse(text).loop()


def test_a_compiled_program_of_this_platform_is_read() -> None:
    """The format of JAX as installed; other compilers give no cycles."""
    compiled = jax.jit(lambda x, n: jax.lax.fori_loop(0, n, lambda i, x: jnp.tanh(x @ x), x)).lower(
        jnp.ones((8, 8)), 3
    )
    program = hlo.parse(compiled.compile().as_text() or "")
    assert program.loop().rounds is None
    assert program.cycles(program.entry) == 0


def test_a_compiler_that_is_missing_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from jax.experimental import topologies

    def missing(**_: object) -> None:
        raise RuntimeError("no plugin\nand more")

    monkeypatch.setattr(topologies, "get_topology_desc", missing)
    with pytest.raises(UserError, match=r"libtpu.*no plugin.*pip install"):
        tpu.devices("v5e:1x1")


def test_the_compiler_compiles_the_studys_programs() -> None:
    """Every program of a study for one chip and for four, in a process of its own, which holds the lock."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("the TPU compiler is not installed (pip install 'lthjax[tpu]')")
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    rows = []
    for topology, replicates in (("v5e:1x1", 2), ("v6e:2x2", 4)):
        command = ["benchmarks.tpu", "--model", "lenet300", "--replicates", str(replicates), "--batch", "20"]
        done = subprocess.run(
            [sys.executable, "-m", *command, "--topology", topology, "--json"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        rows += [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["program"] for row in rows] == [*tpu.PROGRAMS] * 2
    assert all(row["cycles"] > 1000 and row["compile_s"] > 0 for row in rows)
    segments = [row for row in rows if row["program"] == "segment"]
    assert all(0 < row["limit"] < row["cycles"] for row in segments)
    # No copy of the images, which are 55 MB.
    assert all(row["largest_copy_bytes"] < 30e6 for row in segments)
    lines = [part["line"] for part in segments[0]["dearest"]]
    assert any(line.startswith("lthjax/") for line in lines)
