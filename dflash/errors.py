"""The one exception for mistakes a user can mend."""


class UserError(Exception):
    """Bad input: one sentence naming the thing, what was wrong and what to do.

    Every front end (CLI, workbench, API) shows the sentence without a traceback; the CLI exits with code 2.
    """
