"""For commands that use Megatron without training: what it prints on the way matters only if it fails."""

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back stdout, stderr, warnings and torch's log. Shown if the block fails, unless the error is the
    user's to mend (ValueError, OSError).
    """
    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    logger.setLevel(logging.ERROR)
    log = io.StringIO()
    try:
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log), warnings.catch_warnings():
            yield
    except (ValueError, OSError):
        raise
    except Exception:
        sys.stderr.write(log.getvalue())
        raise
    finally:
        logger.setLevel(level)
