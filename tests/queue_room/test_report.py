"""The data report: what it counts, what it decides, and how it ends as a command."""

from __future__ import annotations

import gzip
import json
import os
import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainer_tui.data.token_cache import open_existing
from trainer_tui.queue import limits, report, row_hashes, trained
from trainer_tui.queue.job import Job
from trainer_tui.queue.report import Context
from trainer_tui.queue.report_command import main
from trainer_tui.queue.report_context import build, load_template
from trainer_tui.queue.report_text import lines
from trainer_tui.queue.secrets import find_secret
from trainer_tui.queue.staging import Order, stage
from trainer_tui.queue.store import Queue
from trainer_tui.safety.config import Config, Intake
from trainer_tui.safety.errors import DataProblem
from trainer_tui.safety.workspace import Workspace


@pytest.fixture
def context(model_folder: Path) -> Context:
    return Context(Config(), load_template(model_folder)[0])


def rows_of(row, count: int) -> list[str]:
    return [row(f"What is {at} + 1?", f"It is {at + 1}.") for at in range(count)]


def judged(tmp_path: Path, context: Context, text: list[str], **config: object):
    path = tmp_path / "file.jsonl"
    path.write_text("\n".join(text))
    if config:
        context = Context(Config(**config), context.template, validation=context.validation)
    return report.make(path, "file.jsonl", context).report


def codes(found: report.Report, severity: str) -> list[str]:
    return [reason.code for reason in found.reasons if reason.severity == severity]


def test_a_clean_file_is_ok_and_its_numbers_are_right(
    tmp_path: Path, context: Context, row
) -> None:
    found = judged(tmp_path, context, [*rows_of(row, 200), "", ""])
    assert (found.verdict, found.summary, found.reasons) == ("ok", "ok", [])
    assert (found.rows, found.kept_rows, found.rejected_rows) == (200, 200, 0)
    assert found.documents == 200 and found.steps == 1 and found.lost_supervised_tokens == 0
    assert found.lengths.p50 <= found.lengths.p99 <= found.lengths.longest
    assert len(found.samples) == 5
    trained = "".join(run.text for run in found.samples[0].runs if run.supervised)
    assert trained == "It is 1.<|im_end|>"


def test_few_invalid_rows_stay_out_many_block_and_one_never_does(
    tmp_path: Path, context: Context, row
) -> None:
    few = judged(tmp_path, context, [*rows_of(row, 300), "no", "{}"])
    assert (few.verdict, few.kept_rows, few.summary) == ("warn", 300, "warn, 2 rejects")
    assert [(reject.line, reject.kind) for reject in few.rejects] == [
        (301, "invalid"),
        (302, "invalid"),
    ]
    many = judged(tmp_path, context, [*rows_of(row, 100), "no", "{}"])
    assert codes(many, "block") == ["invalid_rows"] and "--accept" in many.reasons[0].hint
    assert many.kept_rows == 100  # they are there to be accepted
    one = judged(tmp_path, context, [*rows_of(row, 3), "no"])
    assert one.verdict == "warn" and one.kept_rows == 3


def test_the_whole_hostile_corpus_in_one_file_takes_no_good_row_with_it(
    tmp_path: Path, context: Context, row
) -> None:
    corpus = runpy.run_path(str(Path(__file__).parents[1] / "corpus" / "hostile_rows.py"))
    good = [line.encode() for line in rows_of(row, 100 * len(corpus["HOSTILE"]) + 100)]
    lines: list[bytes] = []
    expected: dict[int, str] = {}
    for raw, words in corpus["HOSTILE"].values():
        lines += [*good[:100], raw]
        del good[:100]
        expected[len(lines)] = words
    fine = list(corpus["FINE"].values())
    path = tmp_path / "file.jsonl"
    path.write_bytes(b"\n".join([*lines, *good, *fine]))
    outcome = report.make(path, "file.jsonl", context)
    assert {reject.line for reject in outcome.rejects} == set(expected)
    assert all(expected[reject.line] in reject.reason for reject in outcome.rejects)
    assert outcome.report.kept_rows == 100 * len(expected) + 100 + len(fine)
    assert outcome.report.verdict == "warn"
    assert {"id", "tags", "n"} <= outcome.report.extra_keys.keys()


def test_a_file_without_a_usable_row_is_blocked(tmp_path: Path, context: Context) -> None:
    assert "empty" in judged(tmp_path, context, []).reasons[0].message
    found = judged(tmp_path, context, ["no"])
    assert (
        codes(found, "block") == ["no_usable_row"] and "line 1: not JSON" in found.reasons[0].hint
    )


