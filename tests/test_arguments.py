"""Values on the command line that would only fail hours later are refused at once."""

from __future__ import annotations

import pytest

from torch_geninit.training.__main__ import main


@pytest.mark.parametrize(
    "command",
    [
        "space --data x --run y --networks 0",
        "first-epoch --data x --run y --seeds 0",
        "starts --data x --run y --epochs none",
        "expectation --data x --run y --pretrained z --judged-by 1",
        "ensembles --data x --zoos y --size 0",
        "frontier --data x --members 1",
        "evaluate members --data x --pretrained y --members 4",
        "zoo --data x --zoo y --networks -3",
    ],
)
def test_too_few_are_refused(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    option, value = command.split()[-2:]
    with pytest.raises(SystemExit):
        main(command.split())
    told = capsys.readouterr().err
    assert f"argument {option}: expected a whole number from" in told and repr(value) in told
