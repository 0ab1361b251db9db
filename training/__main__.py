"""`python -m training`."""

from liber_feast.fast_start import leave_out_type_checks

leave_out_type_checks()
from training import ablate_command, compare_command  # noqa: E402, F401 (they import Feast, and bring commands)
from training.command import main  # noqa: E402

if __name__ == "__main__":
    main()