def test_long_rows_block_with_the_command_that_clears_it(
    tmp_path: Path, context: Context, row
) -> None:
    long = [row("Tell me. " * 30, "I tell you. " * 30) for _ in range(12)]
    text = [*rows_of(row, 150), *(one.replace("Tell", f"T{at}") for at, one in enumerate(long))]
    found = judged(tmp_path, context, text, max_length=64)
    assert codes(found, "block") == ["over_length", "lost_tokens"]
    assert found.over_length_rows == 12 and found.rejected_rows == 12
    hint = found.reasons[0].hint
    assert hint.startswith("trainer-tui config set max_length ")
    wanted = int(hint.split()[4].rstrip(","))
    assert judged(tmp_path, context, text, max_length=wanted).verdict == "ok"
    lenient = Intake(block_over_length_share=0.5, block_lost_tokens_share=1.0)
    assert judged(tmp_path, context, text, max_length=64, intake=lenient).verdict == "warn"


def test_rows_that_would_train_nothing_block(tmp_path: Path, context: Context, row) -> None:
    lenient = Intake(long_rows="truncate", block_over_length_share=1.0, block_lost_tokens_share=1.0)
    text = [*rows_of(row, 50), row("What is it? " * 40, "It.")]
    found = judged(tmp_path, context, text, max_length=64, intake=lenient)
    assert found.kept_rows == 50 and found.rejects[0].kind == "too_long"


def test_repeats_conflicts_and_validation_rows_are_counted(
    tmp_path: Path, context: Context, row
) -> None:
    text = [*rows_of(row, 50), row("What is 1 + 1?", "It is 2."), row("What is 1 + 1?", "Two.")]
    from trainer_tui.data.rows import parse_line

    known = frozenset({parse_line(text[7].encode(), 1).identity()})
    context = Context(context.config, context.template, validation=known)
    found = judged(tmp_path, context, text)
    assert codes(found, "warn") == ["duplicates", "in_validation", "conflicts"]
    assert found.duplicate_rows == found.conflicting_prompts == found.validation_rows == 1


FAKES = {
    "private key": "-----BEGIN RSA PRIVATE KEY-----",
    "AWS access key": "AKIA" + "ABCDEFGHIJKLMNOP",
    "GitHub token": "ghp_" + "a1B2" * 10,
    "API key (sk-…)": "sk-" + "proj-" + "a1B2c3D4" * 6,
    "Hugging Face token": "hf_" + "aBcDeFgHiJ" * 3 + "abcd",
    "Slack token": "xoxb-" + "123456789012-abcdefghijkl",
    "Google API key": "AIza" + "B" * 35,
    "Stripe key": "sk_live_" + "a1B2" * 6,
    "GitLab token": "glpat-" + "a1B2" * 6,
}


@pytest.mark.parametrize("kind", FAKES)
def test_secrets_block_and_are_never_repeated(
    kind: str, tmp_path: Path, context: Context, row
) -> None:
    found = judged(tmp_path, context, [*rows_of(row, 20), row("key?", f"It is {FAKES[kind]} .")])
    assert codes(found, "block") == ["secrets"]
    assert kind in found.reasons[0].message and "line 21" in found.reasons[0].message
    said = found.reasons[0].message + found.summary
    assert FAKES[kind] not in said


@pytest.mark.parametrize("text", ["sk-learn is a library", "AKIA", "hf_hub", "task-sk-12", "ghp_x"])
def test_ordinary_words_are_no_secrets(text: str) -> None:
    assert find_secret(text) is None


def completed_job(workspace: Workspace, lines: list[str]) -> tuple[Queue, Job]:
    path = workspace.inbox / "a.jsonl"
    path.write_text("\n".join(lines))
    queue = Queue(workspace)
    job = queue.admit(stage(workspace, Order(path), build(workspace)).folder, "normal")
    assert build(workspace).trained.size == 0
    return queue, queue.complete(job.id)


def trained_before(workspace: Workspace, lines: list[str]) -> int:
    other = workspace.root / "b.jsonl"
    other.write_text("\n".join(lines))
    found = report.make(other, "b.jsonl", build(workspace)).report
    assert codes(found, "warn") == (["trained_before"] if found.trained_before_rows else [])
    return found.trained_before_rows


