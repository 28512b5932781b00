"""Waiting for what comes about by itself."""

import time

from botocore.exceptions import ClientError


def until(read, what, timeout_s=20, pause_s=0.1, when=bool):
    """Reads until `when` holds of the answer, and returns it; fails with the last answer if `what` does not come about."""
    deadline = time.monotonic() + timeout_s
    while not when(found := read()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s} s: {what}; the last answer was {found!r}")
        time.sleep(pause_s)
    return found


def until_gone(get, timeout_s=60, **arguments):
    """Waits until this call of an API is answered by 404, and returns the error's code and message."""
    def error():
        try:
            get(**arguments)
        except ClientError as refused:
            assert refused.response["ResponseMetadata"]["HTTPStatusCode"] == 404, refused
            return refused.response["Error"]
        return None

    return until(error, f"{arguments} is gone", timeout_s)
