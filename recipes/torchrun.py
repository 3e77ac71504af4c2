"""torchrun, but without a traceback where it is interrupted."""

import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.run import main

try:
    main()
except (KeyboardInterrupt, SignalException):
    sys.exit(130)
