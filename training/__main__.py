"""`python -m training`."""

from training.command import main

if __name__ == "__main__":
    main()
