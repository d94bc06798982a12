"""When this process began, as near as Python can tell: imported before anything that takes long."""

import time

# seconds of time.monotonic()
AT = time.monotonic()
