"""Generator files of any content, and what their reader says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from tests.support.toy_generator import config, toy
from torch_geninit.errors import GeneratorFileError
from torch_geninit.hub import file


def raw(changed_config: Any = None, tensors: dict[str, torch.Tensor] | None = None) -> bytes:
    """A file made with the safetensors library alone, from any config and any tensors."""
    text = changed_config if isinstance(changed_config, str) else json.dumps(changed_config or config())
    return save(tensors or toy().state_dict(), {"torch_geninit": text})


def refused(path: Path, content: bytes, *parts: str) -> str:
    """Write ``content``, expect a refusal that names the file and every one of ``parts``."""
    path.write_bytes(content)
    with pytest.raises(GeneratorFileError) as caught:
        file.read(path)
    message = str(caught.value)
    for part in (str(path), *parts):
        assert part in message
    assert len(message) < 2000
    return message


def resident(entry: str) -> int:
    """Bytes of memory of this process: VmRSS now, VmHWM at the most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(entry)).split()[1])
