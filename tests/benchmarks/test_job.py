"""Both load generators know the same job."""

import re
from dataclasses import fields
from pathlib import Path

from tests.benchmarks.job import Found, Job

RUST = (Path(__file__).parent / "load" / "src" / "job.rs").read_text()


def rust_fields(name: str) -> set[str]:
    body = re.search(rf"pub struct {name} {{(.*?)\n}}", RUST, re.DOTALL)
    assert body
    return set(re.findall(r"pub (\w+):", body[1]))


def test_the_lean_generator_reads_every_parameter_of_a_job() -> None:
    assert rust_fields("Job") == {field.name for field in fields(Job)}


def test_the_lean_generator_says_every_figure() -> None:
    assert rust_fields("Found") == {field.name for field in fields(Found)}
