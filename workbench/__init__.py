"""The workbench: pages that show what `dflash` does. It computes nothing of its own."""
