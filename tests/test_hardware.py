"""What a command says of the devices it runs on."""

import importlib.util
from importlib import metadata
from types import SimpleNamespace

import jax
import pytest

from lthjax.devices import hardware


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """No plugin is installed, and nobody has asked for the CPU."""
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(metadata, "entry_points", lambda group: [])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def plugin(monkeypatch: pytest.MonkeyPatch, name: str, version: str) -> None:
    entry = SimpleNamespace(dist=SimpleNamespace(name=name, version=version))
    monkeypatch.setattr(metadata, "entry_points", lambda group: [entry] if group == "jax_plugins" else [])


def test_devices_are_described() -> None:
    count = jax.local_device_count()
    assert hardware.described().startswith(f"{count} x cpu (")


def test_without_an_accelerator_nothing_is_said() -> None:
    assert hardware.unused() == ""


def test_an_accelerators_plugin_that_finds_no_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin(monkeypatch, "jax-cuda12-plugin", "0.7.2")
    said = hardware.unused()
    assert said.startswith(f"jax-cuda12-plugin 0.7.2 is installed, but JAX {jax.__version__} found no such")
    assert said.endswith("JAX_PLATFORMS=cpu says that this is meant.")


def test_so_is_libtpu(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin(monkeypatch, "jax-cuda13-plugin", "0.10.2")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "libtpu" else None)
    monkeypatch.setattr(metadata, "version", lambda name: "0.0.21.1")
    assert hardware.unused().startswith("jax-cuda13-plugin 0.10.2 and libtpu 0.0.21.1 are installed, but")


@pytest.mark.parametrize("asked", ["cpu", "cpu,tpu"])
def test_who_asks_for_the_cpu_is_not_told(monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    plugin(monkeypatch, "jax-cuda12-plugin", "0.7.2")
    monkeypatch.setenv("JAX_PLATFORMS", asked)
    assert hardware.unused() == ""


@pytest.mark.parametrize("backend", ["gpu", "tpu"])
def test_nor_who_has_the_accelerator(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    plugin(monkeypatch, "jax-cuda12-plugin", "0.7.2")
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert hardware.unused() == ""
