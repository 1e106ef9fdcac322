"""Values on the command line that would only fail hours later are refused at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from torch_geninit.training.__main__ import main
from torch_geninit.training.loops import zoo


@pytest.mark.parametrize(
    "command",
    [
        "search-space --data x --run y --networks 0",
        "first-epoch --data x --run y --seeds 0",
        "initialisations --data x --run y --epochs none",
        "ensembles --data x --zoos y --run z --size 0",
        "diversity-tradeoff --data x --members 1",
        "evaluate members --data x --pretrained y --members 4",
        "zoo --data x --zoo y --networks -3",
        "zoo --data x --zoo y --batch-size -5",
        "ghn --data x --run y --noise -1",
        "ghn --data x --run y --threads 0",
    ],
)
def test_too_few_are_refused(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    option, value = command.split()[-2:]
    with pytest.raises(SystemExit):
        main(command.split())
    told = capsys.readouterr().err
    assert f"argument {option}: expected a whole number from" in told and repr(value) in told


@pytest.mark.parametrize("text", ["foo", "8x0", "0x5", "16x3,", "16x3;32x5", "-1x3"])
@pytest.mark.parametrize("command", ["ghn --data x --run y", "zoo --data x --zoo y"])
def test_phases_that_are_none_are_refused(
    command: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([*command.split(), f"--phases={text}"])
    assert "argument --phases: expected RESOLUTIONxAMOUNT" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0", "1.5", "nan", "half"])
def test_shares_are_shares(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["initialisations", "--data", "x", "--run", "y", "--share", text])
    assert "argument --share: expected a share" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["nan", "inf", "-0.1", "0", "fast"])
@pytest.mark.parametrize("option", ["initialisations --data x --run y --rates", "ghn --data x --run y --lr"])
def test_rates_are_positive(option: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*option.split()[:-1], f"{option.split()[-1]}={text}"])
    assert f"{option.split()[-1]}: expected a positive number" in capsys.readouterr().err


def test_a_pull_that_is_no_number_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["ghn", "--data", "x", "--run", "y", "--diversity", "nan"])
    assert "argument --diversity: expected a number, got 'nan'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["", ".", "../x", "a/b", "x\ny", "auto", "Upper", "-x", "a--b", "a.safetensors"]
)
def test_names_of_generators_are_names(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["export", "--run", "x", "--data", "y", f"--name={text}"])
    assert "argument --name: expected small letters" in capsys.readouterr().err


def test_files_that_are_not_there_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_text("no data")
    for data in (tmp_path / "none.safetensors", broken, tmp_path):
        with pytest.raises(SystemExit, match="1"):
            main(["ghn", "--data", str(data), "--run", str(tmp_path / "run")])
        told = capsys.readouterr().err
        assert told.startswith(f"ValueError: {data}: expected a file that") and "Traceback" not in told
    assert not (tmp_path / "run").exists()
    with pytest.raises(SystemExit):
        main(["vae", "--zoo", str(tmp_path / "nowhere"), "--run", str(tmp_path / "run")])
    assert "nowhere holds no networks; expected a folder" in capsys.readouterr().err


def test_errors_say_where_they_were_raised_if_asked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere holds no networks"):
        main(["vae", "--zoo", str(tmp_path / "nowhere"), "--run", str(tmp_path / "run"), "--traceback"])


def test_an_interrupted_command_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(zoo, "main", interrupted)
    with pytest.raises(SystemExit, match="130"):
        main(["zoo", "--data", "x", "--zoo", "y"])
    assert capsys.readouterr().err == "zoo: interrupted\n"
