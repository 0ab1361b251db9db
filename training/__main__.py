"""`python -m training`."""

from liber_feast.fast_start import leave_out_type_checks

leave_out_type_checks()
from training.command import main  # noqa: E402 (it imports Feast)

if __name__ == "__main__":
    main()
