"""A target's tokenizer without its weights."""

from transformers import AutoTokenizer

from dflash.embedded import EMBEDDED_NAME
from dflash.errors import UserError
from dflash.target_source import is_local, resolve_target


def load_tokenizer(name: str, revision: str | None = None):
    """The tokenizer of the embedded target, of a local folder or of a Hugging Face id.

    Raises:
        UserError: there is none under that name.
    """
    source = resolve_target(name, revision)
    try:
        return AutoTokenizer.from_pretrained(source, revision=revision, local_files_only=is_local(source))
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(" .:")
        raise UserError(
            f"The tokenizer of target {name!r} could not be loaded: {reason}. "
            f"Give {EMBEDDED_NAME!r}, a Hugging Face id or a folder with a tokenizer.json."
        ) from error
