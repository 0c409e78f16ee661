"""Settings that every test process and the ranks it starts share."""

import os

# Several ranks share the machine's cores in one test; more threads than cores only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["WANDB_MODE"] = "disabled"

from tests.models import ids, make_model, tiny_folder  # noqa: F401 (fixtures of several folders)
