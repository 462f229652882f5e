"""The study on made-up sentences: answers, report, what fails and what goes on."""

import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sstkern.cli import app
from sstkern.text.study import PROBLEMS, report, study
from sstkern.text.study.recipes import RECIPES
from sstkern.text.trainer import Run


def call(folder: Path, *arguments: str):
    return CliRunner().invoke(app, ["study", "--quick", "--data", "demo", "--output", str(folder), *arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    result = call(folder, "--problem", "3.3", "--problem", "3.1", "--problem", "3.4", "--problem", "2.1")
    assert result.exit_code == 0, result.output
    assert re.findall(r"problem (\S+) \((\d) of 4\)", result.stdout) == [("2.1", "1"), ("3.1", "2"), ("3.3", "3"), ("3.4", "4")]
    return folder


def test_the_report_has_the_answers_and_no_others(folder: Path):
    text = (folder / "report.md").read_text()
    assert re.findall(r"^## (\d\.\d)", text, re.MULTILINE) == ["2.1", "3.1", "3.3", "3.4"]
    assert "quick pass" in text
    assert "Not SST-2 but generated demo sentences: 16,000 phrases" in text
    measured = json.loads((folder / "results.json").read_bytes())["3.1"]["result"]["average"]
    split, (run,) = measured["split"], measured["runs"]
    line = f"| 3.1 | average pooling | {split['trained_parameters']:,} | {split['accuracy']:.4f} | **{run['accuracy']['dev']:.4f}** |"
    assert line in text
    assert split["command"] in text
    assert run["command"] in text
    assert "<<" not in text
    assert "<%" not in text


def test_the_page_has_formulas_tables_and_no_script(folder: Path):
    page = (folder / "report.html").read_text()
    assert page.count("<math") > 10
    assert "<table>" in page
    assert "<script" not in page
    assert "$" not in re.sub(r"<pre>.*?</pre>", "", page, flags=re.DOTALL)
    for picture in re.findall(r'<img src="([^"]+)"', page):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")


def test_an_answer_that_is_there_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch):
    before = json.loads((folder / "results.json").read_bytes())
    monkeypatch.setattr(Run, "start", None)
    monkeypatch.setitem(study.ANSWERS, "3.3", None)
    assert call(folder, "--problem", "3.1", "--problem", "3.3").exit_code == 0
    after = json.loads((folder / "results.json").read_bytes())
    assert {problem: entry["result"] for problem, entry in after.items()} == {problem: entry["result"] for problem, entry in before.items()}


def test_sentences_without_punctuation_and_without_a_word_are_studied(tmp_path: Path):
    for name in ("train", "dev"):
        rows = [f"film {number} is {'fine' if number % 2 else 'dull'}\t{number % 2}\n" for number in range(30)]
        (tmp_path / f"{name}.tsv").write_text("sentence\tlabel\n" + "".join(rows) + "\t1\n\t0\n" * 5)
    problems = [argument for problem in ("2.1", "2.2", "3.1", "3.2") for argument in ("--problem", problem)]
    result = CliRunner().invoke(app, ["study", "--quick", "--data", str(tmp_path), "--output", str(tmp_path / "s"), *problems])
    assert result.exit_code == 0, result.output
    assert "held out 5 sentences" in result.stdout
    assert re.findall(r"^## (\d\.\d)", (tmp_path / "s" / "report.md").read_text(), re.MULTILINE) == ["2.1", "2.2", "3.1", "3.2"]


def test_what_cannot_be_answered_is_told_and_the_rest_goes_on(tmp_path: Path):
    (tmp_path / "torn.zip").write_bytes(b"no archive")
    result = call(tmp_path / "s", "--problem", "1.1", "--problem", "3.3", "--problem", "5.1", "--glove", str(tmp_path / "torn.zip"))
    assert result.exit_code == 1
    assert "problem 1.1: train has no sentence of at least 20 tokens" in result.stderr
    assert re.search(r"problem 5.1: .*torn\.zip", result.stderr)
    assert re.findall(r"^## (\S+)", (tmp_path / "s" / "report.md").read_text(), re.MULTILINE) == ["3.3"]


@pytest.mark.parametrize(("option", "problem", "wanted"), [("--glove", "5.1", "no file"), ("--transformer", "5.2", "no folder")])
def test_vectors_that_are_not_there_are_told_before_anything_is_trained(tmp_path: Path, option: str, problem: str, wanted: str):
    result = call(tmp_path / "s", option, str(tmp_path / "none"))
    assert result.exit_code == 2
    assert f"{option}: there is {wanted}" in " ".join(re.sub(r"[│╭╰╮╯─]", " ", result.stderr).split())
    assert not (tmp_path / "s").exists()
    assert call(tmp_path / "s", "--problem", "3.3", option, str(tmp_path / "none")).exit_code == 0


def test_a_quick_answer_is_none_to_the_whole_study(folder: Path, tmp_path: Path):
    shutil.copytree(folder / "results", tmp_path / "results")
    quick = study.Study.prepare(tmp_path, "demo", "g", "t", quick=True)
    assert list(quick.kept()) == ["2.1", "3.1", "3.3", "3.4"]
    whole = study.Study.prepare(tmp_path, "demo", "g", "t", quick=False)
    assert whole.kept() == {}
    whole.answer("3.3")
    report.write(whole)
    text = (tmp_path / "report.md").read_text()
    assert re.findall(r"^## (\d\S*)", text, re.MULTILINE) == ["3.3"]
    assert "quick pass" not in text


def test_every_problem_has_an_answer_a_title_and_a_section():
    text = report.TEMPLATE.read_text()
    for problem in PROBLEMS:
        assert problem in study.ANSWERS
        assert problem in study.TITLES
        assert f'"{problem}" in answers' in text
    assert {recipe.problem for recipe in RECIPES} <= set(PROBLEMS)
    for recipe in RECIPES:
        assert f'"{recipe.name}"' in text


def test_a_table_in_markdown():
    assert report.table(["a", "b"], [[1, "x"]]) == "| a | b |\n| --- | --- |\n| 1 | x |"