def test_rows_trained_before_are_recognised_after_the_job_and_its_tokens_are_gone(
    with_model: Workspace, row
) -> None:
    queue, job = completed_job(with_model, rows_of(row, 40))
    lines = [*rows_of(row, 30), row("new?", "yes")]
    assert trained_before(with_model, lines) == 30
    queue.remove(job.id)
    shutil.rmtree(with_model.trash)
    shutil.rmtree(with_model.cache)
    assert trained_before(with_model, lines) == 30


@pytest.mark.parametrize("lost", ["nothing more", "the job's hashes", "its tokens too"])
def test_what_was_trained_is_found_out_again(lost: str, with_model: Workspace, row) -> None:
    queue, job = completed_job(with_model, rows_of(row, 40))
    shutil.rmtree(row_hashes.folder_of(with_model))
    if lost != "nothing more":
        (queue.path(job) / row_hashes.ROW_HASHES_NAME).unlink()
    if lost == "its tokens too":
        shutil.rmtree(with_model.cache)
    assert trained_before(with_model, [row("new?", "yes"), *rows_of(row, 20)]) == 20
    assert len(list(row_hashes.folder_of(with_model).iterdir())) == 1


def test_the_memory_of_trained_rows_has_a_bound(
    with_model: Workspace, row, monkeypatch: pytest.MonkeyPatch
) -> None:
    completed_job(with_model, rows_of(row, 40))
    (old,) = row_hashes.folder_of(with_model).iterdir()
    os.utime(old, (1, 1))
    newer = old.with_name("0" * 64)
    newer.write_bytes(b"".join(number.to_bytes(8, "little") for number in range(30)))
    monkeypatch.setattr(trained, "KEPT_ROWS", 50)
    shutil.rmtree(with_model.queue / "recently_completed")
    assert build(with_model).trained.tolist() == list(range(30))
    assert not old.exists() and newer.exists()


def test_staging_fills_the_token_cache_in_the_same_pass(with_model: Workspace, row) -> None:
    from trainer_tui.data.options import TokenOptions
    from trainer_tui.data.token_cache import token_key

    path = with_model.inbox / "a.jsonl"
    path.write_text("\n".join(rows_of(row, 40)))
    context = build(with_model)
    staged = stage(with_model, Order(path), context)
    key = token_key(
        staged.meta.file_sha256, context.template, TokenOptions.from_config(context.config)
    )
    tokens = open_existing(with_model.cache, key)
    assert tokens.documents == staged.meta.documents == 40
    assert tokens.tokens == staged.meta.tokens > staged.meta.supervised_tokens > 0


def test_without_a_model_rows_are_checked_and_the_report_says_what_is_missing(
    tmp_path: Path, row
) -> None:
    found = judged(tmp_path, Context(Config(), None), [*rows_of(row, 20), "no"])
    assert found.verdict == "warn" and found.kept_rows == 20 and found.tokens is None
    assert "not_tokenised" in codes(found, "warn")


def test_the_text_is_safe_on_a_terminal_whatever_the_rows_hold(
    tmp_path: Path, context: Context, row
) -> None:
    text = [row("\x1b]0;evil\x07", "\u202eevil"), json.dumps({"\x1b[2J": 1})]
    shown = "\n".join(lines(judged(tmp_path, context, text), colour=False))
    assert "\x1b" not in shown and "\u202e" not in shown and "\x07" not in shown


def test_schema_checks_run_at_more_than_20_000_rows_a_second(tmp_path: Path, toys) -> None:
    path = tmp_path / "big.jsonl"
    path.write_text("\n".join(toys.files[0].lines * 300))
    best = 0.0
    for _ in range(3):
        start = time.process_time()
        found = report.make(path, "big", Context(Config(), None)).report
        best = max(best, found.rows / (time.process_time() - start))
    assert best > 20_000


# --- the command ----------------------------------------------------------------------------------


def validate(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trainer_tui.queue.report", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
    )


def test_the_command_works_in_a_pipeline(with_model: Workspace, row) -> None:
    root = with_model.root
    (root / "good.jsonl").write_text("\n".join([*rows_of(row, 300), "no"]))
    good = validate("good.jsonl", "--json", cwd=root)
    assert good.returncode == 0 and json.loads(good.stdout)["kept_rows"] == 300
    wrong = validate("gone.jsonl", cwd=root)
    assert wrong.returncode == 2
    assert wrong.stderr == "gone.jsonl cannot be read: No such file or directory\n"


