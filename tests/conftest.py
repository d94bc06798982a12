"""For all tests: nothing is mirrored to W&B unless a test asks for it."""

import os

os.environ["WANDB_MODE"] = "disabled"
