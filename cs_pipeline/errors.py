"""The one error that is written for people."""


class PipelineError(Exception):
    """Something the user can mend: what happened and where, then what to do.

    The command line prints it without a traceback; Dagster shows it as the failure's message.
    """

    def __init__(self, what: str, mend: str) -> None:
        super().__init__(f"{what}\n  What to do: {mend}")
        self.what = what
        self.mend = mend
