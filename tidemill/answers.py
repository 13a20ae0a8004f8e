"""What became of a command, for the client: `tidemill.agents.answers` with the client's errors.

Owns the translation. Refuses to know where an answer is looked for.
"""

from __future__ import annotations

from tidemill.agents import answers
from tidemill.agents.answers import ANSWER_SECONDS, CommandAnswer, CommandReceipt
from tidemill.requests import ClientError
from tidemill.schemas.topics import Topics


class AnswerTimeout(ClientError, TimeoutError):
    """No answer came in time. The command is sent, and will be answered."""


def wait_for_answer(
    kafka: str, topics: Topics, receipt: CommandReceipt, timeout: float = ANSWER_SECONDS
) -> CommandAnswer:
    """The answer to a command. Raises AnswerTimeout, ClientError when Kafka does not answer."""
    try:
        return answers.wait_for_answer(kafka, topics, receipt, timeout)
    except answers.AnswerTimeout as error:
        raise AnswerTimeout(str(error)) from None
    except answers.AnswerError as error:
        raise ClientError(str(error)) from error


__all__ = [
    "ANSWER_SECONDS",
    "AnswerTimeout",
    "CommandAnswer",
    "CommandReceipt",
    "wait_for_answer",
]
