"""The one error that a user is meant to read. It is below every room, so that each can raise it."""


class ArcftError(Exception):
    """Something in the input is wrong; the message names the key or file, the value, the rule and the way out.

    The command line prints the message without a traceback and exits with code 1. Rooms subclass it where a
    caller wants to tell errors apart (`GridParseError`, `CheckpointError`, ...).
    """


class DecodingError(ArcftError):
    """The model can't answer: its logits are not numbers, or what it is asked makes no sense."""


class ModelError(ArcftError):
    """A model or tokenizer that can't be found, read or built."""
