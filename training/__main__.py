"""`python -m training`."""

from liber_feast.fast_start import leave_out_type_checks

leave_out_type_checks()
from training import ablate_command  # noqa: E402, F401 (it imports Feast, and brings a command)
from training.command import main  # noqa: E402

if __name__ == "__main__":
    main()