def test_exit_codes_and_sentences(with_model: Workspace, capsys, monkeypatch) -> None:
    monkeypatch.chdir(with_model.root)
    # For the life of a process, and this one runs other tests; limits have a test of their own.
    monkeypatch.setattr(limits, "limit_process", lambda: None)
    monkeypatch.setattr(limits, "limit_time", lambda path: None)
    Path("bad.jsonl").write_text("no\n{}\n")
    assert main(["bad.jsonl"]) == 1
    assert capsys.readouterr().out.startswith("BLOCK  bad.jsonl")
    for wrong, words in (
        (["inbox"], "is a folder"),
        (["bad.jsonl", "--workspace", "/nowhere"], "no workspace"),
    ):
        assert main(wrong) == 2
        assert words in capsys.readouterr().err
    for usage in ([], ["bad.jsonl", "--sample", "0"], ["bad.jsonl", "--nope"]):
        with pytest.raises(SystemExit) as ended:
            main(usage)
        assert ended.value.code == 2


def test_sample_looks_at_rows_all_over_a_huge_file_and_says_so(
    tmp_path: Path, context: Context, row
) -> None:
    path = tmp_path / "a.jsonl"
    long = "word " * 500
    with path.open("w") as stream:
        stream.writelines(row(f"{at}?", f"{at}: {long}") + "\n" for at in range(4000))
        stream.write("no\n" * 2_000_000)
    found = report.make(path, "a", context, sample=160).report
    assert found.rows == found.sampled == 160
    assert 60 < found.kept_rows < 120  # the first 10 of 16 MB
    assert found.rejects and found.verdict == "block"
    assert any("160 rows at even distances" in note for note in found.notes)
    texts = {run.text for sample in found.samples for run in sample.runs if run.supervised}
    assert len(texts) == 5, "no row twice"


def test_sample_of_a_small_or_packed_file_is_its_beginning(
    tmp_path: Path, context: Context, row
) -> None:
    path = tmp_path / "a.jsonl"
    text = "\n".join([*rows_of(row, 100), "no"]).encode()
    for data in (text, gzip.compress(text)):
        path.write_bytes(data)
        found = report.make(path, "a", context, sample=10).report
        assert (found.rows, found.sampled, found.verdict) == (10, 10, "ok")
        assert any("only 10 first rows" in note for note in found.notes)
    with pytest.raises(DataProblem):
        path.write_bytes(b"PAR1")
        report.make(path, "a", context)
    path.write_bytes(b"PAR1" + bytes(5 << 20))
    with pytest.raises(DataProblem, match="parquet"):
        report.make(path, "a", context, sample=10)


def test_minutes_come_from_the_measured_speed_and_are_unknown_without(
    with_model: Workspace, context: Context, tmp_path: Path, row
) -> None:
    unknown = judged(tmp_path, context, rows_of(row, 200))
    assert unknown.seconds is None
    assert any("time unknown" in line for line in lines(unknown, colour=False))
    with_model.status_file.parent.mkdir(parents=True, exist_ok=True)
    with_model.status_file.write_text(json.dumps({"tokens_per_s": 50.0}))
    measured = build(with_model)
    path = tmp_path / "file.jsonl"
    found = report.make(path, "file.jsonl", measured).report
    assert found.seconds == pytest.approx(found.tokens * measured.config.epochs / 50.0)
    assert any("minutes at the speed of late" in line for line in lines(found, colour=False))


@pytest.mark.parametrize(
    ("limit", "words"),
    [("CPU_BASE_S = 0; limits.CPU_BYTES_PER_S = 10**9", "takes far longer"),
     ("MEMORY_BYTES = 200 << 20", "more memory")],
)  # fmt: skip
def test_validate_has_limits_and_says_so(tmp_path: Path, row, limit: str, words: str) -> None:
    file = tmp_path / "huge.jsonl"
    if "MEMORY" in limit:
        file.write_bytes(
            b"".join(row(f"{at}?", f"{at}" * 40).encode() + b"\n" for at in range(400))
        )
    else:
        with file.open("w") as stream:
            for at in range(150_000):
                stream.write(row(f"{at}?", f"{at}.") + "\n")
    code = (
        "import sys; from trainer_tui.queue import limits, report_command, tally\n"
        f"limits.{limit}\n"
        "if 'MEMORY' in sys.argv[2]:\n"
        "    real = tally.Tally.row\n"
        "    tally.Tally.row = lambda *a: (bytearray(1 << 30), real(*a))[1]\n"
        "sys.exit(report_command.main([sys.argv[1]]))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(file), limit], capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 2, found
    assert words in found.stderr and "split it" in found.stderr
