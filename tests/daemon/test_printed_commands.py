"""Every block prints the command that clears it: here they are typed just as they are printed."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_harness import Harness, chat_rows, make_workspace
from person import Person

from trainer_tui.data import toy_chats, toy_tokenizer

COMMAND = re.compile(r"trainer-tui ((?:(?!, then| or|; or|: ).)+)")


def row(question: str, answer: str) -> str:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages})


def long_rows(name: str) -> str:
    return "\n".join(row(f"{name} {i}", "word " * (60 if i % 2 else 3)) for i in range(40))


FILES = {
    "long": long_rows("long"),
    "split": long_rows("split"),
    "secret": "\n".join(
        [*chat_rows(40, "s").decode().splitlines(), row("k", "AKIAIOSFODNN7EXAMPL2")]
    ),
    "invalid": "\n".join(chat_rows(40, "i").decode().splitlines() + ["{no"] * 20),
}


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Person, Harness]]:
    root = tmp_path_factory.mktemp("commands") / "ws"
    workspace = make_workspace(root, "max_length = 64\n")
    base = root / "models" / "base"
    toy_tokenizer.build(base, toy_chats.generate(rows_per_file=60).texts())
    harness = Harness(workspace).start()
    harness.post("/v1/training/pause")
    yield Person(root), harness
    harness.close()


def commands(text: str) -> list[list[str]]:
    """Every command in a text, as words; what stands around them is not one."""
    return [shlex.split(found.strip()) for found in COMMAND.findall(text)]


def drop(person: Person, daemon: Harness, name: str) -> dict:
    person.drops(f"{name}.jsonl", FILES[name].encode())
    job = daemon.until_job(f"{name}.jsonl", "failed")
    assert job["error"]["class"] == "blocked"
    return job


def test_a_longer_max_length_as_printed_clears_the_block(person: tuple[Person, Harness]) -> None:
    typist, daemon = person
    job = drop(typist, daemon, "long")
    longer, retry, accept = commands(job["error"]["hint"])
    assert longer[:3] == ["config", "set", "max_length"] and accept == [*retry, "--accept"]
    assert retry == ["queue", "retry", str(job["id"])]
    said = typist.types(*longer).stdout  # a critical key: it says how it is approved
    assert typist.types(*retry, check=False).returncode == 1, "nothing has changed yet"
    for approve in commands(said):
        typist.types(*approve)
    typist.types(*retry)
    waits = daemon.until_job("long.jsonl", "waiting")
    assert not waits["error"] and waits["id"] == job["id"]
    daemon.post(f"/v1/jobs/{job['id']}/hold")
    typist.types("config", "set", "max_length", "64")
    typist.types("config", "approve", "max_length")


def test_splitting_rows_as_printed_is_accepted_with_what_it_does(
    person: tuple[Person, Harness],
) -> None:
    """The report names a command for each reason; all together clear the block."""
    typist, daemon = person
    job = drop(typist, daemon, "split")
    report = daemon.get(f"/v1/jobs/{job['id']}/report")
    reasons = {
        r["code"]: commands(r["hint"]) for r in report["reasons"] if r["severity"] == "block"
    }
    assert set(reasons) == {"over_length", "lost_tokens"}
    split = reasons["lost_tokens"][1]
    assert split[:3] == ["config", "set", "intake.long_rows"]
    typist.types(*split)
    typist.types(*reasons["over_length"][-1])  # --accept
    daemon.until_job("split.jsonl", "waiting")


@pytest.mark.parametrize("name", ["secret", "invalid"])
def test_accepting_as_printed_queues_it(person: tuple[Person, Harness], name: str) -> None:
    typist, daemon = person
    job = drop(typist, daemon, name)
    (accept,) = commands(job["error"]["hint"])
    refused = typist.types(*accept[:-1], check=False)
    assert refused.returncode == 1 and shlex.join(accept) in refused.stderr
    typist.types(*accept)
    assert daemon.until_job(f"{name}.jsonl", "waiting")["id"] == job["id"]


def test_a_duplicate_as_printed_is_trained_once_more(person: tuple[Person, Harness]) -> None:
    typist, daemon = person
    for name in ("one", "two"):
        typist.drops(f"{name}.jsonl", chat_rows(3, "same"))
        daemon.until_job(f"{name}.jsonl", "waiting" if name == "one" else "failed")
    (accept,) = commands(daemon.job("two.jsonl")["error"]["hint"])
    typist.types(*accept)
    daemon.until_job("two.jsonl", "waiting")


def test_a_json_array_is_converted_by_the_line_that_is_printed(
    person: tuple[Person, Harness], tmp_path: Path
) -> None:
    typist, _ = person
    rows = [json.loads(line) for line in chat_rows(3, "array é").splitlines()]
    (tmp_path / "IN.json").write_text(json.dumps(rows))
    found = typist.types("validate", str(tmp_path / "IN.json"), check=False)
    assert found.returncode == 1
    line = found.stdout.partition("convert it: ")[2].splitlines()[0]
    subprocess.run(["bash", "-c", line], cwd=tmp_path, check=True)
    typist.types("validate", str(tmp_path / "OUT.jsonl"))


def test_validate_prints_what_adds_the_file(person: tuple[Person, Harness], tmp_path: Path) -> None:
    typist, daemon = person
    path = tmp_path / "it's odd.jsonl"
    path.write_text(FILES["secret"].replace("EXAMPL2", "EXAMPL3"))
    found = typist.types("validate", str(path), check=False)
    assert found.returncode == 1
    (add,) = commands(next(line for line in found.stdout.splitlines() if "--accept" in line))
    assert add == ["add", str(path), "--accept"]
    typist.types(*add)
    assert daemon.job("it's odd.jsonl")["state"] == "waiting"
