"""`python -m training`."""

from liber_feast.fast_start import leave_out_type_checks

leave_out_type_checks()
from training import (  # noqa: E402 (they import Feast, and bring commands)
    ablate_command,  # noqa: F401
    compare_command,  # noqa: F401
    profiled_command,  # noqa: F401
)
from training.command import main  # noqa: E402

if __name__ == "__main__":
    main()
