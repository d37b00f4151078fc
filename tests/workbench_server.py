"""A workbench on the tiny target with a tiny random draft, for tests."""

import argparse
import os
import socket
from contextlib import contextmanager

import torch

from dflash.model.config import DFlashConfig
from dflash.model.draft import DFlashDraft
from dflash.target import TargetModel

# How much longer than usual everything may take: DFLASH_PATIENCE=5 for a machine that is busy with other things.
PATIENCE = float(os.environ.get("DFLASH_PATIENCE", "1"))


def save_tiny_draft(target: TargetModel, folder) -> str:
    """A random draft of block size 4 for the tiny target."""
    torch.manual_seed(0)
    config = DFlashConfig.for_target(target, num_hidden_layers=2, num_features=3, block_size=4)
    DFlashDraft(config).save_pretrained(folder)
    return str(folder)


@contextmanager
def running_workbench(target_folder: str, draft_folder: str, runs_folder: str, auth: tuple[str, str] | None = None):
    """Serve on a free port of this machine; yields the address."""
    from workbench.launch import serve

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = argparse.Namespace(
        host="127.0.0.1",
        port=port,
        browser=False,
        runs=runs_folder,
        target=target_folder,
        draft=draft_folder,
        device="cpu",
        dtype="bfloat16",
    )
    demo = serve(options, auth)
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        demo.close()
