"""The trace of an attempt that raised, as its event keeps it: bounded, and safe to show.

Owns the text and its bounds. Refuses to know how many traces are kept (`failure_log`) and who reads
them. Values of variables are not in it; the exception's own words are, as in the error's message.
"""

from __future__ import annotations

import traceback
from types import TracebackType
from typing import Final

from tidemill.schemas.safe_text import safe_text

TRACE_LENGTH_MAX: Final = 8_192  # characters; more is a recursion or a chain that nobody reads
FRAMES_MAX: Final = 40  # of one exception, those nearest to where it was raised
# Of a trace that is cut: its beginning names the first cause, its end what was raised at last.
HEAD_LENGTH: Final = 2_048
# Where an attempt begins; a reader wants the handler's frames.
OUR_FRAMES: Final = "/tidemill/agents/worker/"


def trace_text(raised: BaseException) -> str:
    """What Python prints of an uncaught exception, causes and groups included."""
    try:
        # Lines of the source are looked up here, and an exception's own words are asked for.
        told = traceback.TracebackException(
            type(raised), raised, _without_ours(raised), limit=-FRAMES_MAX, compact=True
        )
        text = "".join(told.format())
    except BaseException as error:  # noqa: BLE001  # a user's class may do anything when asked
        text = f"{class_name(raised)} (its trace cannot be written: {class_name(error)})"
    return cut(safe_text(text.rstrip()))


def class_name(raised: BaseException) -> str:
    """The name of its class, whatever the class makes of that."""
    return str(type.__getattribute__(type(raised), "__name__"))


def place_of(raised: BaseException) -> str:
    """File and line that raised it."""
    trace = raised.__traceback__
    if trace is None:
        return "an unknown place"
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"


def cut(text: str) -> str:
    """At most TRACE_LENGTH_MAX characters: the beginning and the end, and a word of the rest."""
    if len(text) <= TRACE_LENGTH_MAX:
        return text
    word = f"\n… {len(text) - TRACE_LENGTH_MAX} characters and a few more are left out …\n"
    return text[:HEAD_LENGTH] + word + text[HEAD_LENGTH + len(word) - TRACE_LENGTH_MAX :]


def _without_ours(raised: BaseException) -> TracebackType | None:
    """From the handler's own frame on."""
    trace = raised.__traceback__
    while (
        trace is not None
        and trace.tb_next is not None
        and OUR_FRAMES in trace.tb_frame.f_code.co_filename
    ):
        trace = trace.tb_next
    return trace
