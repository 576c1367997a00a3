"""What a run makes beside its results, such as pictures: where one fails, the run goes on."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from arcft.console import note

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def extra(what: str, of: str = "run") -> Iterator[None]:
    """Print a note that `what` could not be made in place of an exception; the traceback goes to the job's log. `of` is
    what goes on without it."""
    try:
        yield
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        note(f"{what} could not be made ({type(error).__name__}: {reason}); the {of} goes on without it")
        logger.debug("%s", what, exc_info=True)
