"""Arithmetic that depends on no setting of the process, and leaves each as it was."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading

import pytest
import torch

from tests.support import processes
from torch_geninit._utils.determinism import fixed


class TestAmbient:
    def test_products_do_not_depend_on_the_thread_count(self) -> None:
        torch.manual_seed(0)
        a, b = torch.randn(300, 5000), torch.randn(5000, 64)
        inside = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            try:
                with fixed():
                    inside.append(a @ b)
                assert torch.get_num_threads() == count
            finally:
                torch.set_num_threads(1)
        assert torch.equal(inside[0], inside[1]) and torch.equal(inside[0], inside[2])

    def test_threads_that_start_meanwhile_keep_the_callers_number(self) -> None:
        seen: list[int] = []
        torch.set_num_threads(3)
        try:
            with fixed():
                thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
                thread.start()
                thread.join()
                assert torch.get_num_threads() == 1
            assert torch.get_num_threads() == 3
        finally:
            torch.set_num_threads(1)
        assert seen == [3]

    def test_inherited_and_own_precision_come_back_as_they_were(self) -> None:
        mkldnn = torch.backends.mkldnn
        mkldnn.matmul.fp32_precision = "none"  # type: ignore[attr-defined]
        for owner in (mkldnn, mkldnn.matmul):  # type: ignore[attr-defined]
            owner.fp32_precision = "bf16"
            try:
                with fixed():
                    assert mkldnn.matmul.fp32_precision == "ieee"  # type: ignore[attr-defined]
                assert mkldnn.matmul.fp32_precision == "bf16"  # type: ignore[attr-defined]
            finally:
                owner.fp32_precision = "none"
            assert mkldnn.matmul.fp32_precision == "none"  # type: ignore[attr-defined]

    @pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs fork")
    @pytest.mark.system
    def test_a_fork_while_another_thread_computes_is_not_stuck(self) -> None:
        script = """
            import os, threading, time
            from torch_geninit._utils.determinism import fixed
            inside, leave = threading.Event(), threading.Event()
            def hold():
                with fixed():
                    inside.set(); leave.wait()
            thread = threading.Thread(target=hold); thread.start(); inside.wait()
            child = os.fork()
            if child == 0:
                with fixed():
                    os._exit(7)
            for _ in range(200):
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    break
                time.sleep(0.05)
            else:
                os.kill(child, 9)
            leave.set(); thread.join()
            raise SystemExit(os.waitstatus_to_exitcode(status) if done else 1)
        """
        command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)]
        done = subprocess.run(command, env=processes.environment(), timeout=60)
        assert done.returncode == 7
