"""Importing the packages is light and silent; each import runs in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = (
    "diffusers",
    "transformers",
    "open_clip",
    "accelerate",
    "peft",
    "pyarrow",
    "huggingface_hub",
    "requests",
    "httpx",
)
PROBE = """
import json, sys
touched = []
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.bind", "subprocess.Popen"):
        touched.append(event)
sys.addaudithook(watch)
import {name}
print(json.dumps({{"modules": sorted(sys.modules), "touched": touched}}))
"""


def imported(name: str) -> dict[str, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(name=name)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    *said, last = done.stdout.splitlines()
    assert said == [], "importing prints"
    return json.loads(last)


@pytest.mark.parametrize("name", ["diffalign", "scorers", "diffalign.config"])
def test_import_is_light_and_stays_offline(name):
    found = imported(name)
    assert [m for m in HEAVY if m in found["modules"]] == []
    assert found["touched"] == []


def test_scorers_stand_alone():
    modules = imported("scorers")["modules"]
    assert [m for m in modules if m.split(".")[0] in ("diffalign", "torch")] == []


def test_the_probe_sees_what_it_looks_for():
    assert "http.client" in imported("http.client")["modules"]
    code = (
        PROBE.format(name="socket")
        + "\ntry:\n socket.create_connection(('127.0.0.1', 9), 0.1)\nexcept OSError: pass"
    )
    done = subprocess.run(
        [sys.executable, "-c", code + "\nprint(touched)"], capture_output=True, text=True, check=True
    )
    assert "socket.connect" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("module", ["diffalign", "diffalign.cli"])
def test_modules_run_the_command_line(module):
    done = subprocess.run(
        [sys.executable, "-m", module, "recipes", "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "copy" in done.stdout
