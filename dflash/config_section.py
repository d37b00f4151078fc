"""What all sections of the typed configuration have in common."""

import os.path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

# Expanded once, so that checks and readers see the same path.
UserPath = Annotated[str, AfterValidator(os.path.expanduser)]


class Section(BaseModel):
    """One section: unknown settings are refused, defaults are validated as well."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)
