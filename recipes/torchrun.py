"""torchrun, but without a traceback where it is interrupted or where a process fails, which has
then said itself what is wrong."""

import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

try:
    main()
except (KeyboardInterrupt, SignalException):
    sys.exit(130)
except ChildFailedError as error:
    rank, failure = error.get_first_failure()
    how = f"status {failure.exitcode}" if failure.exitcode > 0 else failure.signal_name()
    sys.exit(f"distributed: worker {rank} was the first to end, with {how}")
