"""Stand-in for torchvision in an environment for text models; see `dflash_import_stub`."""

from dflash_import_stub import stub

__version__ = "0.28.0"  # transformers asks; this is the release that goes with torch 2.13
stub(__name__)
