"""Stand-in for SGLang's GPU kernels in an environment without a GPU; see `dflash_import_stub`."""

from dflash_import_stub import stub

stub(__name__)
